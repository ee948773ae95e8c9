"""Ordering rules: which of some scored positions come first. Every decoder that ranks or tests takes its rule here.

Scores are arrays over the rows of a turn, higher = surer. Rules give places (ascending) or a mask over them; of equal
scores the leftmost counts as surer. Not here: how many positions a step writes (schedule.py), blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..canvas import Int32
from .decoder import Bools, Floats, Places, uniform

if TYPE_CHECKING:
    from ..engine import Proposal


def confidence(proposal: Proposal, order: str) -> Floats:
    """How sure the model is of each row: probability of the token, top1 - top2 margin, or negative entropy."""
    if order == "margin":
        return proposal.margin
    if order == "entropy":
        return -proposal.entropy
    return proposal.probability


def surest(scores: Floats, count: int) -> Places:
    """The places of the `count` highest scores."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def sure_or_best(scores: Floats, sure: Bools, count: int = 1) -> Bools:
    """The sure ones where they are at least `count`; else the `count` best, so that every step makes progress."""
    if np.count_nonzero(sure) >= count:
        return sure
    chosen = np.zeros(len(scores), bool)
    chosen[surest(scores, count)] = True
    return chosen


NEAR, SAME = 0.7, 0.7  # chosen on the embedded model, at temperature 0 and its own (bench/LOG.md)


def apart(scores: Floats, rows: Int32, tokens: Int32, count: int) -> Bools:
    """The `count` rows that are sure, far from one another and not all of the same token; own.

    Tokens of one step do not know of each other, which costs most where they are neighbours ("the the") or equal. So
    they are picked one by one: the highest score comes next, then the scores of the others fall by the factor
    1 - NEAR ** distance, and where the token is the same by SAME.

    scores   0 to 1
    """
    scores, chosen = scores.astype(np.float64), np.zeros(len(scores), bool)
    for _ in range(min(count, len(scores))):
        best = int(np.argmax(np.where(chosen, -1.0, scores)))
        chosen[best] = True
        scores *= (1 - NEAR ** np.abs(rows - rows[best])) * np.where(tokens == tokens[best], SAME, 1)
    return chosen


def below_rank(scores: Floats, rank: int) -> Bools:
    """Which scores are strictly less than the one of the given rank (from 0, ascending): ties are not below."""
    below: Bools = scores < np.sort(scores)[rank]
    return below


def bounded(ranking: Floats, entropy: Floats, bound: float, whole: bool = False) -> Places:
    """The longest run of the surest positions whose entropies stay within `bound`, in nats; at least one.

    What must not exceed it is the sum of their entropies minus the largest, which bounds the mutual information that
    writing them at once throws away (EB-Sampler, arXiv:2505.24857); or, with `whole`, the sum itself, which must be
    less.
    """
    ranked = np.argsort(-ranking, kind="stable")
    values = entropy[ranked].astype(np.float64)
    total = np.cumsum(values)
    within = total < bound if whole else total - np.maximum.accumulate(values) <= bound
    return np.sort(ranked[: max(1, _leading(within))])


def by_factor(scores: Floats, factor: float) -> Places:
    """The largest n surest positions with (n + 1) * (1 - the n-th score) < factor; at least one.

    Fast-dLLM's factor rule (arXiv:2505.22618, theorem 1).
    """
    ranked = np.argsort(-scores, kind="stable")
    count = np.arange(1, len(scores) + 1)
    within = (count + 1) * (1 - scores[ranked].astype(np.float64)) < factor
    return np.sort(ranked[: max(1, _leading(within))])


def gumbel(seed: int, step: int, positions: Int32) -> Floats:
    """Standard Gumbel noise, one number per position. Adding it to log-weights and taking the n highest draws n
    positions without replacement."""
    drawn = uniform(seed, step, positions)
    noise: Floats = -np.log(-np.log(np.maximum(drawn, np.finfo(np.float64).tiny)))
    return noise


def log_probability(probability: Floats) -> Floats:
    """Natural logarithm in float64; a probability of zero counts as 1e-30."""
    return np.log(np.maximum(probability.astype(np.float64), 1e-30))


def _leading(flags: Bools) -> int:
    """How many flags are set before the first that is not."""
    return len(flags) if flags.all() else int(np.argmin(flags))
