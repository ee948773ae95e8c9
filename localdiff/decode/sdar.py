"""sdar: block after block, a number of tokens per step or more where the model is sure.

The sampler of SDAR (arXiv:2510.06303, generate.py), also of TraDo and MinerU-Diffusion. A block of B positions has
steps_per_block steps; step i writes at least n = B // s + (i < B mod s) tokens. order "sequential": the leftmost n;
"static": the n surest; "dynamic": all that are surer than the threshold where they are at least n, else the n surest;
"entropy": the lowest entropies whose sum stays under entropy_bound, at least one. Where the prompt fills a part of the
first block its masks take as many steps as are needed. Storing the keys of a finished block is the cache's matter.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Canvas
from ..errors import OptionError
from .blocks import BlockDecoder, current_block
from .decoder import Bools, Move, Places, Turn, stated
from .order import bounded, sure_or_best, surest
from .schedule import share


class Sdar(BlockDecoder):
    scores_from = "sampled"

    @property
    def _steps(self) -> int:
        return self.settings.steps_per_block or self.cut[0]

    def check(self, canvas: Canvas) -> None:
        if self._steps > self.cut[0]:
            raise OptionError(
                f"steps_per_block is {self._steps}, but a block has {self.cut[0]} positions; expected at most as many"
            )

    def step(self, turn: Turn) -> Move:
        index, _ = current_block(turn.canvas, *self.cut)
        before = turn.memory[1] if turn.memory is not None and turn.memory[0] == index else 0
        count = min(share(self.cut[0], self._steps, before), len(turn.rows))
        return Move(turn.write(self._chosen(turn, count)), (index, before + 1))

    def _chosen(self, turn: Turn, count: int) -> Bools | Places:
        order, probability = self.settings.order, turn.proposal.probability
        if order == "sequential":
            return np.arange(count)
        if order == "dynamic":
            return sure_or_best(probability, probability > np.float32(stated(self.settings.threshold)), count)
        if order == "entropy":
            entropy = turn.proposal.entropy
            return bounded(-entropy, entropy, stated(self.settings.entropy_bound), whole=True)
        return surest(probability, count)
