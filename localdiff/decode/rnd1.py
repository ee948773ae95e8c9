"""rnd1: the positions of highest entropy stay masked, the others are written.

RND1's sampler ("Training Diffusion Language Models at Scale using Autoregressive Models", Radical Numerics,
sampling.py): after step i of T the floor(N * (T - i) / T) masked positions of highest entropy stay masked.
With entropy_bound (its eb_gamma) the count does not come from the steps: the likeliest positions
are written as long as their entropies, less the largest, add up to no more than the bound; see order.bounded().
"""

from __future__ import annotations

from .decoder import Decoder, Move, Turn, stated
from .order import bounded, log_probability, surest
from .schedule import left_masked


class Rnd1(Decoder):
    def step(self, turn: Turn) -> Move:
        entropy, bound = turn.proposal.entropy, self.settings.entropy_bound
        if bound is not None:
            return Move(turn.write(bounded(log_probability(turn.proposal.probability), entropy, bound), -entropy))
        left = left_masked(len(turn.canvas.maskable), turn.step, stated(self.settings.steps))
        return Move(turn.write(surest(-entropy, max(0, len(turn.rows) - left)), -entropy))
