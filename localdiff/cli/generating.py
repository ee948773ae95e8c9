"""What `run` and `infill` share: the model's flags, watching a stream of events, and printing the answer.

On a terminal the live view is painted on stderr and taken away before the answer is printed, so that the text stands
there once, wherever stdout goes. After Ctrl-C the view stays as it was and stdout gets nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, counted
from ..hub.store import find
from ..options import MATH, GenerateOptions
from . import flags

if TYPE_CHECKING:
    from ..generation import DenoiseStream, Generation
    from ..model import Model
    from ..page import Span

DEVICES = ("auto", "cpu", "cuda", "llamacpp")  # of devices.py, which takes the engine with it
DEVICE_HELP = "where to compute; llamacpp: in llama.cpp (Apple's and AMD's GPUs), without caches (default auto)"
MATH_HELP = "arithmetic of quantised weights; auto: fast where it hardly changes it, exact on a GPU (default auto)"
LORA = click.option("--lora", multiple=True, metavar="FILE[=SCALE]", help="GGUF adapter to apply; may be repeated")
DEVICE = click.option("--device", type=click.Choice(DEVICES), default="auto", help=DEVICE_HELP)
GPU_LAYERS = click.option(
    "--gpu-layers", type=int, metavar="N", help="the last N layers on the GPU (default: all that its memory holds)"
)
MODEL = click.argument("model", required=False, metavar="[MODEL.gguf]")
LOADING = (
    DEVICE,
    GPU_LAYERS,
    click.option("--threads", type=int, help="CPU threads (default: all that the process may use)"),
    click.option("--isa", help="CPU kernel row by name, see localdiff doctor (default: the best)"),
    click.option("--math", type=click.Choice(MATH), default="auto", help=MATH_HELP),
    click.option("--diffusion", help="preset or mask=ID,shift=0|1,attn=full,...: over the file's diffusion record"),
    LORA,
)
LOADING_GROUP = {"Model and machine": ("device", "gpu_layers", "threads", "isa", "math", "diffusion", "lora")}
GROUPS = {**GenerateOptions.groups(), **LOADING_GROUP}
SHOWING = (
    click.option("--no-live", is_flag=True, help="no live view"),
    click.option("--json", "as_json", is_flag=True, help="print one JSON object, with samples one on each line"),
)


def loading_flags(command: flags.Decorated) -> flags.Decorated:
    """The flags of a command that loads a model."""
    for option in reversed(LOADING):
        command = option(command)
    return command


def generation_flags(without: tuple[str, ...] = ()) -> Callable[[flags.Decorated], flags.Decorated]:
    """All flags of a generating command: the fields of GenerateOptions, loading, showing."""

    def decorate(command: flags.Decorated) -> flags.Decorated:
        for option in reversed(SHOWING):
            command = option(command)
        return flags.flags(GenerateOptions, without=without)(loading_flags(command))

    return decorate


def split_model(arguments: tuple[str, ...], what: str) -> tuple[str | None, str | None]:
    """(MODEL, text) of `[MODEL.gguf] [TEXT]`: the first is a model if it ends in .gguf, is a file or was pulled."""
    if len(arguments) > 2:
        raise click.UsageError(f"Got {len(arguments)} arguments, expected a model and a {what}; put quotes around it.")
    if not arguments:
        return None, None
    first = arguments[0]
    path = Path(first)
    if first.endswith(".gguf") or _is(path.is_file) or find(first) is not None:
        return first, arguments[1] if len(arguments) == 2 else None
    if _is((path / "config.json").is_file):
        raise OptionError(f"{first} is a checkpoint folder, expected a .gguf file; run localdiff convert {first} first")
    if _is(path.is_dir):
        instead = "; where it is the prompt, give it with -p" if what == "prompt" else ""
        raise OptionError(f"{first} is a folder, expected a .gguf file or a {what}{instead}")
    if len(arguments) == 2:
        raise OptionError(
            f"{first}: no such model file or downloaded model; to give a {what} alone, put quotes around it"
        )
    return None, first


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except (OSError, ValueError):  # a prompt that cannot be a path
        return False


def file_of(model: str | None) -> Path:
    """The file of a MODEL argument: itself, that of a downloaded model, without one that of the embedded model."""
    from ..hub.store import located
    from ..loading import EMBEDDED

    return EMBEDDED if model is None else located(model)


def loading(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of localdiff.load() that were given as flags."""
    names = ("device", "gpu_layers", "threads", "isa", "math", "diffusion", "lora")
    return {name: values[name] for name in names}


