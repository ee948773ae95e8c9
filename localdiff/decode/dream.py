"""dream: a share of the masked positions at each step, the surest first or at random, anywhere in the canvas.

Dream's sampler (arXiv:2508.15487, diffusion_generate), also of Dream-Coder and DiffuCoder. Times fall evenly from 1 to
0.001; between times t and s a masked position is written with chance 1 - s / t, everything at the last step. By
default it is the share of the masked positions, rounded down, that the model is surest of: by negative entropy, by
probability (its maskgit_plus) or by top1 - top2 margin (topk_margin); with order "random" (origin) each position draws
for itself. order_temperature (alg_temp) > 0 draws the positions without replacement from softmax(score / temperature).
Confidences are those of the distribution that tokens are drawn from.
"""

from __future__ import annotations

from .decoder import Decoder, Move, Turn, stated, uniform
from .order import confidence, gumbel, surest
from .schedule import dream_chance


class Dream(Decoder):
    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        order, spread = stated(self.settings.order), stated(self.settings.order_temperature)
        chance = dream_chance(turn.step, stated(self.settings.steps))
        if order == "random":
            return Move(turn.write(uniform(self.seed, turn.step, turn.rows) < chance))
        scores = confidence(turn.proposal, order)
        ranking = scores / spread + gumbel(self.seed, turn.step, turn.rows) if spread > 0 else scores
        return Move(turn.write(surest(ranking, int(len(turn.rows) * chance)), scores))
