"""`localdiff rm`: a downloaded model is removed."""

from __future__ import annotations

import sys

import click

from .flags import Command


@click.command(cls=Command)
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Remove a model that localdiff pull has downloaded; without :TYPE all types of it."""
    from ..hub import remove

    for model in remove(name):
        print(f"{model.name} removed, {model.bytes / 1e6:,.1f} MB", file=sys.stderr)
