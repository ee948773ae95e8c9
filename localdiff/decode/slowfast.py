"""slowfast: feels its way until it knows how far the model can see, then writes that stretch quickly.

SlowFast Sampling (arXiv:2506.10848). A block is written in cycles, left to right. The slow phase looks at everything
from the cycle's start to the block's end; there the cycle may end after the last position that is at least
relaxed_threshold probable, after one position where none is. It lasts until the last WINDOW such ends deviate by less
than STEADY, which makes the last one the end, or for SLOW_STEPS passes, which makes their mean the end. The fast phase
writes up to the end, then the next cycle begins there. In both phases every position at least as probable as the
threshold is written, the surest one in any case. The published code stays in the slow phase for all of SLOW_STEPS.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import Canvas
from .blocks import BlockDecoder, current_block, masked_of
from .decoder import Look, Move, Turn, stated
from .order import sure_or_best

SLOW_STEPS, WINDOW, STEADY = 6, 2, 1.0

Cycle = tuple[int, int, tuple[int, ...]]  # its first place in the block, its end (0: not known), ends that were found
BEGINNING: Cycle = (0, 0, ())


class SlowFast(BlockDecoder):
    """Memory: Cycle; None where a new block begins."""

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        _, block = current_block(canvas, *self.cut)
        start, end, _ = memory or BEGINNING
        return Look(masked_of(canvas, block[start : end or len(block)]))

    def step(self, turn: Turn) -> Move:
        _, block = current_block(turn.canvas, *self.cut)
        probability = turn.proposal.probability
        sure = probability >= np.float32(stated(self.settings.threshold))
        written = turn.write(sure_or_best(probability, sure))
        start, end, ends = turn.memory or BEGINNING
        if not end:
            likely = turn.rows[probability >= np.float32(stated(self.settings.relaxed_threshold))]
            reached = int(np.searchsorted(block, likely[-1])) if len(likely) else start
            ends = (*ends, reached + 1)
            if len(ends) >= WINDOW and np.std(ends[-WINDOW:]) < STEADY:
                end = ends[-1]
            elif len(ends) == SLOW_STEPS:
                end = int(np.mean(ends[-WINDOW:]))
        after = turn.canvas.apply(written)
        if end and not len(masked_of(after, block[start:end])):
            start, end, ends = end, 0, ()
        full = not len(masked_of(after, block[start:]))
        return Move(written, None if full else (start, end, ends))
