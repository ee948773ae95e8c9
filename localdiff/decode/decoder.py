"""What every decoder is: a pure object made of settings and a seed.

It keeps nothing between steps: the canvas and the number of the step say all, so that any step can be replayed. Random
numbers are counter-based, keyed by seed, step and position: they depend neither on the other canvases of a batch nor on
which positions are still masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..canvas import Canvas, Commits, Int32

if TYPE_CHECKING:
    from ..engine import Proposal


class Decoder(Protocol):
    """scores_from: "raw" or "sampled", the distribution that confidences are taken from (engine.Request)."""

    scores_from: str

    def check(self, canvas: Canvas) -> None:
        """Raise OptionError where the settings do not fit the canvas."""

    def plan(self, canvas: Canvas) -> Int32:
        """The positions to score in the next forward pass, ascending; at least one while a position is masked."""
        ...

    def step(self, canvas: Canvas, rows: Int32, proposal: Proposal, step: int) -> Commits:
        """What to write after forward pass number `step` (from 1), which scored `rows`."""
        ...


def uniform(seed: int, step: int, positions: Int32) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per position."""
    if not len(positions):
        return np.empty(0)
    key = np.array([seed, step], np.uint64)
    drawn: npt.NDArray[np.float64] = np.random.Generator(np.random.Philox(key=key)).random(int(positions[-1]) + 1)
    return drawn[positions]


def pick(rows: Int32, proposal: Proposal, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Commits:
    """Commit the proposed tokens of the chosen rows (a mask, or ascending places, over `rows`)."""
    return Commits(rows[chosen], proposal.token[chosen])
