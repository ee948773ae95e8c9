"""`localdiff pull`: a model from the hub comes onto this machine."""

from __future__ import annotations

import sys

import click

from .bar import Bar
from .flags import Command


@click.command(cls=Command)
@click.argument("name", metavar="NAME")
@click.option("--revision", metavar="R", help="branch, tag or commit to take (default: the newest)")
@click.option("--force", is_flag=True, help="also where this machine has too little memory to run it")
def command(name: str, revision: str | None, force: bool) -> None:
    """Download a GGUF model: a short name such as diffullama, or OWNER/NAME of the hub, with :TYPE for its type.

    A download that was cut goes on where it stopped. HF_ENDPOINT names another hub, HF_TOKEN opens private models,
    LOCALDIFF_MODELS another folder for what is downloaded. Afterwards `localdiff run NAME` needs no network.
    """
    from ..hub import pull

    with Bar() as bar:
        pulled = pull(name, revision, force, lambda done, total: bar.show("checking", done, total))
    model = pulled.model
    said = "is here" if pulled.fetched else "was here already"
    print(f"{model.name} {said}: {model.bytes:,} bytes of commit {model.commit[:12]}, verified", file=sys.stderr)
    print(model.path)
