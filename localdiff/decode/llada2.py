"""llada2 and llada2.1: block after block, every token surer than a threshold; 2.1 also edits what it wrote.

LLaDA2.0 (arXiv:2512.15745): as sdar's dynamic order with one token per step at least. LLaDA2.1 (arXiv:2602.08676):
at each step a token of the current block that is not the model's any more is overwritten where the new one is surer
than edit_threshold; once the block is full it is looked at again, edit_steps times at most, until no edit occurs.
Finished blocks and given tokens never change. The text can only end where a block has been finished.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import COMMITTED, Canvas, Int32
from .blocks import BlockDecoder, blocks, current_block
from .decoder import Look, Move, Turn, stated
from .order import sure_or_best


class Llada2(BlockDecoder):
    """Memory: None, or (number of the block that is full and looked at again, passes spent on that)."""

    scores_from = "sampled"

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        if self.settings.edit_threshold is None:
            return super().look(canvas, step, memory)
        return Look(self._block(canvas, memory)[1])

    def step(self, turn: Turn) -> Move:
        masked, probability = turn.masked, turn.proposal.probability
        write = np.zeros(len(turn.rows), bool)
        if masked.any():
            of_masked = probability[masked]
            write[masked] = sure_or_best(of_masked, of_masked > np.float32(stated(self.settings.threshold)))
        if self.settings.edit_threshold is None:
            return Move(turn.write(write))
        other = turn.proposal.token != turn.canvas.tokens[turn.rows]
        edit = ~masked & other & (probability > np.float32(self.settings.edit_threshold))
        commits = turn.rewrite(write | edit, np.zeros_like(write))
        if np.any(masked & ~write):
            return Move(commits, None, done=False)
        spent = 0 if masked.any() else turn.memory[1] + 1
        if spent >= stated(self.settings.edit_steps) or not (masked.any() or edit.any()):
            return Move(commits)
        return Move(commits, (self._block(turn.canvas, turn.memory)[0], spent), done=False)

    def settled(self, canvas: Canvas) -> int:
        if self.settings.edit_threshold is None:
            return super().settled(canvas)
        begun = [block for block in blocks(canvas, *self.cut) if np.any(canvas.state[block] == COMMITTED)]
        return int(begun[-1][0]) if begun else 0

    def _block(self, canvas: Canvas, memory: Any) -> tuple[int, Int32]:
        if memory is None:
            return current_block(canvas, *self.cut)
        return memory[0], blocks(canvas, *self.cut)[memory[0]]
