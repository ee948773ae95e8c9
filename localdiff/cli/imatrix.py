"""`localdiff imatrix`: texts become an importance matrix for `quantize --imatrix`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import counted
from .bar import Bar, show_notes
from .flags import ManyValues


@click.command(cls=ManyValues)
@click.argument("model", metavar="MODEL.gguf")
@click.option("-o", "--output", required=True, metavar="FILE.gguf", help="the file to write")
@click.option("--data", multiple=True, required=True, metavar="TEXT...", help="texts: .txt or .jsonl, also .xz or .gz")
@click.option("--causal", is_flag=True, help="unmasked text under causal attention, as for ordinary models")
@click.option("--length", type=int, metavar="N", help="tokens of a canvas (default 256)")
@click.option("--chunks", type=int, default=256, show_default=True, metavar="N", help="canvases at most")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="of the noise")
@click.option("--diffusion", help="preset or mask=ID,shift=0|1,...: the diffusion record, or changes to it")
@click.option("--threads", type=int, metavar="N", help="threads (default: all that the process may use)")
def command(
    model: str,
    output: str,
    data: tuple[str, ...],
    causal: bool,
    length: int | None,
    chunks: int,
    seed: int,
    diffusion: str | None,
    threads: int | None,
) -> None:
    """Run MODEL.gguf over canvases of text, masked as in training, and write how large the inputs of its matrices are.

    Take the unreduced file (f16 or f32), and text like that which the model is meant for.
    """
    from ..quantize import gather_imatrix

    with Bar() as bar:
        report = gather_imatrix(
            Path(model),
            Path(output),
            data=[Path(each) for each in data],
            causal=causal,
            length=length,
            chunks=chunks,
            seed=seed,
            diffusion=diffusion,
            threads=threads,
            progress=bar.show,
        )
    show_notes(report.notices)
    share = report.masked / (report.chunks * report.length)
    what = "whole text, causal" if causal else f"{share:.0%} of the tokens masked"
    print(
        f"{report.path}: {report.entries} tensors, {counted(report.chunks, 'canvas', 'canvases')} of {report.length} "
        f"tokens, {what}",
        file=sys.stderr,
    )
