"""`localdiff eval`: how good a model is, on one task. A table and one JSON object go to stdout, the rest to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ..errors import counted
from ..evaluate.options import NOT_OF_GENERATION, EvalOptions
from ..options import GenerateOptions
from .bar import Bar
from .flags import ManyValues, flags, given
from .generating import GROUPS, LOADING


def _loading(command: Any) -> Any:
    for option in reversed(LOADING):
        command = option(command)
    return command


@click.command(cls=ManyValues, groups=GROUPS)
@click.argument("model", metavar="[MODEL.gguf]", required=False)
@flags(EvalOptions)
@flags(GenerateOptions, without=NOT_OF_GENERATION)
@_loading
@click.option("--json", "as_json", is_flag=True, help="print the JSON object only")
def command(model: str | None, as_json: bool, **values: Any) -> None:
    """Measure MODEL.gguf (without it: the embedded model) on one task, on the engine alone.

    A diffusion model's likelihoods are bounds, with the standard error of the mean; those of a file without a diffusion
    record, or with --attention causal, are exact. Ctrl-C keeps what is finished where there is an --output, and
    --resume goes on. Generation has the published settings of the task where they fit the model; the flags of run
    change them.
    """
    options = EvalOptions(**given(values, EvalOptions))
    asked = GenerateOptions(**given(values, GenerateOptions) | {"seed": None})
    from ..evaluate.run import columns, evaluate

    loading = {name: values[name] for name in ("device", "gpu_layers", "threads", "isa", "math", "lora")}
    try:
        with Bar() as bar:
            result = evaluate(model, options, asked, diffusion=values["diffusion"], progress=bar.show, loading=loading)
    except KeyboardInterrupt:
        if options.output:
            print("localdiff: stopped; --resume goes on with the items that are left", file=sys.stderr)
        raise
    for notice in result.notices:
        print(f"localdiff: {notice}", file=sys.stderr)
    if result.skipped:
        print(f"localdiff: {result.skipped} of {counted(len(result.records), 'item')} skipped", file=sys.stderr)
    if not as_json:
        print(f"{result.task} of {result.model}: {result.source}\n")
        print("\n".join(columns(result.rows)) + "\n")
    print(json.dumps(result.as_dict(records=False), ensure_ascii=False))
