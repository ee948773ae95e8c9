"""`localdiff plan`: the memory that a generation will take. Nothing is loaded, packed or computed."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from .flags import Command
from .generating import DEVICE, GPU_LAYERS, LORA, MODEL, file_of


@click.command(cls=Command)
@MODEL
@click.option("-n", "--length", type=int, help="positions, prompt included (default: the model's context length)")
@click.option("--batch", type=int, default=1, help="texts at once (default 1)")
@click.option("--threads", type=int, help="CPU threads (default: all that the process may use)")
@click.option("--isa", help="CPU kernel row by name (default: the best)")
@DEVICE
@GPU_LAYERS
@LORA
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, sizes in bytes")
def command(
    model: str | None,
    length: int | None,
    batch: int,
    threads: int | None,
    isa: str | None,
    device: str,
    gpu_layers: int | None,
    lora: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the memory that a process needs to load MODEL.gguf and generate, before loading it.

    Without MODEL.gguf that of the embedded model is shown.
    """
    from ..planning import plan_memory

    path = file_of(model)
    plan = plan_memory(path, length, batch, threads, isa, lora, device, gpu_layers)
    if as_json:
        print(json.dumps({"model": str(path), **asdict(plan)}))
        return
    for what, size, why in (
        ("weights", plan.weights, f"packed for {plan.isa}"),
        ("session", plan.session, f"{plan.batch} x {plan.length} positions"),
        ("tables", plan.tables, "embedding rows that are looked up in the file"),
        ("process", plan.process, "Python, engine and tokenizer"),
        ("total", plan.total, "largest resident set, while loading or generating"),
    ):
        print(f"{what:8} {size / 2**20:>10,.1f} MiB  {why}")
    if plan.gpu_weights:
        size = plan.gpu_weights + plan.gpu_session
        what = f"{plan.gpu_layers} of {plan.layers} layers and the head"
        print(f"{'GPU':8} {size / 2**20:>10,.1f} MiB  of its own, {what}")
