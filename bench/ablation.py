#!/usr/bin/env python3
"""What shift, annealing and autoregressive weights are worth at equal budget: table 3 of arXiv:2410.17891, made small.

    bench/ablation.py BASE --data TEXT... --held-out TEXT... [--tokenizer FILE] [--steps 2000] [--length 128]
                      [--batch 16] [--work DIR] [--name NAME] [--arms PART...]

Every arm takes the same steps on the same sequences with the same settings and ends with one figure: nats per held-out
token, a bound for the diffusion arms, exact for the autoregressive ones. All arms score tokens 1 .. L-1 given token 0.
An arm that was interrupted is continued, one that is done is not done again. Writes bench/results/NAME.json, .md and
.png; the table also goes to stdout. Not here: speed, the quality of generated text.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MASK = "<mask>"
ANNEALED_SHARE = 4  # attention opens over the first 1 / 4 of the steps


@dataclass(frozen=True)
class Arm:
    name: str
    scratch: bool
    settings: dict[str, Any]  # "annealed" stands for that share of the steps


FULL = {"method": "diffugpt", "shift": "on", "anneal_steps": "annealed"}
ARMS = (
    Arm("AR weights: full", False, FULL),
    Arm("AR weights: no annealing", False, FULL | {"anneal_steps": 1}),
    Arm("AR weights: no shift", False, FULL | {"shift": "off"}),
    Arm("AR weights: no shift, no annealing", False, FULL | {"shift": "off", "anneal_steps": 1}),
    Arm("scratch: full", True, FULL),
    Arm("scratch: no annealing", True, FULL | {"anneal_steps": 1}),
    Arm("scratch: no shift, no annealing", True, FULL | {"shift": "off", "anneal_steps": 1}),
    Arm("AR weights: autoregressive", False, {"method": "ar"}),
    Arm("scratch: autoregressive", True, {"method": "ar"}),
)


def prepare(base: str, tokenizer: str | None, work: Path, length: int) -> dict[str, float]:
    """Write the base as an HF folder, and its shape for the arms from scratch."""
    from localdiff.adapt.base import load_base

    folder = work / "base"
    held = load_base(Path(base), tokenizer)
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        held.save(folder)
    fields = json.loads((folder / "config.json").read_text())
    for name in ("model_type", "transformers_version", "dtype", "vocab_size", "_name_or_path", "pad_token_id"):
        fields.pop(name, None)
    (work / "shape.json").write_text(json.dumps(fields))
    if length > held.context:
        raise SystemExit(f"--length is {length}, but {base} has a context of {held.context} tokens")
    return {"parameters": sum(parameter.numel() for parameter in held.model.parameters())}


def train(arm: Arm, given: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """The lines of the arm's log."""
    from localdiff.adapt import AdaptOptions, adapt
    from localdiff.adapt.progress import LOG_FILE, TerminalProgress

    folder = work / arm.name.replace(":", "").replace(",", "").replace(" ", "-")
    settings = dict(arm.settings)
    if settings.get("anneal_steps") == "annealed":
        settings["anneal_steps"] = max(1, given.steps // ANNEALED_SHARE)
    if settings["method"] != "ar":
        settings["mask_token"] = MASK
    start: dict[str, Any] = {"base": str(work / "base")}
    if arm.scratch:
        start = {"shape": str(work / "shape.json"), "tokenizer": str(work / "base" / "tokenizer.json")}
    options = AdaptOptions(
        **start, **settings, output=str(folder), data=tuple(given.data), eval_data=tuple(given.held_out),
        eval_every=max(1, given.steps // 8), eval_sequences=given.eval_sequences, length=given.length,
        batch=given.batch, steps=given.steps, lr=given.lr, warmup=max(1, given.steps // 20), beta2=0.98,
        save_every=max(1, given.steps // 8), keep=1, dtype="f32", seed=1, threads=given.threads,
    )  # fmt: skip
    if not (folder / "config.json").exists():
        print(f"-- {arm.name}", file=sys.stderr)
        adapt(dataclasses.replace(options, resume=any(folder.glob("checkpoints/step-*"))), TerminalProgress())
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| arm | held-out nats/token | standard error | training loss, last tenth |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['arm']} | {row['held_out']:.3f} | {row['standard_error']:.3f} | {row['plain_loss']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for row in rows:
        style = "--" if row["arm"].startswith("scratch") else "-"
        axes.plot(*zip(*row["curve"], strict=True), style, marker=".", label=row["arm"])
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("held-out nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--eval-sequences", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--arms", nargs="+", help="only the arms whose names hold one of these texts")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", default=f"{datetime.date.today()}-ablation")
    given = parser.parse_args()

    facts = prepare(given.base, given.tokenizer, given.work, given.length)
    rows = []
    for arm in ARMS:
        if given.arms and not any(part in arm.name for part in given.arms):
            continue
        lines = train(arm, given, given.work)
        held = [line for line in lines if "held_out" in line]
        losses = [line["plain_loss"] for line in lines if "plain_loss" in line]
        last = losses[-max(1, len(losses) // 10) :]
        rows.append(
            {
                "arm": arm.name,
                "held_out": held[-1]["held_out"],
                "standard_error": held[-1]["standard_error"],
                "plain_loss": sum(last) / len(last),
                "curve": [(line["step"], line["held_out"]) for line in held],
            }
        )
    settings = {name: getattr(given, name) for name in ("steps", "length", "batch", "lr", "eval_sequences")}
    settings["base"] = Path(given.base).name
    settings |= {name: [Path(path).name for path in getattr(given, name)] for name in ("data", "held_out")}
    stem = given.results / given.name
    stem.with_suffix(".json").write_text(json.dumps({"settings": settings, **facts, "arms": rows}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(rows))
    draw(rows, stem.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
