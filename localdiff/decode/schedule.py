"""Counts: how many positions are written, or stay masked, at a step. Integers only, so that they add up exactly."""

from __future__ import annotations


def share(total: int, parts: int, index: int) -> int:
    """Size of part `index` (from 0) when `total` is split into `parts`, the larger ones first (LLaDA)."""
    return total // parts + (index < total % parts)


def left_masked(total: int, step: int, steps: int) -> int:
    """How many of `total` positions may be masked after step `step` (from 1) of `steps`: floor(N * t / T)."""
    return total * (steps - step) // steps


def reveal_probability(step: int, steps: int) -> float:
    """Chance of a masked position to be written after step `step` (from 1): 1 / (steps still to come + 1)."""
    return 1 / (steps - step + 1)
