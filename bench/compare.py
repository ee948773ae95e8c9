#!/usr/bin/env python3
"""localdiff beside its peers: llama.cpp on the same GGUF file, torch on the same shapes. How to read it: README.md.

    bench/compare.py MODEL.gguf ... [--rows 64,256] [--pairs 5] [--llama-python PYTHON] [--no-torch] [--out FOLDER]

Every engine is a child process (peer_*.py) that stays loaded. They take turns, A B C, then C B A, and so on: a ratio is
taken within one round and its spread is over the rounds, so a slow spell of the machine hits all alike. Written to the
folder: one JSON file, a plot and a table in Markdown; the JSON is printed last. On a machine that is busy with other
things, `--clock cpu` compares processor time on one thread instead of wall time. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report import CACHE, CACHED, LLAMA, WRITES, markdown, plot

ROOT = Path(__file__).resolve().parent.parent
HALF = 128  # of the denoise step: this many rows of prompt and of answer, less where the context is shorter
CHECK_ROWS = 16
TORCH_KINDS = ("f32", "bf16", "int8")
# freed blocks are kept, so that result arrays are not paid for with page faults at every call; llama.cpp keeps its own
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "PYTHONPATH": str(ROOT)}


class Child:
    """A peer process; a request is one JSON line, and so is the answer."""

    def __init__(self, clock: str, python: str, script: str, *arguments: str) -> None:
        self._clock = clock
        self.wall = self.cpu = 0.0  # seconds of all turns so far
        self._process = subprocess.Popen(
            [python, str(ROOT / "bench" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self._what = f"{script} {arguments[-1]}"
        self.info = self._answer()

    def do(self, what: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps({"do": what, **fields}), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise SystemExit(f"{self._what}: {what}: {answer['error']}")
        return answer

    def seconds(self, what: str, **fields: Any) -> float:
        taken = self.do(what, **fields)
        self.wall += sum(taken["wall"])
        self.cpu += sum(taken["cpu"])
        return statistics.median(taken[self._clock])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._what} ended with {self._process.wait()}; its own message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


Turn = Callable[[], float]  # gives seconds


def turns(children: dict[str, Child], what: str, **fields: Any) -> dict[str, Turn]:
    """The same of every child."""
    return {name: partial(child.seconds, what, **fields) for name, child in children.items()}


def alternate(turns: dict[str, Turn], pairs: int) -> dict[str, list[float]]:
    """Seconds by round; every second round goes the other way. The first turn of each warms up."""
    for turn in turns.values():
        turn()
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(pairs):
        for name in list(turns)[:: -1 if round_ % 2 else 1]:
            taken[name].append(turns[name]())
    return taken


def figures(taken: dict[str, list[float]], operations: float | None, base: str = "localdiff") -> dict[str, Any]:
    """Median milliseconds, spread, GOPS, and how many times as long as the base (median, min and max of rounds)."""
    result = {}
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        one: dict[str, Any] = {
            "ms": round(median * 1e3, 3),
            "ms_min": round(min(seconds) * 1e3, 3),
            "ms_max": round(max(seconds) * 1e3, 3),
        }
        if operations:
            one["gops"] = round(operations / median / 1e9, 1)
        if name != base:
            ratios = [theirs / ours for theirs, ours in zip(seconds, taken[base], strict=True)]
            one["ratio"] = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
        result[name] = one
    return result


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- one model ----


def compare_model(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    threads, largest = str(options.threads), max(*options.rows, 2 * HALF)
    progress(f"{path.name}: loading")
    own = {"localdiff": options.math, "localdiff exact": "exact"}
    children = {
        name: Child(
            options.clock, sys.executable, "peer_localdiff.py", str(path), threads, str(largest), math, *options.isa
        )
        for name, math in own.items()
        if name == "localdiff" or math != options.math
    }
    ours = children["localdiff"]
    if ours.info["arithmetic"] == "f32" and "localdiff exact" in children:  # both are the same
        children.pop("localdiff exact").close()
    if options.llama_python:
        for name, how in (("llama.cpp", "repack"), ("llama.cpp plain", "plain")):
            children[name] = Child(
                options.clock, options.llama_python, "peer_llama.py", str(path), threads, str(largest), how
            )
    try:
        result = measure(path, ours, children, options)
    finally:
        for child in children.values():
            child.close()
    return result


def measure(path: Path, ours: Child, children: dict[str, Child], options: argparse.Namespace) -> dict[str, Any]:
    facts = ours.info
    result: dict[str, Any] = {
        "model": path.stem,
        "bytes": path.stat().st_size,
        "block_weights": facts["block_weights"],
        "head_weights": facts["head_weights"],
        "arithmetic": facts["arithmetic"],
        "card": facts["card"],
        "peers": {name: child.info for name, child in children.items() if name in LLAMA},
        "difference": difference(children),
        "forwards": [],
    }
    weights = facts["block_weights"] + facts["head_weights"]
    peaks = []
    for rows in options.rows:
        progress(f"{path.name}: {rows} rows, {options.pairs} rounds of {', '.join(children)}")
        peaks.append(ours.do("peak"))
        wall, cpu = ours.wall, ours.cpu
        found = figures(alternate(turns(children, "forward", rows=rows), options.pairs), 2.0 * weights * rows)
        parts = ours.do("forward", rows=rows)["parts"]
        total = sum(parts.values()) or 1.0
        found["localdiff"]["parts"] = {name: round(seconds / total, 3) for name, seconds in parts.items()}
        got = (ours.cpu - cpu) / (ours.wall - wall) / facts["card"]["threads"]
        result["forwards"].append({"rows": rows, "processor_share": round(got, 3), **found})
    half = min(HALF, facts["context"] // 2)
    progress(f"{path.name}: a denoise step of {half} + {half} rows")
    taken = alternate(turns(children, "step", prompt=half, answer=half), options.pairs)
    result["step"] = {"prompt": half, "answer": half, **figures(taken, None)}
    if options.answer:
        progress(f"{path.name}: {half} tokens after {half} of prompt in {options.answer} steps")
        taken = alternate(answers(children, half, options.answer), options.pairs)
        result["answer"] = {"prompt": half, "answer": half, "steps": options.answer, **figures(taken, None)}
        for name, found in figures(taken, None, CACHED).items():
            if name != CACHED:
                result["answer"][name]["ratio_cached"] = found["ratio"]
    peaks.append(ours.do("peak"))
    result["peak"] = {name: round(max(peak[name] for peak in peaks), 1) for name in peaks[0]}
    return result


def answers(children: dict[str, Child], half: int, steps: int) -> dict[str, Turn]:
    """Whole answers: without a cache and with CACHE here; the diffusion loop and writing token by token there."""
    ours = children["localdiff"]
    peers = {name: child for name, child in children.items() if name in LLAMA}
    canvas = {"prompt": half, "answer": half}
    return {
        "localdiff": partial(ours.seconds, "answer", **canvas, steps=steps, cache="exact"),
        CACHED: partial(ours.seconds, "answer", **canvas, steps=steps, cache=CACHE),
        **turns(peers, "answer", **canvas, steps=steps),
        **{f"{name}{WRITES}": turn for name, turn in turns(peers, "write", **canvas).items()},
    }


def difference(children: dict[str, Child]) -> dict[str, float]:
    """How far logits lie from localdiff's, root mean square over root mean square: whether both do the same work."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        logits = {}
        for name, child in children.items():
            to = f"{folder}/logits.npy"
            child.do("logits", rows=CHECK_ROWS, to=to)
            logits[name] = np.load(to).astype(np.float64)
        ours = logits.pop("localdiff")
        for name, theirs in logits.items():
            found[name] = round(float(np.sqrt(((theirs - ours) ** 2).mean() / (ours**2).mean())), 5)
    return found


