"""credit: a token that the model keeps proposing is trusted sooner.

CreditDecoding (arXiv:2510.06133): each masked position of the current block keeps a credit for every token. At each
step the credits decay by DECAY and the likeliest token, of probability p, gains p ** BOOST; ALPHA * ln(1 + credit) is
added to the logits. Positions whose token is then at least as probable as the threshold are written, the best one in
any case. Credits of tokens that are not among the likeliest (`alternatives`) count for nothing at that step. At
temperature 0 the token is the likeliest with credit, else the one that was drawn.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Commits
from .blocks import BlockDecoder
from .decoder import Move, Turn, stated
from .order import sure_or_best

ALPHA, BOOST, DECAY = 0.7, 0.2, 0.8

Credits = dict[int, dict[int, float]]  # position -> token -> credit


class Credit(BlockDecoder):
    """Memory: Credits."""

    alternatives = 64

    def step(self, turn: Turn) -> Move:
        before: Credits = turn.memory or {}
        credits: Credits = {}
        tokens, trusted = turn.proposal.token.copy(), turn.proposal.probability.copy()
        for row, (position, likely, probability) in enumerate(turn.likeliest):
            mine = {token: DECAY * credit for token, credit in before.get(position, {}).items()}
            mine[int(likely[0])] = mine.get(int(likely[0]), 0.0) + float(probability[0]) ** BOOST
            credits[position] = mine
            raised = np.array([(1 + mine.get(int(token), 0.0)) ** ALPHA for token in likely])
            weight = probability * raised
            if self.settings.temperature == 0:
                tokens[row] = likely[np.argmax(weight)]
            drawn = (1 + mine.get(int(tokens[row]), 0.0)) ** ALPHA
            found = likely == tokens[row]
            own = weight[found][0] if found.any() else trusted[row] * drawn
            trusted[row] = own / (1 + float(np.sum(weight - probability)))
        chosen = sure_or_best(trusted, trusted >= np.float32(stated(self.settings.threshold)))
        return Move(Commits(turn.rows[chosen], tokens[chosen], trusted[chosen]), credits)
