"""`localdiff serve`: the HTTP server. What it says goes to stderr; Ctrl-C and SIGTERM end it after running requests."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

import click

from ..errors import LocaldiffError, OptionError
from ..serve.options import ServeOptions
from . import flags, generating


@click.command(short_help="serve models over HTTP: OpenAI's and Ollama's shapes, and a web page")
@click.argument("model", required=False, metavar="[MODEL.gguf]")
@click.option("--model", "named", multiple=True, metavar="NAME=FILE", help="another model to serve; may be repeated")
@flags.flags(ServeOptions)
@generating.loading_flags
def command(model: str | None, named: tuple[str, ...], **values: Any) -> None:
    """Serve MODEL.gguf, the models of --model, or the small story model of the package."""
    options = ServeOptions(**flags.given(values, ServeOptions))
    try:
        from ..serve import app, hub, scheduler
    except ModuleNotFoundError as error:
        raise LocaldiffError(
            f"the server needs {error.name}, which is not installed; pip install 'localdiff[serve]'"
        ) from None
    key = options.api_key or os.environ.get("LOCALDIFF_API_KEY") or None
    binding = app.Binding(options.host, options.port, key, options.allow_host, patience=options.patience)
    app.check(binding)
    files: list[tuple[str | None, str | None]] = [_named(each) for each in named]
    if model is not None or not files:
        files.insert(0, (None, model))
    memory = _free_memory() // 2 if options.memory is None else options.memory << 20
    limits = scheduler.Limits(options.parallel, options.queue, options.timeout, memory)
    with ExitStack() as models:
        loaded = []
        for name, path in files:
            each = models.enter_context(generating.load(path, values, access="read"))
            loaded.append((name or each.path.stem, each))
        served = hub.Hub(loaded, limits)
        names = ", ".join(served.models)
        app.run(served, binding, lambda url: print(f"localdiff: {names} at {url}", file=sys.stderr, flush=True))


def _named(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise OptionError(f"--model is {text!r}, expected NAME=FILE.gguf")
    return name, path


def _free_memory() -> int:
    """Bytes that are free or can be had from the system's file cache."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
