"""`localdiff batch`: answer a file of requests, here or on a Ray cluster. A run that was stopped goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LocaldiffError, OptionError, counted
from ..serve.options import ServeOptions
from . import flags, generating
from .bar import Bar
from .serve import named_file

if TYPE_CHECKING:
    from ..serve.batch import Asked
    from ..serve.opening import Opening

Tell = Callable[[dict[str, Any]], None]
_NOT_OF_BATCHES = ("host", "port", "api_key", "allow_host", "queue", "timeout", "patience")


@click.command(cls=flags.Command, groups=generating.LOADING_GROUP)
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.option("--model", "named", multiple=True, metavar="[NAME=]FILE", help="a model that requests name by its NAME, "
              "without one by the name of its file; may be repeated")  # fmt: skip
@click.option("--ray", "address", metavar="ADDRESS", help="run on this Ray cluster: HOST:PORT, ray://..., auto, local")
@click.option("--workers", type=click.IntRange(1), help="with --ray: processes (default: one per machine)")
@flags.flags(ServeOptions, without=_NOT_OF_BATCHES)
@generating.loading_flags
def command(source: Path, target: Path, **values: Any) -> None:
    """Answer the requests of IN.jsonl, one line of OUT.jsonl for each.

    Lines are those of OpenAI's batches, for /v1/chat/completions, /v1/completions and /v1/infill. Many are denoised
    together, so answers come in the order in which they are finished. Answers that are in OUT.jsonl are kept and their
    requests are not sent again: run the same command after a stop of any kind. Without --model the small story model
    of the package answers. The exit code is 1 where any answer is an error.
    """
    options = ServeOptions(**flags.given(values, ServeOptions))
    if values["workers"] is not None and values["address"] is None:
        raise OptionError("--workers is only for --ray; give it too, or leave --workers out")
    try:
        from ..serve import batch, batch_file
    except ModuleNotFoundError as error:
        raise LocaldiffError(
            f"batch needs {error.name}, which is not installed; pip install 'localdiff[serve]'"
        ) from None
    files = [named_file(each) if "=" in each else (None, each) for each in values["named"]] or [(None, None)]
    opening = batch.opening(files, generating.loading(values), options.parallel, options.memory)
    ids = {line.id for line in batch_file.read_lines(source)}
    with batch_file.Answers(target, ids) as answers, Bar() as bar:

        def tell(answer: dict[str, Any]) -> None:
            answers.add(answer)
            bar.show(f"{len(answers.done)} of {len(ids)} requests", len(answers.done), len(ids))

        asked = _requests(batch.unanswered(batch_file.read_lines(source), answers.done.copy()), tell)
        try:
            first = next(asked, None)
            if first is not None:  # models are loaded only where there is something to ask
                _answer(chain([first], asked), opening, values, tell)
        except KeyboardInterrupt:
            left = counted(len(ids) - len(answers.done), "request")
            print(f"localdiff: stopped; the same command goes on with the {left} left", file=sys.stderr)
            raise
    if len(answers.done) < len(ids):
        raise LocaldiffError(f"{source}: was changed meanwhile; leave it as it is and run again")
    if answers.failed:
        raise LocaldiffError(
            f"{answers.failed} of {counted(len(ids), 'request')} failed; their lines in {target} say why, remove them "
            "to ask again"
        )
    print(f"localdiff: {counted(len(ids), 'request')} answered in {target}", file=sys.stderr)


def _requests(lines: Iterator[Asked | dict[str, Any]], tell: Tell) -> Iterator[Asked]:
    """The requests; answers that need no model are told."""
    for each in lines:
        if isinstance(each, dict):
            tell(each)
        else:
            yield each


def _answer(asked: Iterator[Asked], opening: Opening, values: dict[str, Any], tell: Tell) -> None:
    """Answer requests where the flags say."""
    if values["address"] is not None:
        from ..serve import ray_data

        ray_data.answer(values["address"], values["workers"], opening, asked, tell)
        return
    from ..serve import batch

    with opening.hub() as hub:
        for served in hub.models.values():
            generating.show_notices(served.model)
        batch.answer(hub, asked, batch.under_way(opening.parallel), tell)
