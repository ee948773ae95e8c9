"""Counts: how many positions are written, or stay masked, at a step. Integers where that is possible, so that they add
up exactly. Not here: which positions (order.py).
"""

from __future__ import annotations

import math


def share(total: int, parts: int, index: int) -> int:
    """Size of part `index` (from 0) when `total` is split into `parts`, the larger ones first (LLaDA)."""
    return total // parts + (index < total % parts)


def due(total: int, steps: int, written: int) -> int:
    """How many of a block's `total` positions come next when `written` of them are there and it takes `steps` steps.

    The shares of the steps fall and are positive until the block is full, so `written` tells which step this is.
    """
    index = reached = 0
    while reached < written:
        reached += share(total, steps, index)
        index += 1
    return share(total, steps, index)


def left_masked(total: int, step: int, steps: int) -> int:
    """How many of `total` positions may be masked after step `step` (from 1) of `steps`: floor(N * t / T)."""
    return total * (steps - step) // steps


def reveal_probability(step: int, steps: int) -> float:
    """Chance of a masked position to be written after step `step` (from 1): 1 / (steps still to come + 1)."""
    return 1 / (steps - step + 1)


def noise_rate(step: int, steps: int, schedule: str) -> float:
    """Share of the positions that is masked after step `step` (from 1): 1 - u or cos(pi u / 2), u = step / steps."""
    if step >= steps:
        return 0.0
    return math.cos(math.pi / 2 * step / steps) if schedule == "cosine" else 1 - step / steps


def dream_chance(step: int, steps: int, least: float = 1e-3) -> float:
    """Chance of a masked position to be written at step `step` (from 1): 1 - s / t on Dream's times, 1 to `least`."""
    if step >= steps:
        return 1.0
    each = (1 - least) / steps
    return each / (1 - each * (step - 1))
