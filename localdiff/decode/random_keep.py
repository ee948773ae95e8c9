"""random-keep: each masked position is written with equal chance, whatever the model thinks of it.

Sampler A of DiffuGPT/DiffuLLaMA (arXiv:2410.17891): before the forward pass at t < T a masked position takes the token
that the pass before proposed with probability 1 / (t + 1), and the last proposals fill the rest. Said the other way
round, which is what happens here: after the pass at t it is written with probability 1 / t. Written tokens stay; the
other proposals are thrown away. Tokens are drawn at the temperature and from the nucleus of the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..canvas import Canvas, Commits, Int32
from .decoder import pick, uniform
from .schedule import reveal_probability
from .table import Settings

if TYPE_CHECKING:
    from ..engine import Proposal


class RandomKeep:
    scores_from = "sampled"

    def __init__(self, settings: Settings, seed: int) -> None:
        assert settings.steps is not None
        self._steps = settings.steps
        self._seed = seed

    def check(self, canvas: Canvas) -> None:
        """Any number of steps fits any canvas."""

    def plan(self, canvas: Canvas) -> Int32:
        return canvas.masked

    def step(self, canvas: Canvas, rows: Int32, proposal: Proposal, step: int) -> Commits:
        return pick(rows, proposal, uniform(self._seed, step, rows) < reveal_probability(step, self._steps))
