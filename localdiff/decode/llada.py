"""llada: block after block, a fixed number of tokens per step, the surest first.

LLaDA's sampler (arXiv:2502.09992, generate.py): the answer is cut into blocks, the steps are shared out evenly over
them, and in a block of M masks with s steps step i writes M // s + (i < M mod s) tokens. Confidence is the
probability of the proposed token under the model itself, without temperature; or, with order "random", a random number.
Only the current block is ever written. end_token says what becomes of stop tokens, which otherwise come early: "last" -
a position that proposes one ranks below all others; "never" - none is proposed. Guidance is not here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..canvas import Canvas, Int32
from ..errors import OptionError
from .blocks import BlockDecoder, blocks, current_block
from .decoder import Floats, Look, Move, Turn, stated, uniform
from .order import surest
from .schedule import due, share


class Llada(BlockDecoder):
    def check(self, canvas: Canvas) -> None:
        count, steps = len(blocks(canvas, *self.cut)), stated(self.settings.steps)
        if steps < count:
            raise OptionError(
                f"steps is {steps}, but the text has {count} blocks of {self.cut[0]} positions; "
                "expected at least one step per block, so give more steps or a larger block_length"
            )

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        look = super().look(canvas, step, memory)
        if self.settings.end_token != "never":
            return look
        return replace(look, forbidden=np.array(self.facts.stop_tokens, np.int32))

    def step(self, turn: Turn) -> Move:
        index, block = current_block(turn.canvas, *self.cut)
        steps = share(stated(self.settings.steps), len(blocks(turn.canvas, *self.cut)), index)
        scores = self.scores(turn, block)
        if self.settings.end_token == "last":
            scores = np.where(np.isin(turn.proposal.token, self.facts.stop_tokens), -np.inf, scores)
        count = due(len(block), steps, len(block) - len(turn.rows))
        return Move(turn.write(surest(scores, count), scores))

    def scores(self, turn: Turn, block: Int32) -> Floats:
        """What the rows of a turn, masked positions of `block`, are ranked by."""
        random = self.settings.order == "random"
        return uniform(self.seed, turn.step, turn.rows) if random else turn.proposal.probability
