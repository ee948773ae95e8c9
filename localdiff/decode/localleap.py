"""localleap: the neighbourhood of a sure token is trusted sooner.

LocalLeap (arXiv:2510.07081): in the current block masked positions at least as probable as the threshold are written
and are anchors; positions within `radius` of an anchor are written from relaxed_threshold on. Where nothing is sure,
the likeliest one is written.
"""

from __future__ import annotations

import numpy as np

from .blocks import BlockDecoder
from .decoder import Move, Turn, stated
from .order import sure_or_best


class LocalLeap(BlockDecoder):
    def step(self, turn: Turn) -> Move:
        rows, probability = turn.rows, turn.proposal.probability
        anchors = probability >= np.float32(stated(self.settings.threshold))
        near = (np.abs(rows[:, None] - rows[anchors]) <= stated(self.settings.radius)).any(axis=1)
        relaxed = near & (probability >= np.float32(stated(self.settings.relaxed_threshold)))
        return Move(turn.write(sure_or_best(probability, anchors | relaxed)))
