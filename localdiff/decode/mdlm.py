"""mdlm: ancestral sampling that asks the model again only when the canvas has changed.

MDLM's ddpm-cache sampler (arXiv:2406.07524): on T even times each mask is written with chance 1 - s / t, with a token
drawn from the model. The network sees no time, so after a time at which nothing was written its answer is the same, and
the next times are drawn from it without a forward pass. That is random-keep with fewer passes for many steps.
"""

from __future__ import annotations

from .decoder import Decoder, Move, Turn, stated, uniform
from .schedule import reveal_probability


class Mdlm(Decoder):
    """Memory: how many times are past."""

    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        steps, time = stated(self.settings.steps), (turn.memory or 0) + 1
        while not (chosen := uniform(self.seed, time, turn.rows) < reveal_probability(time, steps)).any():
            time += 1
        return Move(turn.write(chosen), time)
