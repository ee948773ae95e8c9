"""Timed forward passes: every row of one canvas is computed and scored.

GOPS = 2 * (weights of the blocks * rows + weights of the head * scored rows) / second: the products that a forward
pass cannot do without, whatever else it spends its time on. Its share of the peak is that of the arithmetic which the
weights are run in: int8 for quantised ones, float32 for F16, BF16 and F32. Rounds go over all sizes in turn, each with
its own look at the peak, so that a slow spell of the machine hits everything alike.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

from ..engine import EngineModel, File, Peak, Request, Session, TensorInfo, measure_peak

FLOATS = ("F16", "BF16", "F32")
PARTS = ("linear", "attention", "head", "other")
PEAK_SECONDS = 0.3
BOUNDS = {"f32": "f32_gflops", "int8": "int8_gops"}  # arithmetic -> field of Peak


@dataclass(frozen=True)
class Work:
    """The weights that one row is multiplied with, and the arithmetic that most of them are run in."""

    block_weights: int
    head_weights: int
    arithmetic: str  # "int8" or "f32"

    @staticmethod
    def of(file: File) -> Work:
        matrices = [tensor for tensor in file.tensors if len(tensor.shape) == 2]
        blocks = [tensor for tensor in matrices if tensor.name.startswith("blk.")]
        sizes: Counter[str] = Counter()
        for tensor in blocks:
            sizes["f32" if tensor.type in FLOATS else "int8"] += prod(tensor.shape)
        return Work(sum(sizes.values()), _head(matrices), max(sizes, key=sizes.__getitem__, default="f32"))

    def operations(self, rows: int, scored: int) -> int:
        """Multiplications and additions of a forward pass over `rows` rows that scores `scored` of them."""
        return 2 * (self.block_weights * rows + self.head_weights * scored)


def _head(matrices: Sequence[TensorInfo]) -> int:
    sizes = {tensor.name: prod(tensor.shape) for tensor in matrices}
    return sizes.get("output.weight", sizes.get("token_embd.weight", 0))


def random_tokens(vocab: int, rows: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(1).integers(0, vocab, rows, dtype=np.int32)


def measure_forwards(
    file: File,
    model: EngineModel,
    rows: Sequence[int],
    *,
    threads: int | None = None,
    attention: str = "full",
    math: str = "exact",
    repetitions: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time forward passes of each size in `rows`, `repetitions` rounds after a warm-up.

    returns  {"peak": best of the looks at it, "forwards": one object per size: rows, ms (median), ms_min, ms_max, gops,
             share (of the peak), parts (seconds by part, as a share of the sum)}
    """
    work = Work.of(file)
    session = model.session(slot_length=max(rows), threads=threads, math=math)
    with session:
        progress("warming up")
        _forward(session, model, max(rows), attention)
        samples: dict[int, list[tuple[float, dict[str, float]]]] = {size: [] for size in rows}
        peaks: list[Peak] = []
        for round_ in range(repetitions):
            peaks.append(measure_peak(model.info.isa, threads, PEAK_SECONDS))
            for size in rows:
                progress(f"round {round_ + 1} of {repetitions}, {size} rows")
                samples[size].append(_forward(session, model, size, attention))
    best = {name: max(getattr(peak, name) for peak in peaks) for name in ("int8_gops", "f32_gflops", "memory_gbps")}
    bound = best[BOUNDS[work.arithmetic]]
    return {
        "work": {"block_weights": work.block_weights, "head_weights": work.head_weights, "arithmetic": work.arithmetic},
        "peak": {"threads": peaks[0].threads, **{name: round(value, 1) for name, value in best.items()}},
        "forwards": [_summary(size, work.operations(size, size), samples[size], bound) for size in rows],
    }


def _forward(session: Session, model: EngineModel, rows: int, attention: str) -> tuple[float, dict[str, float]]:
    """Seconds of one forward pass, and seconds by part."""
    request = Request(random_tokens(model.info.vocab, rows), np.arange(rows, dtype=np.int32), attention=attention)
    before = session.timings()
    started = perf_counter()
    session.propose([request])
    seconds = perf_counter() - started
    after = session.timings()
    return seconds, {part: getattr(after, f"seconds_{part}") - getattr(before, f"seconds_{part}") for part in PARTS}


def _summary(
    rows: int, operations: int, samples: Sequence[tuple[float, dict[str, float]]], bound: float
) -> dict[str, Any]:
    seconds = [sample for sample, _ in samples]
    median = statistics.median(seconds)
    spent = {part: sum(parts[part] for _, parts in samples) for part in PARTS}
    total = sum(spent.values()) or 1.0
    gops = operations / median / 1e9
    return {
        "rows": rows,
        "ms": round(median * 1e3, 3),
        "ms_min": round(min(seconds) * 1e3, 3),
        "ms_max": round(max(seconds) * 1e3, 3),
        "gops": round(gops, 1),
        "share": round(gops / bound, 3),
        "parts": {part: round(value / total, 3) for part, value in spent.items()},
    }
