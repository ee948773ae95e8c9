"""rdm: the positions that the model is least sure of are masked, at every step anew, so that a token can be taken back.

Reparameterised routing (RDM, arXiv:2302.05737), the sampler of adapted masked language models (arXiv:2308.12219). At
step t all N positions are scored by the log-probability of their predicted token, with Gumbel noise times
order_temperature times the noise rate where that is set ("stochastic"). The floor(N * rate) lowest are low, by a strict
comparison. Masked positions that are not low are written. Written ones that are low become masked again: always (remask
"uncond"), or only where the prediction is still the token and less sure than when it was written ("cond"). The rate
falls linearly or as a cosine; at the last step nothing is low.
"""

from __future__ import annotations

import numpy as np

from .decoder import Move, RewritingDecoder, Turn, stated
from .order import below_rank, gumbel, log_probability
from .schedule import noise_rate


class Rdm(RewritingDecoder):
    """Memory: float64 [length], the log-probabilities that written tokens had, -inf where masked."""

    def step(self, turn: Turn) -> Move:
        rows, steps = turn.rows, stated(self.settings.steps)
        written = np.full(len(turn.canvas), -np.inf) if turn.memory is None else turn.memory.copy()
        rate = noise_rate(turn.step, steps, stated(self.settings.schedule))
        scores = log_probability(turn.proposal.probability)
        spread = stated(self.settings.order_temperature) * rate
        ranking = scores + spread * gumbel(self.seed, turn.step, rows) if spread > 0 else scores
        # a rate of less than one, times N, may still be rounded to N
        low = below_rank(ranking, min(int(len(rows) * rate), len(rows) - 1))
        back = low & ~turn.masked
        if self.settings.remask == "cond":
            back &= (turn.proposal.token == turn.canvas.tokens[rows]) & (scores < written[rows])
        write = turn.masked & ~low
        written[rows[write]] = scores[write]
        written[rows[back]] = -np.inf
        return Move(turn.rewrite(write, back, scores), written, done=turn.step >= steps)
