"""adablock: threshold decoding in blocks that end where the model ends a line.

AdaBlock (arXiv:2509.26432): a block begins at the first masked position. Of the first quarter of the answer's length
from there on, the position with the surest line end among the proposed tokens is looked for; where it is at least
delimiter_threshold probable the block ends with it, else after block_length positions. The pass that finds the block
also writes into it; then as threshold does, until it is full.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import MASKED, Canvas
from ..errors import OptionError
from .decoder import Decoder, Look, Move, Turn, stated
from .order import sure_or_best


class AdaBlock(Decoder):
    """Memory: one past the last position of the current block; None where the next one is to be found."""

    def check(self, canvas: Canvas) -> None:
        if self.facts.line_end is None:
            raise OptionError(
                "the decoder adablock looks for line ends, but this vocabulary has no token for one; "
                "choose another decoder"
            )

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        masked = canvas.masked
        return Look(masked[masked < (self._reach(canvas) if memory is None else memory)])

    def step(self, turn: Turn) -> Move:
        end = self._end(turn) if turn.memory is None else turn.memory
        inside = turn.among(turn.rows < end)
        probability = inside.proposal.probability
        written = inside.write(sure_or_best(probability, probability >= np.float32(stated(self.settings.threshold))))
        left = np.any(turn.canvas.apply(written).state[:end] == MASKED)
        return Move(written, end if left else None)

    def _reach(self, canvas: Canvas) -> int:
        """One past the last position that a block beginning here could have."""
        maskable, first = canvas.maskable, canvas.masked[0]
        count = max(stated(self.settings.block_length), len(maskable) // 4)
        return int(maskable[maskable >= first][:count][-1]) + 1

    def _end(self, turn: Turn) -> int:
        maskable, first = turn.canvas.maskable, turn.rows[0]
        ahead = maskable[maskable >= first]
        window = turn.rows <= ahead[: max(1, len(maskable) // 4)][-1]
        ends = window & (turn.proposal.token == self.facts.line_end)
        surest = int(np.argmax(np.where(ends, turn.proposal.probability, -1)))
        if ends.any() and turn.proposal.probability[surest] >= np.float32(stated(self.settings.delimiter_threshold)):
            return int(turn.rows[surest]) + 1
        return int(ahead[: stated(self.settings.block_length)][-1]) + 1
