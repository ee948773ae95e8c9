"""hierarchical: at least one token in every gap of the block, so that tokens written together stand far apart.

dInfer's hierarchical decoding (arXiv:2510.08666): in the current block every masked position that is surer than the
threshold is written, and in each run of neighbouring masked positions the likeliest one where it is surer than
relaxed_threshold; the likeliest of all in any case. Gaps are halved again and again.
"""

from __future__ import annotations

import numpy as np

from .blocks import BlockDecoder
from .decoder import Move, Turn, stated
from .order import sure_or_best, surest


class Hierarchical(BlockDecoder):
    def step(self, turn: Turn) -> Move:
        probability = turn.proposal.probability
        chosen = probability > np.float32(stated(self.settings.threshold))
        low = np.float32(stated(self.settings.relaxed_threshold))
        for gap in np.split(np.arange(len(turn.rows)), np.flatnonzero(np.diff(turn.rows) > 1) + 1):
            likeliest = gap[surest(probability[gap], 1)]
            chosen[likeliest] |= probability[likeliest] > low
        return Move(turn.write(sure_or_best(probability, chosen)))
