"""spread: so many tokens a step, the surest first, but far from one another and not all the same.

Own. A block of M positions takes round(M / pace) steps, shared out as llada does. The positions of a step are picked by
order.apart, by the probability of their tokens; whatever is surer than the threshold is written besides.
"""

from __future__ import annotations

import numpy as np

from .blocks import BlockDecoder, current_block
from .decoder import Move, Turn, stated
from .order import apart
from .schedule import due


class Spread(BlockDecoder):
    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        _, block = current_block(turn.canvas, *self.cut)
        steps = max(1, round(len(block) / stated(self.settings.pace)))
        probability = turn.proposal.probability
        count = due(len(block), steps, len(block) - len(turn.rows))
        chosen = apart(probability, turn.rows, turn.proposal.token, count)
        return Move(turn.write(chosen | (probability > np.float32(stated(self.settings.threshold)))))
