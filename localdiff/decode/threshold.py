"""threshold and factor: block after block, every token that the model is sure enough of, and always the surest one.

Fast-dLLM's parallel decoding (arXiv:2505.22618): in the current block each masked position whose proposed token has at
least the threshold's probability is written; where none has, the likeliest one, so that every step makes progress.
With factor f the bound depends on how many are written at once: the n surest are where (n + 1)(1 - p_n) < f.
Its caches are in cache/around.py.
"""

from __future__ import annotations

import numpy as np

from .blocks import BlockDecoder
from .decoder import Move, Turn, stated
from .order import by_factor, sure_or_best


class Threshold(BlockDecoder):
    def step(self, turn: Turn) -> Move:
        probability = turn.proposal.probability
        sure = probability >= np.float32(stated(self.settings.threshold))
        return Move(turn.write(sure_or_best(probability, sure)))


class Factor(BlockDecoder):
    def step(self, turn: Turn) -> Move:
        return Move(turn.write(by_factor(turn.proposal.probability, stated(self.settings.factor))))
