"""`localdiff bench`: how fast a model is on this machine, and how near to what the machine can do.

Progress goes to stderr, a table to stdout, and one JSON object last (alone with --json). See localdiff/bench for what
is measured and how.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from ..errors import LocaldiffError, OptionError
from ..options import MATH
from .flags import Command
from .generating import LORA, MATH_HELP, MODEL, file_of

ROWS = (8, 32, 64, 128, 256, 512)


@click.command(cls=Command)
@MODEL
@click.option("--rows", help=f"sizes of the forward passes (default {','.join(map(str, ROWS))}, as far as they fit)")
@click.option("--repetitions", type=click.IntRange(1), default=5, help="rounds; figures are their median (default 5)")
@click.option("--isa", help="CPU kernel row by name (default: the best)")
@click.option("--threads", type=int, help="CPU threads (default: all that the process may use)")
@click.option("--math", type=click.Choice(MATH), default="auto", help=MATH_HELP)
@click.option("--diffusion", help="a diffusion record, as in run, for the timed generation")
@LORA
@click.option("--profile", is_flag=True, help="show where the time of a forward pass goes")
@click.option("--json", "as_json", is_flag=True, help="print the JSON object only")
def command(
    model: str | None,
    rows: str | None,
    repetitions: int,
    isa: str | None,
    threads: int | None,
    math: str,
    diffusion: str | None,
    lora: tuple[str, ...],
    profile: bool,
    as_json: bool,
) -> None:
    """Measure forward passes and a generation: milliseconds, GOPS, share of the machine's peak.

    Without MODEL.gguf the embedded model is measured.

    A forward pass computes and scores every row. GOPS counts the products with the weights, two operations each; the
    peak is measured in between. The generation uses the model's own decoder.
    """
    from ..adapters import opened, scaled_paths
    from ..arithmetic import decide
    from ..bench.card import machine_card
    from ..bench.forward import measure_forwards
    from ..bench.generation import measure_generation
    from ..engine import EngineModel, File
    from ..presets import resolve
    from ..text import Tokenizer

    progress = _Progress()
    try:
        progress("reading the file")
        with (
            File.open(file_of(model)) as file,
            opened(lora) as adapters,
            EngineModel(file, isa=isa, threads=threads, adapters=adapters) as engine,
        ):
            sizes = _sizes(rows, engine.info.context_length)
            spec = resolve(file.metadata, diffusion)
            files = [(file.path, 1.0), *scaled_paths(lora)]
            chosen = decide(math, files, engine, spec, lambda: Tokenizer.from_gguf(file.metadata), threads)
            attention = spec.attention if spec is not None and spec.attention != "block_causal" else "full"
            measured = measure_forwards(
                file,
                engine,
                sizes,
                threads=threads,
                attention=attention,
                math=chosen.math,
                repetitions=repetitions,
                progress=progress,
            )
            progress("generating")
            try:
                generation: dict[str, Any] = measure_generation(
                    file, engine, threads=threads, diffusion=diffusion, math=chosen.math
                )
            except LocaldiffError as error:  # forward passes of files without a tokenizer are worth measuring too
                generation = {"not_run": str(error)}
            card = machine_card(engine.info.isa, measured["peak"]["threads"])
    finally:
        progress("")
    result = {
        "bench": "localdiff",
        "model": str(file.path),
        "machine": card,
        "math": asdict(chosen),
        **measured,
        "generation": generation,
    }
    if not as_json:
        _print(result, profile)
    print(json.dumps(result))


def _sizes(rows: str | None, context: int) -> list[int]:
    if rows is None:
        return [size for size in ROWS if size <= context] or [context]
    try:
        sizes = [int(word) for word in rows.split(",")]
    except ValueError:
        raise OptionError(f"--rows is '{rows}', expected whole numbers joined by commas, such as 32,64,256") from None
    for size in sizes:
        if not 1 <= size <= context:
            raise OptionError(f"--rows asks for {size}, but the context of the model has 1 to {context} positions")
    return sizes


class _Progress:
    """One line on stderr that is written over; nothing where stderr is not a terminal."""

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def _print(result: dict[str, Any], profile: bool) -> None:
    card, peak, work = result["machine"], result["peak"], result["work"]
    print(f"{card['cpu']}, {card['threads']} of {card['cores']} cores, kernel row {card['isa']}, {card['date']}")
    print(
        f"peak: int8 {peak['int8_gops']:.0f} GOPS, float32 {peak['f32_gflops']:.0f} GFLOPS, "
        f"memory {peak['memory_gbps']:.1f} GB/s; these weights are run in {work['arithmetic']}"
    )
    print(f"arithmetic: {result['math']['math']}, {result['math']['reason']}\n")
    print("  rows  ms per forward (min - max)            GOPS  of peak" + ("   where the time goes" if profile else ""))
    for one in result["forwards"]:
        spread = f"({one['ms_min']:.2f} - {one['ms_max']:.2f})"
        line = f"{one['rows']:6}  {one['ms']:10.2f} {spread:24} {one['gops']:6.0f}  {one['share']:6.0%}"
        print(line + (f"   {_parts(one['parts'])}" if profile else ""))
    made = result["generation"]
    if "not_run" in made:
        print(f"\ngeneration: not run, {made['not_run']}")
    else:
        assumed = f"; no diffusion record, {made['assumed_diffusion']} assumed" if made["assumed_diffusion"] else ""
        print(
            f"\ngeneration: {made['canvas_tokens']} tokens after {made['prompt_tokens']} in {made['seconds']:.2f} s: "
            f"{made['canvas_tokens_per_second']:.1f} tokens/s, {made['nfe']} forwards, "
            f"{made['tokens_per_forward']:.2f} tokens each{assumed}"
        )
    print()


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
