"""`localdiff list`: the models that were downloaded to this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from .flags import Command


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(as_json: bool) -> None:
    """Show the models that localdiff pull has downloaded; each can be named wherever a MODEL.gguf is asked for."""
    from ..hub import stored

    models = stored()
    if as_json:
        shown = [{"name": model.name, "path": str(model.path), **asdict(model)} for model in models]
        print(json.dumps({"models": shown}))
        return
    width = max((len(model.name) for model in models), default=0)
    for model in models:
        print(f"{model.name:{width}}  {model.bytes / 1e6:>10,.1f} MB  {model.commit[:12]}  {model.path}")
    if not models:
        print("no model was downloaded yet; localdiff pull gets one", file=sys.stderr)
