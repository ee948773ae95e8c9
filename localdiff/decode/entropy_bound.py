"""entropy-bound: for models that denoise random tokens instead of masks; nothing is final until the end.

The sampler of DiffusionGemma, as transformers has it, on the rule of arXiv:2505.24857. The canvas starts as random
tokens. At each step a token is drawn for every position at a temperature that falls linearly from `temperature` towards
`end_temperature`, which a step after the last one would have; the positions of lowest entropy whose entropies, less the
largest, add up to no more than entropy_bound take it, and all others get a fresh random token. It ends when the
likeliest tokens are those of the step before and the mean entropy is below CERTAIN, or with the last step; then the
likeliest tokens are the text. What the model is told of its last answer is asked for by the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from .decoder import Look, Move, RewritingDecoder, Turn, stated, uniform
from .order import bounded

CERTAIN = 0.005  # nats


class EntropyBound(RewritingDecoder):
    """Memory: the likeliest tokens of the last step."""

    scores_from = "sampled"

    def start(self, canvas: Canvas) -> Commits:
        masked = canvas.masked
        return Commits(masked, self._noise(0, masked), None, np.full(len(masked), MASKED, np.uint8))

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        first, last, steps = self.settings.temperature, stated(self.settings.end_temperature), self._steps
        temperature = first + (last - first) * (step - 1) / steps
        return Look(canvas.maskable, temperature, alternatives=1)

    def step(self, turn: Turn) -> Move:
        entropy, likeliest = turn.proposal.entropy, turn.proposal.alternative_token[:, 0]
        settled = np.array_equal(likeliest, turn.memory) and float(entropy.mean()) < CERTAIN
        if settled or turn.step >= self._steps:
            state = np.full(len(turn.rows), COMMITTED, np.uint8)
            return Move(Commits(turn.rows, likeliest, -entropy, state), done=True)
        accepted = np.zeros(len(turn.rows), bool)
        accepted[bounded(-entropy, entropy, stated(self.settings.entropy_bound))] = True
        tokens = np.where(accepted, turn.proposal.token, self._noise(turn.step, turn.rows))
        state = np.where(accepted, COMMITTED, MASKED).astype(np.uint8)
        return Move(Commits(turn.rows, tokens, -entropy, state), likeliest, done=False)

    @property
    def _steps(self) -> int:
        return stated(self.settings.steps)

    def _noise(self, step: int, positions: Int32) -> Int32:
        allowed = self.facts.allowed
        noise: Int32 = allowed[(uniform(self.seed, step, positions) * len(allowed)).astype(np.intp)]
        return noise
