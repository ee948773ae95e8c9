"""`localdiff adapt`: train a checkpoint into a diffusion model; every flag is a field of AdaptOptions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..adapt import AdaptOptions
from ..adapt.options import GROUPS
from ..errors import counted
from .flags import ManyValues, flags, given

if TYPE_CHECKING:
    from ..adapt.run import AdaptResult


@click.command(cls=ManyValues, groups=GROUPS)
@click.argument("base", required=False)
@flags(AdaptOptions, without=("base",), short={"output": "o"})
def command(base: str | None, **values: Any) -> None:
    """Adapt BASE (an HF folder, a .gguf file or a llama2.c .bin) to a diffusion language model.

    Needs the extra: pip install 'localdiff[train]'. Ctrl-C leaves a checkpoint; `adapt -o OUT_DIR --resume` continues
    from it with the settings it was started with. Several GPUs or machines: accelerate launch -m localdiff adapt ...
    """
    settings = given({"base": base, **values}, AdaptOptions)
    if values["config"] is not None and not values["resume"]:
        from ..adapt.config_file import read_config

        settings = {**read_config(Path(values["config"])), **settings}
    if values["resume"]:
        options = AdaptOptions.resumed(settings.pop("output", ""), settings)
    else:
        options = AdaptOptions(**settings)
    from ..adapt import adapt
    from ..adapt.progress import TerminalProgress

    result = adapt(options, TerminalProgress())
    from ..adapt.processes import leave  # after adapt(), which says so where torch is missing

    if os.environ.get("RANK", "0") == "0":
        _tell(result)
    leave()


def _tell(result: AdaptResult) -> None:
    loss = "" if result.loss is None else f", loss {result.loss:.3f}"
    print(f"{result.folder}: {result.parameters:,} parameters, {counted(result.steps, 'step')}{loss}", file=sys.stderr)
    if result.mask_token is not None:
        print(f"next: localdiff convert {result.folder} -o {result.folder.name}.gguf", file=sys.stderr)
