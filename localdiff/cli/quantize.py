"""`localdiff quantize`: a GGUF file becomes a smaller one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .bar import Bar, show_notes
from .flags import Command


@click.command(cls=Command)
@click.argument("source", metavar="IN.gguf")
@click.argument("output", metavar="OUT.gguf")
@click.option("--type", "kind", metavar="TYPE", required=True, help="q4_k_m, q5_k_m, q6_k, q8_0, q4_0, f16, ...")
@click.option("--imatrix", metavar="FILE", help="importance matrix in GGUF form: which columns errors cost most in")
@click.option("--threads", type=int, metavar="N", help="threads (default: all that the process may use)")
@click.option("--allow-requantize", is_flag=True, help="take a file whose matrices were quantised before; loses more")
def command(
    source: str, output: str, kind: str, imatrix: str | None, threads: int | None, allow_requantize: bool
) -> None:
    """Write IN.gguf as OUT.gguf with fewer bits per weight.

    The types are llama.cpp's: q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k, q4_0 q4_1 q5_0 q5_1 q8_0,
    iq4_nl iq4_xs, f16 bf16 f32.
    """
    from ..quantize import quantize

    with Bar() as bar:
        report = quantize(
            Path(source),
            Path(output),
            type=kind,
            imatrix=Path(imatrix) if imatrix else None,
            threads=threads,
            allow_requantize=allow_requantize,
            progress=bar.show,
        )
    show_notes(report.notices)
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    print(
        f"{report.path}: {report.type}, {report.source_bytes:,} -> {report.file_bytes:,} bytes, "
        f"{8 * report.tensor_bytes / report.parameters:.2f} bits per parameter; tensors {types}",
        file=sys.stderr,
    )
