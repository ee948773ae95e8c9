"""`localdiff tune`: find the fastest settings of a model on this machine, and keep them for --preset tuned.

The profile is written when all is done, so Ctrl-C leaves the one that was there. Not here: the search (tuning.py).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from . import flags, generating
from .bar import Bar

if TYPE_CHECKING:
    from ..model import Model
    from ..profiles import Profile


@click.command(cls=flags.Command, groups=generating.LOADING_GROUP)
@generating.MODEL
@click.option("--seconds", type=click.FloatRange(1, 86400), default=120.0, help="how long to look (default 120)")
@click.option(
    "--bound", type=click.FloatRange(0, 10), default=0.03, help="nats a token that texts may be worse (default 0.03)"
)
@click.option("--judge", metavar="FILE", help="an autoregressive model of the same vocabulary that judges the texts")
@click.option("--data", metavar="FILE", help="take the prompts from a text, such as you work with")
@click.option("--show", is_flag=True, help="show the profile that is kept, measure nothing")
@click.option("--forget", is_flag=True, help="remove the profile")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@generating.loading_flags
def command(model: str | None, **values: Any) -> None:
    """Find threshold, block length, cache and threads of MODEL.gguf, for run --preset tuned.

    Texts may become less likely by --bound under the model itself, or under the --judge, than those of exact decoding,
    and may not repeat themselves more; within that the fastest settings are kept, in the user's configuration folder.
    Without MODEL.gguf the embedded model is tuned.
    """
    from ..adapters import scaled_paths
    from ..profiles import checked_store, profile_of, recall, remember, store

    files = [(generating.file_of(model), 1.0), *scaled_paths(values["lora"])]
    if values["show"] and values["forget"]:
        raise OptionError("--show and --forget exclude each other; give one of them")
    if values["show"]:
        profile = profile_of(files)
    elif values["forget"]:
        if recall(files) is None:
            raise OptionError(f"{files[0][0].name} was not tuned on this machine, so there is nothing to forget")
        remember(files, None)
        return
    else:
        checked_store()
        profile = _tuned(model, values)
        remember(files, profile)
    if values["as_json"]:
        print(json.dumps(dataclasses.asdict(profile) | {"store": str(store())}))
        return
    print(profile.described())


def _tuned(model: str | None, values: dict[str, Any]) -> Profile:
    from ..arithmetic import TEXT
    from ..tuning import tune

    text = TEXT if values["data"] is None else _text(Path(values["data"]))
    seconds = values["seconds"]
    with generating.load(model, values) as loaded, Bar() as bar:
        judge = None if values["judge"] is None else _judge(values["judge"], loaded)
        return tune(
            loaded,
            seconds=seconds,
            bound=values["bound"],
            judge=judge,
            text=text,
            progress=lambda what, spent: bar.show(what, min(spent, seconds), seconds),
        )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise OptionError(f"--data {path}: {error.strerror}; name a readable text file") from None


def _judge(path: str, model: Model) -> Model:
    from ..loading import load

    judge = load(path)
    if judge.metadata.get("tokenizer.ggml.tokens") != model.metadata.get("tokenizer.ggml.tokens"):
        raise OptionError(f"--judge {path} has another vocabulary than {model.path}; give the model's own parent")
    return judge
