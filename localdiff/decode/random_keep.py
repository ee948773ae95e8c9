"""random-keep: each masked position is written with equal chance, whatever the model thinks of it.

Sampler A of DiffuGPT/DiffuLLaMA (arXiv:2410.17891): before the forward pass at t < T a masked position takes the token
that the pass before proposed with probability 1 / (t + 1), and the last proposals fill the rest. Said the other way
round, which is what happens here: after the pass at t it is written with probability 1 / t. Written tokens stay; the
other proposals are thrown away. Tokens are drawn at the temperature and from the nucleus of the settings.
"""

from __future__ import annotations

from .decoder import Decoder, Move, Turn, stated, uniform
from .schedule import reveal_probability


class RandomKeep(Decoder):
    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        chance = reveal_probability(turn.step, stated(self.settings.steps))
        return Move(turn.write(uniform(self.seed, turn.step, turn.rows) < chance))
