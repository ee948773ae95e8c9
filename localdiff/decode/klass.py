"""klass: tokens that the model is sure of and whose distribution has come to rest are written together.

KLASS (arXiv:2511.05664): in the current block a masked position is written where its token is more probable than the
threshold and the divergence KL(now || before) of its distribution was below `divergence` at each of the last HISTORY
steps; where none is, the likeliest one is. The divergence is computed over the likeliest tokens (`alternatives`) of
both steps and everything else as one, which is at most the whole divergence and equal to it for small vocabularies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .blocks import BlockDecoder
from .decoder import Move, Turn, stated
from .order import sure_or_best

HISTORY = 2

Seen = dict[int, tuple[dict[int, float], int]]  # position -> its likeliest tokens and for how many steps it is at rest


class Klass(BlockDecoder):
    """Memory: Seen."""

    alternatives = 64

    def step(self, turn: Turn) -> Move:
        before: Seen = turn.memory or {}
        now: Seen = {}
        for position, tokens, probabilities in turn.likeliest:
            likely = dict(zip(tokens.tolist(), probabilities.tolist(), strict=True))
            last, rested = before.get(position, ({}, 0))
            still = bool(last) and divergence(likely, last) < stated(self.settings.divergence)
            now[position] = likely, rested + 1 if still else 0
        at_rest = np.array([now[position][1] >= HISTORY for position in turn.rows.tolist()])
        probability = turn.proposal.probability
        sure = (probability > np.float32(stated(self.settings.threshold))) & at_rest
        return Move(turn.write(sure_or_best(probability, sure)), now)


def divergence(now: dict[int, float], before: dict[int, float]) -> float:
    """KL(now || before) in nats over the tokens in both and the rest as one."""
    both = [token for token in now if token in before]
    p, q = (_with_rest([each[token] for token in both]) for each in (now, before))
    return float(np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30)), 0.0)))


def _with_rest(probabilities: list[float]) -> npt.NDArray[np.float64]:
    return np.array([*probabilities, max(1e-6, 1 - sum(probabilities))])  # below that it is rounding
