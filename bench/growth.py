#!/usr/bin/env python3
"""How the time of a forward pass grows: with rows, with the length attended to, with layers and with width.

    bench/growth.py [--type Q4_0] [--threads N] [--clock wall|cpu] [--quick] [--out FOLDER] [--name NAME]

Small random models are made on the fly. Every point is the fastest of its repetitions, as noise only adds; the points
of a series are visited in turn. A slope is that of the logarithms: 1 = twice as much takes twice as long. Writes JSON
and a plot, prints the slopes and, last, the JSON. Not here: other engines (compare.py), real shapes (localdiff bench).
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer import timed, tokens
from random_model import FILE_TYPES, Shape, write_random_model

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
EXPECTED = {
    "rows": "1: every row costs the same products; less where few rows leave the arithmetic waiting for weights, more "
    "where attention, whose cost is rows x length, begins to count",
    "length": "near 0 at first, where the products of the fixed rows are nearly all, towards 1 as attention takes over",
    "layers": "1: layers are alike; less by the share of the head, which is there once",
    "width": "2: the matrices grow with the square; less where attention and norms count, which grow with width alone",
}


def rows_series(quick: bool) -> tuple[list[int], Callable[[int], tuple[Shape, int, int]]]:
    points = [8, 32] if quick else [8, 16, 32, 64, 128, 256, 512, 1024]
    return points, lambda rows: (Shape(2 if quick else 6, 64 if quick else 1024), rows, rows)


def length_series(quick: bool) -> tuple[list[int], Callable[[int], tuple[Shape, int, int]]]:
    points = [64, 128] if quick else [64, 256, 512, 1024, 2048, 4096]
    return points, lambda length: (Shape(2 if quick else 6, 64 if quick else 1024, context=max(points)), 64, length)


def layers_series(quick: bool) -> tuple[list[int], Callable[[int], tuple[Shape, int, int]]]:
    points = [1, 2] if quick else [1, 2, 4, 8, 16]
    return points, lambda layers: (Shape(layers, 64 if quick else 768), 32 if quick else 128, 32 if quick else 128)


def width_series(quick: bool) -> tuple[list[int], Callable[[int], tuple[Shape, int, int]]]:
    points = [64, 128] if quick else [256, 512, 768, 1024, 1536, 2048]
    return points, lambda dim: (Shape(4, dim), 32 if quick else 128, 32 if quick else 128)


SERIES = {"rows": rows_series, "length": length_series, "layers": layers_series, "width": width_series}


class Point:
    """One model, and a forward pass that computes `rows` rows of a canvas of `length` and scores them."""

    def __init__(self, path: Path, shape: Shape, rows: int, length: int, threads: int | None) -> None:
        from localdiff.engine import EngineModel, File, Request

        if not path.exists():
            write_random_model(path, shape, path.suffixes[-2].removeprefix("."))
        self._model = EngineModel(File.open(path), threads=threads)
        self._session = self._model.session(slot_length=length, threads=threads)
        ids = np.array(tokens(shape.vocab, length), np.int32)
        last = np.arange(length - rows, length, dtype=np.int32)
        self._session.propose([Request(ids, last)])  # every position is known from now on
        self._request = Request(ids, last, compute=None if rows == length else last)
        self.threads = self._session.timings().threads

    def seconds(self, clock: str) -> float:
        taken: list[float] = timed(lambda: self._session.propose([self._request]))[clock]
        return min(taken)


def measure_series(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    values, make = SERIES[name](options.quick)
    points = []
    for value in values:
        shape, rows, length = make(value)
        path = folder / f"{shape.layers}-{shape.dim}-{shape.context}.{options.type}.gguf"
        points.append(Point(path, shape, rows, length, options.threads))
    best = [float("inf")] * len(points)
    for round_ in range(1 if options.quick else ROUNDS):
        for i, point in enumerate(points):
            print(f"{name} {values[i]}, round {round_ + 1}", file=sys.stderr, flush=True)
            best[i] = min(best[i], point.seconds(options.clock))
    slopes = np.diff(np.log(best)) / np.diff(np.log(values))
    return {
        "values": values,
        "ms": [round(seconds * 1e3, 3) for seconds in best],
        "slopes": [round(float(slope), 3) for slope in slopes],
        "slope": round(float(np.polyfit(np.log(values), np.log(best), 1)[0]), 3),
        "expected": EXPECTED[name],
        "threads": points[0].threads,
    }


def plot(result: dict[str, Any], to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(result["series"]), figsize=(14, 3.4))
    for panel, (name, series) in zip(axes, result["series"].items(), strict=True):
        panel.loglog(series["values"], series["ms"], "o-")
        panel.set(title=f"{name}: slope {series['slope']:.2f}", xlabel=name, ylabel="ms per forward")
        panel.set_xticks(series["values"], [str(value) for value in series["values"]], fontsize=7)
        panel.set_yticks(series["ms"], [f"{ms:.3g}" for ms in series["ms"]], fontsize=7)
        panel.minorticks_off()
    card = result["machine"]
    figure.suptitle(f"{result['type']}, {card['cpu']}, {card['threads']} threads, {card['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(to, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    from localdiff.bench.card import machine_card
    from localdiff.engine import isa_rows

    parser = argparse.ArgumentParser(prog="bench/growth.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--type", choices=tuple(FILE_TYPES), default="Q4_0")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu needs --threads 1")
    parser.add_argument("--quick", action="store_true", help="two tiny points per series, to try the program")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", help="of the files written (default DATE-growth)")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu is the time of one thread; give --threads 1")
    with tempfile.TemporaryDirectory() as folder:
        series = {name: measure_series(name, options, Path(folder)) for name in SERIES}
    isa = next(name for name, supported in isa_rows() if supported)
    card = machine_card(isa, series["rows"]["threads"])
    result = {"bench": "growth", "type": options.type, "clock": options.clock, "machine": card, "series": series}
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or f"{datetime.date.today().isoformat()}-growth"
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, options.out / f"{name}.png")
    for what, found in series.items():
        print(f"{what:7} slope {found['slope']:.2f}, step by step {found['slopes']}; expected {found['expected']}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
