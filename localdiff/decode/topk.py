"""topk: the tokens that the model is surest of are written first, anywhere in the canvas.

Sampler B of DiffuGPT/DiffuLLaMA (arXiv:2410.17891): before the forward pass at t at most floor(N * t / T) of the N
positions are masked. Written positions are scored again and compete in the ranking with their fresh score, so that a
few more than N / T masked ones can be written; they keep their token. Positions that tie with the cut are all written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..canvas import MASKED, Canvas, Commits, Int32
from .decoder import pick
from .schedule import left_masked
from .table import Settings

if TYPE_CHECKING:
    from ..engine import Proposal


class TopK:
    scores_from = "sampled"

    def __init__(self, settings: Settings, seed: int) -> None:
        assert settings.steps is not None
        self._steps = settings.steps

    def check(self, canvas: Canvas) -> None:
        """Any number of steps fits any canvas."""

    def plan(self, canvas: Canvas) -> Int32:
        return canvas.maskable

    def step(self, canvas: Canvas, rows: Int32, proposal: Proposal, step: int) -> Commits:
        # Given positions rank above everything in the source; the cut is one of the `rows`, so they can be left out.
        # Probabilities rank as their logarithms do.
        cut = np.sort(proposal.probability)[left_masked(len(rows), step, self._steps)]
        return pick(rows, proposal, (canvas.state[rows] == MASKED) & ~(proposal.probability < cut))
