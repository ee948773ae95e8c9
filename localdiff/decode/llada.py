"""llada: block after block, a fixed number of tokens per step, the surest first.

LLaDA's sampler (arXiv:2502.09992, generate.py): the answer is cut into blocks, the steps are shared out evenly over
them, and in a block of M masks with s steps step i writes M // s + (i < M mod s) tokens. Confidence is the
probability of the proposed token under the model itself, without temperature; or, with order "random", a random number.
Only the current block is ever written. Guidance is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..canvas import Canvas, Commits, Int32
from ..errors import OptionError
from .blocks import blocks, current_block, masked_of
from .decoder import pick, uniform
from .schedule import share
from .table import Settings

if TYPE_CHECKING:
    from ..engine import Proposal


class Llada:
    scores_from = "raw"

    def __init__(self, settings: Settings, seed: int) -> None:
        assert settings.steps is not None
        assert settings.block_length is not None
        self._steps = settings.steps
        self._cut = (settings.block_length, settings.aligned)
        self._random = settings.order == "random"
        self._seed = seed

    def check(self, canvas: Canvas) -> None:
        count = len(blocks(canvas, *self._cut))
        if self._steps < count:
            raise OptionError(
                f"steps is {self._steps}, but the text has {count} blocks of {self._cut[0]} positions; "
                "expected at least one step per block, so give more steps or a larger block_length"
            )

    def plan(self, canvas: Canvas) -> Int32:
        _, block = current_block(canvas, *self._cut)
        return masked_of(canvas, block)

    def step(self, canvas: Canvas, rows: Int32, proposal: Proposal, step: int) -> Commits:
        index, block = current_block(canvas, *self._cut)
        steps = share(self._steps, len(blocks(canvas, *self._cut)), index)
        confidence = uniform(self._seed, step, rows) if self._random else proposal.probability
        # stable: of equal ones the leftmost
        surest = np.argsort(-confidence, kind="stable")[: _due(len(block), steps, len(block) - len(rows))]
        return pick(rows, proposal, np.sort(surest))


def _due(total: int, steps: int, written: int) -> int:
    """How many of a block's `total` positions come next when `written` of them are there.

    The counts of the steps fall and are positive until the block is full, so `written` tells which step this is.
    """
    index = reached = 0
    while reached < written:
        reached += share(total, steps, index)
        index += 1
    return share(total, steps, index)
