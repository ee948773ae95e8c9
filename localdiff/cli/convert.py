"""`localdiff convert`: a checkpoint becomes a GGUF file with its diffusion record."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .bar import Bar, show_notes
from .flags import Command


@click.command(cls=Command)
@click.argument("source", metavar="HF_DIR")
@click.option("-o", "--output", required=True, metavar="OUT.gguf", help="the file to write")
@click.option("--type", "kind", metavar="TYPE", help="type of the weights: f16 (default) or any of quantize")
@click.option("--diffusion", help="preset or mask=ID,shift=0|1,...: the diffusion record, or changes to it")
@click.option("--tokenizer", metavar="PATH", help="tokenizer folder or file, where it does not lie beside the weights")
@click.option("--lora", metavar="DIR", help="PEFT adapter to merge into the weights")
@click.option("--name", help="name of the model in the file")
def command(
    source: str,
    output: str,
    kind: str | None,
    diffusion: str | None,
    tokenizer: str | None,
    lora: str | None,
    name: str | None,
) -> None:
    """Convert HF_DIR, a llama2.c .bin, or a .gguf file without a diffusion record."""
    from ..convert import convert

    with Bar() as bar:
        report = convert(
            Path(source),
            Path(output),
            type=kind,
            diffusion=diffusion,
            tokenizer=Path(tokenizer) if tokenizer else None,
            lora=Path(lora) if lora else None,
            name=name,
            progress=bar.show,
        )
    show_notes(report.notices)
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    print(
        f"{report.path}: {report.arch}, {report.parameters:,} parameters, {report.file_bytes:,} bytes; tensors {types}",
        file=sys.stderr,
    )
