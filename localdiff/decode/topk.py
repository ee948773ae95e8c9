"""topk: the tokens that the model is surest of are written first, anywhere in the canvas.

Sampler B of DiffuGPT/DiffuLLaMA (arXiv:2410.17891): before the forward pass at t at most floor(N * t / T) of the N
positions are masked. Written positions are scored again and compete in the ranking with their fresh score, so that a
few more than N / T masked ones can be written; they keep their token. Positions that tie with the cut are all written.
"""

from __future__ import annotations

from typing import Any

from ..canvas import Canvas
from .decoder import Decoder, Look, Move, Turn, stated
from .order import below_rank
from .schedule import left_masked


class TopK(Decoder):
    scores_from = "sampled"

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        return Look(canvas.maskable)

    def step(self, turn: Turn) -> Move:
        # Given positions rank above everything in the source; the cut is one of the rows, so they can be left out.
        # Probabilities rank as their logarithms do.
        low = below_rank(turn.proposal.probability, left_masked(len(turn.rows), turn.step, stated(self.settings.steps)))
        return Move(turn.write(turn.masked & ~low))