def compare_torch(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The products of the model's shapes in torch, beside localdiff's whole forward pass; only GOPS can be compared."""
    shapes, layers, weights = torch_shapes(path)
    threads, largest = str(options.threads), str(max(options.rows))
    results = []
    for kind in TORCH_KINDS:
        progress(f"{path.name}: torch {kind}")
        arguments = (kind, threads, json.dumps(shapes), str(layers))
        children = {
            name: Child(options.clock, sys.executable, *command)
            for name, command in (
                ("localdiff", ("peer_localdiff.py", str(path), threads, largest, options.math, *options.isa)),
                (f"torch {kind}", ("peer_torch.py", *arguments)),
            )
        }
        try:
            for rows in options.rows:
                taken = alternate(turns(children, "forward", rows=rows), options.pairs)
                results.append({"rows": rows, "kind": kind, **figures(taken, 2.0 * weights * rows)})
        finally:
            for child in children.values():
                child.close()
    return results


def torch_shapes(path: Path) -> tuple[dict[str, Any], int, int]:
    """Shapes of one layer and of the head, the number of layers, all weights."""
    from localdiff.engine import File

    with File.open(path) as file:
        matrices = {tensor.name: list(tensor.shape) for tensor in file.tensors if len(tensor.shape) == 2}
    layer = [shape for name, shape in matrices.items() if name.startswith("blk.0.")]
    layers = sum(name.startswith("blk.") for name in matrices) // len(layer)
    head = matrices.get("output.weight", matrices["token_embd.weight"])
    return {"layer": layer, "head": head}, layers, layers * sum(n * k for n, k in layer) + head[0] * head[1]


# ---- the command ----


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/compare.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--rows", default="64,256", help="sizes of the forward passes (default 64,256)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds over all engines (default 5)")
    parser.add_argument(
        "--answer", type=int, default=0, metavar="STEPS", help="time whole answers of so many steps too"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--isa", default="", help="kernel row of localdiff (default: the best)")
    parser.add_argument("--math", choices=("fast", "exact"), default="fast", help="of localdiff; fast: exact beside it")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu needs --threads 1")
    parser.add_argument("--llama-python", default=sys.executable, help="has llama-cpp-python (default: this Python)")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", help="of the files written (default DATE-CPU)")
    options = parser.parse_args(arguments)
    options.rows = [int(word) for word in options.rows.split(",")]
    if options.clock == "cpu" and options.threads != 1:
        parser.error(f"--clock cpu compares one thread, but --threads is {options.threads}; give --threads 1")
    options.isa = [options.isa] if options.isa else []
    if options.no_llama:
        options.llama_python = None
    elif subprocess.run([options.llama_python, "-c", "import llama_cpp"], capture_output=True).returncode:
        parser.error(f"{options.llama_python} has no llama-cpp-python; give --llama-python PYTHON or --no-llama")
    return options


def write(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Write what is known so far; returns the table."""
    cpu = re.sub(r"[^a-z0-9]+", "-", result["models"][0]["card"]["cpu"].lower()).strip("-")
    name = options.name or f"{result['date']}-{cpu}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    (options.out / f"{name}.md").write_text(table)
    plot(result, options.out / f"{name}.png")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    options = parse(arguments)
    models: list[dict[str, Any]] = []
    date = datetime.date.today().isoformat()
    result = {
        "bench": "compare",
        "date": date,
        "math": options.math,
        "pairs": options.pairs,
        "clock": options.clock,
        "models": models,
    }
    table = ""
    for path in options.models:
        models.append(compare_model(path, options))
        if not options.no_torch:
            models[-1]["torch"] = compare_torch(path, options)
        table = write(result, options)
    print(table)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
