"""What is masked when a likelihood is estimated, and what each draw counts. Pure numpy; the model is not here.

The bound of an absorbing diffusion model (arXiv:2410.17891, eq. 7; 2406.07524), t uniform in (0, 1], is
    -log p(x) <= E_t [ (1/t) * sum of -log p(x_n | x_t) over the masked n ],   each token masked with probability t.
Near t = 0 its integrand has no finite variance. Integrating t out leaves a number k of masked tokens, uniform in
1 .. N, with weight N / k, which is 1/t at t = k/N (arXiv:2502.09992, eq. 6): the same expectation, a finite variance.
The draws of one text are stratified in k. "published" is the score of multiple choice in arXiv:2410.17891: rates
T/T, ..., 1/T, the unweighted mean over the masked tokens, 0 where none is masked: it orders candidates, no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..canvas import Int32
from .tasks import BOUND, PUBLISHED

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """hidden: int32 [k] masked positions, ascending, may be empty; weight: of the sum of their -log p."""

    hidden: Int32
    weight: float


@dataclass(frozen=True)
class Estimate:
    """Of the scored tokens of one text, in nats: -log p or its estimate, and the standard error of the draws.

    error is 0 where the value is exact, NaN for a single draw; it leaves the stratification out, so it is too large.
    """

    nats: float
    tokens: int
    error: float = 0.0


def counted(first: int, end: int, draws: int, random: np.random.Generator) -> list[Draw]:
    """The bound over positions first .. end - 1: k uniform, stratified over the draws."""
    total = end - first
    places = (np.arange(draws) + random.random(draws)) / draws
    counts = np.minimum((places * total).astype(np.int64), total - 1) + 1
    return [Draw(_some(first, total, int(count), random), total / int(count)) for count in counts]


def at_rates(first: int, end: int, draws: int, random: np.random.Generator) -> list[Draw]:
    """The published score: draw i masks each position with probability (draws - i) / draws; weight: a mean times N."""
    total = end - first
    found = []
    for step in range(draws, 0, -1):
        hit = np.flatnonzero(random.random(total) < step / draws)
        found.append(Draw((first + hit).astype(np.int32), total / max(1, len(hit))))
    return found


ESTIMATORS: dict[str, Callable[[int, int, int, np.random.Generator], list[Draw]]] = {
    BOUND: counted,
    PUBLISHED: at_rates,
}


def generator(seed: int, key: int, part: int = 0) -> np.random.Generator:
    """The random numbers of one text, whatever is evaluated beside it; part: of the text, where it has several."""
    counter = np.array([0, 0, 0, part], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64), counter=counter))


def combine(draws: Sequence[Draw], nats: Sequence[Float64], tokens: int) -> Estimate:
    """The estimate from -log p of the hidden tokens of each draw, [k] each."""
    values = np.array([draw.weight * each.sum() for draw, each in zip(draws, nats, strict=True)])
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), tokens, error)


def add(parts: Sequence[Estimate]) -> Estimate:
    """The estimate of a text from those of its parts, which are independent."""
    error = float(np.sqrt(sum(part.error**2 for part in parts)))
    return Estimate(sum(part.nats for part in parts), sum(part.tokens for part in parts), error)


def blocks(first: int, end: int, block_length: int) -> list[tuple[int, int]]:
    """Positions first .. end - 1 cut at the multiples of block_length, as (start, end)."""
    cuts = [first, *range((first // block_length + 1) * block_length, end, block_length), end]
    return list(pairwise(cuts)) if end > first else []


def _some(first: int, total: int, count: int, random: np.random.Generator) -> Int32:
    return (first + np.sort(random.permutation(total)[:count])).astype(np.int32)