def load(model: str | None, values: dict[str, Any], access: str = "map") -> Model:
    from ..loading import load as load_model

    loaded = load_model(model, **loading(values), access=access)
    show_notices(loaded)
    return loaded


def show_notices(model: Model) -> None:
    for notice in model.notices:
        print(f"localdiff: {notice}", file=sys.stderr)


def options(values: dict[str, Any]) -> GenerateOptions:
    if values["alternatives"] and not values["as_json"]:
        raise OptionError("--alternatives are reported in the object of --json only; give it too")
    return GenerateOptions(**flags.given(values, GenerateOptions))


def watch(stream: DenoiseStream, live: bool) -> list[Generation]:
    """Run a stream to its end, painting its texts where `live`; KeyboardInterrupt leaves the view in place."""
    from .live import LiveView

    if not (live and LiveView.possible()):
        for _ in stream:
            pass
        return stream.results
    view = LiveView()
    texts: dict[int, list[Span]] = {}
    try:
        for event in stream:
            texts[event.index] = event.spans
            view.show(_below_each_other(texts))
    except KeyboardInterrupt:
        view.keep()
        raise
    except BaseException:
        view.erase()
        raise
    view.erase()
    return stream.results


def _below_each_other(texts: Mapping[int, list[Span]]) -> list[Span]:
    """The spans of all texts; those of several with a line between them."""
    from ..page import Span

    spans = list(texts[min(texts)])
    for index in sorted(texts)[1:]:
        spans += [Span("note", f"\n--- {index + 1}\n", 0), *texts[index]]
    return spans


def answers(results: Sequence[Generation], as_json: bool) -> None:
    """Print the answers: as JSON one object a line, else with a line before each of several that names its seed."""
    for index, result in enumerate(results):
        if len(results) > 1 and not as_json:
            print(f"--- {index + 1}, seed {result.seed}", flush=True)
        answer(result, as_json)


def answer(result: Generation, as_json: bool) -> None:
    """Print the answer, and on a terminal's stderr a line of figures."""
    if as_json:
        print(json.dumps(result.as_dict(), ensure_ascii=False))
        return
    _print(result.text)
    if result.drift is not None:
        print(_drift(result.drift), file=sys.stderr)
    if sys.stderr.isatty():
        faint, plain = ("", "") if os.environ.get("NO_COLOR") or not sys.stderr.isatty() else ("\x1b[2m", "\x1b[0m")
        figures = (
            f"{counted(len(result.tokens), 'token')}, {counted(result.nfe, 'forward pass', 'forward passes')}, "
            f"{result.seconds:.2f} s, seed {result.seed}"
        )
        print(f"{faint}{figures}{plain}", file=sys.stderr)


def _drift(drift: Mapping[str, float | int]) -> str:
    compared = counted(int(drift["compared_tokens"]), "token")
    return (
        f"drift from exact: {drift['tokens']:.1%} of {compared} would be others; a row has {drift['probability']:.1%} "
        f"of its probability elsewhere on average, {drift['probability_max']:.1%} at most"
    )


def _print(text: str) -> None:
    from .live import printable

    sys.stdout.flush()
    text = printable(text) if sys.stdout.isatty() else text  # a terminal must not obey what a model wrote
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
