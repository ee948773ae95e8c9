"""p2: path planning - at every step the least sure tokens are masked again, whoever wrote them.

P2 self-planning (arXiv:2502.03540) as Open-dLLM has it: after step i of T all N positions are scored by the probability
of the token just drawn there; the floor(N * (1 - i / T)) lowest are masked, or stay so. Masked positions that are not
among them take the drawn token; other written tokens stay as they are. At the last step none is masked.
"""

from __future__ import annotations

import numpy as np

from .decoder import Move, RewritingDecoder, Turn, stated
from .order import surest
from .schedule import left_masked


class P2(RewritingDecoder):
    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        steps = stated(self.settings.steps)
        low = np.zeros(len(turn.rows), bool)
        low[surest(-turn.proposal.probability, left_masked(len(low), turn.step, steps))] = True
        return Move(turn.rewrite(turn.masked & ~low, low & ~turn.masked), done=turn.step >= steps)
