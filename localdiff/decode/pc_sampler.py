"""pc-sampler: llada that ranks by how much a token tells, and from left to right.

PC-Sampler (arXiv:2508.13021): the confidence p of a proposed token is weighed by how rare the token is, p * -ln q, at
most CLIP, where q is its background probability; so that marks and common words are not written first. That is
multiplied by exp(-position_decay * place), place counted from 0 in the block. The source counts q in a corpus; here it
is what the model itself expects in an empty canvas (Facts.background), which needs no file.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from .decoder import Floats, Turn, stated
from .llada import Llada

CLIP = 10.0
LEAST = 1e-9  # added to q


class PcSampler(Llada):
    def scores(self, turn: Turn, block: Int32) -> Floats:
        background = stated(self.facts.background)[turn.proposal.token].astype(np.float64)
        tells = turn.proposal.probability * -np.log(background + LEAST)
        place = np.searchsorted(block, turn.rows)
        scores: Floats = np.exp(-stated(self.settings.position_decay) * place) * np.minimum(tells, CLIP)
        return scores
