"""wino: much is written at once, and what was written is verified by rows that do not see it; doubtful tokens go back.

WINO (arXiv:2507.18578), Wide-In, Narrow-Out. In the current block every masked position surer than the threshold is
written, MOST of them at a time and SHARE of the masks (but LEAST may be), or the surest one. In the same pass each
token written earlier is asked for again by a shadow, a mask token that sees everything but that token (Look.verify),
and is masked again where its probability there is below verify_threshold: fewer than were written in the step before,
so that a block takes no more passes than it has positions. The caps are those of the published code. There a block has
as many shadows as positions, here only written tokens have one; where the row before predicts a position (logit_shift),
so does its shadow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from .blocks import BlockDecoder, blocks, current_block, masked_of
from .decoder import Look, Move, Turn, stated
from .order import sure_or_best, surest

SHARE, LEAST, MOST = 0.7, 5, 20


class Wino(BlockDecoder):
    """Memory: (number of the block, tokens written in the step before)."""

    def shadows(self, canvas: Canvas) -> int:
        block = stated(self.settings.block_length)
        return block if self.settings.grow else min(block, len(canvas.maskable))

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        _, block = current_block(canvas, *self.cut)
        return Look(masked_of(canvas, block), verify=block[canvas.state[block] == COMMITTED])

    def step(self, turn: Turn) -> Move:
        number, block = current_block(turn.canvas, *self.cut)
        probability = turn.proposal.probability
        most = min(max(int(SHARE * len(turn.rows)), LEAST), MOST)
        sure = sure_or_best(probability, probability > np.float32(stated(self.settings.threshold)))
        write = surest(np.where(sure, probability, -1), min(most, int(sure.sum())))
        commits = turn.write(write).together(self._taken_back(turn, number, len(write)))
        full = len(block) == len(turn.verify) + len(write) and not np.any(commits.state == MASKED)
        return Move(commits, (number, len(write)), done=None if full else False)

    def settled(self, canvas: Canvas) -> int:
        unfinished = [block for block in blocks(canvas, *self.cut) if len(masked_of(canvas, block))]
        return int(unfinished[0][0]) if unfinished else len(canvas)

    def _taken_back(self, turn: Turn, number: int, written: int) -> Commits:
        """The verified tokens that become masks again, `written` others being written."""
        before = turn.memory[1] if turn.memory is not None and turn.memory[0] == number else 0
        doubtful = np.flatnonzero(turn.verified < np.float32(stated(self.settings.verify_threshold)))
        if written <= 1 or before <= 1:
            doubtful = doubtful[:0]
        elif len(doubtful) >= before:
            doubtful = doubtful[surest(-turn.verified[doubtful], before - 1)]
        positions: Int32 = turn.verify[doubtful]
        masks = np.full(len(positions), turn.canvas.mask_token, np.int32)
        return Commits(positions, masks, turn.verified[doubtful], np.full(len(positions), MASKED, np.uint8))
