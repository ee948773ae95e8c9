"""wedlm: for causal models that read what is known first and the masks last, so that every mask sees all of it.

WeDLM's sampler (arXiv:2512.22737): of the first block_length masks those are written whose entropy plus
distance_penalty times the distance from the first of them is below entropy_bound; where none is, the one of lowest
value. Positions keep their numbers in the model while their order changes (Look.order). A mask's own row predicts it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import MASKED, Canvas
from .decoder import Decoder, Look, Move, Turn, stated
from .order import sure_or_best


class WeDlm(Decoder):
    scores_from = "sampled"

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        masked = canvas.masked
        known = np.flatnonzero(canvas.state != MASKED).astype(np.int32)
        return Look(masked[: stated(self.settings.block_length)], order=np.concatenate([known, masked]))

    def step(self, turn: Turn) -> Move:
        distance = (turn.rows - turn.rows[0]).astype(np.float64)
        doubt = turn.proposal.entropy + stated(self.settings.distance_penalty) * distance
        return Move(turn.write(sure_or_best(-doubt, doubt < stated(self.settings.entropy_bound)), -doubt))
