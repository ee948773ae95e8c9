"""`localdiff plan`: the memory that a generation takes. Weights are packed to know their size; nothing is computed."""

from __future__ import annotations

import json

import click

from ..errors import OptionError


@click.command(short_help="show the memory that a generation takes")
@click.argument("model", metavar="MODEL.gguf")
@click.option("-n", "--canvas", type=int, help="positions of the canvas, prompt included (default: the context length)")
@click.option("--batch", type=int, default=1, help="canvases at once (default 1)")
@click.option("--isa", help="CPU kernel row by name (default: the best)")
@click.option("--threads", type=int, help="CPU threads (default: all that the process may use)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(model: str, canvas: int | None, batch: int, isa: str | None, threads: int | None, as_json: bool) -> None:
    """Show the bytes for the weights and the session of MODEL.gguf."""
    from ..engine import EngineModel, File

    with File.open(model) as file, EngineModel(file, isa=isa, threads=threads) as engine:
        info = engine.info
        length = info.context_length if canvas is None else canvas
        if not 1 <= length <= info.context_length:
            raise OptionError(f"-n is {length}, but the model has a context of 1 to {info.context_length} positions")
        session = engine.plan(slots=batch, slot_length=length, threads=threads)
    facts = {
        "model": model, "arch": info.arch, "isa": info.isa, "canvas": length, "batch": batch,
        "weight_bytes": info.weight_bytes, "session_bytes": session, "total_bytes": info.weight_bytes + session,
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    print(f"weights  {info.weight_bytes:>16,} bytes, packed for {info.isa}; looked-up tables stay in the file")
    print(f"session  {session:>16,} bytes, {batch} x {length} positions")
    print(f"total    {info.weight_bytes + session:>16,} bytes")
