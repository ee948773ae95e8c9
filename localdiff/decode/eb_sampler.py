"""eb-sampler: as many tokens at once as a bound on their joint error allows, anywhere in the canvas.

EB-Sampler (arXiv:2505.24857): positions are ranked by entropy, probability or margin; the longest run is written whose
entropies, less the largest, add up to no more than entropy_bound (gamma). A certain model is thus decoded in one step,
and with a bound of 0 each step writes one uncertain token, together with those whose entropy is 0.
"""

from __future__ import annotations

from .decoder import Decoder, Move, Turn, stated
from .order import bounded, confidence


class EbSampler(Decoder):
    def step(self, turn: Turn) -> Move:
        scores = confidence(turn.proposal, stated(self.settings.order))
        return Move(turn.write(bounded(scores, turn.proposal.entropy, stated(self.settings.entropy_bound)), scores))
