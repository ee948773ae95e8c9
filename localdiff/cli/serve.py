"""`localdiff serve`: the HTTP server. What it says goes to stderr; Ctrl-C and SIGTERM end it after running requests."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..errors import LocaldiffError, OptionError
from ..serve.options import ServeOptions
from . import flags, generating


@click.command(cls=flags.Command, groups=generating.LOADING_GROUP)
@click.argument("model", required=False, metavar="[MODEL.gguf]")
@click.option("--model", "named", multiple=True, metavar="NAME=FILE", help="another model to serve; may be repeated")
@flags.flags(ServeOptions)
@generating.loading_flags
def command(model: str | None, named: tuple[str, ...], **values: Any) -> None:
    """Serve MODEL.gguf, the models of --model, or the small story model of the package."""
    options = ServeOptions(**flags.given(values, ServeOptions))
    try:
        from ..serve import app
        from ..serve.opening import Opening
    except ModuleNotFoundError as error:
        raise LocaldiffError(
            f"the server needs {error.name}, which is not installed; pip install 'localdiff[serve]'"
        ) from None
    key = options.api_key or os.environ.get("LOCALDIFF_API_KEY") or None
    binding = app.Binding(options.host, options.port, key, options.allow_host, patience=options.patience)
    app.check(binding)
    files: list[tuple[str | None, str | None]] = [named_file(each) for each in named]
    if model is not None or not files:
        files.insert(0, (None, model))
    loading = generating.loading(values)
    opening = Opening(tuple(files), loading, options.parallel, options.queue, options.timeout, options.memory)
    with opening.hub() as served:
        for each in served.models.values():
            generating.show_notices(each.model)
        names = ", ".join(served.models)
        app.run(served, binding, lambda url: print(f"localdiff: {names} at {url}", file=sys.stderr, flush=True))


def named_file(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise OptionError(f"--model is {text!r}, expected NAME=FILE.gguf")
    return name, path
