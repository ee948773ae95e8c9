"""daedal: the canvas grows until the model sees the end of its answer, and where it is unsure of what to write.

DAEDAL (arXiv:2508.00819), for models that fill the rest of an answer with end tokens. How finished the answer looks is
the sum of the probabilities of the last WINDOW end tokens proposed, over WINDOW. An answer begins with 64 masks (see
table.py). First GROWTH are added at the end, pass by pass, until it looks at least as finished as BEGIN. Then block
after block: masked positions surer than the threshold are written, or the surest one; and while the answer looks less
finished than GO_ON, the least sure of the others becomes GROWTH masks where it is less probable than relaxed_threshold.
The canvas grows `expansions` times at most, and to no more than was asked for: which is what a model always gets that
fills nothing with end tokens. The published code also appends half a window of end tokens after the first phase; that
is not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import GIVEN, MASKED, Canvas, Commits
from ..errors import OptionError
from .blocks import current_block
from .decoder import Decoder, Look, Move, Turn, stated
from .order import sure_or_best

WINDOW, GROWTH = 32, 8
BEGIN, GO_ON = 0.5, 0.9


class Daedal(Decoder):
    """Memory: (the first phase is over, how often the canvas has grown)."""

    def check(self, canvas: Canvas) -> None:
        if not self.facts.stop_tokens or canvas.state[-1] == GIVEN:
            raise OptionError(
                "the decoder daedal lengthens an answer until it ends, but this text has no end of its own (a hole, or "
                "a model without a stop token); choose another decoder"
            )

    def room(self, canvas: Canvas) -> int:
        return max(len(canvas), min(self.facts.canvas_limit, len(canvas) + stated(self.settings.expansions) * GROWTH))

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        return Look(canvas.maskable)

    def step(self, turn: Turn) -> Move:
        over, grown = turn.memory or (False, 0)
        finished = self._finished(turn)
        space = self.facts.canvas_limit - len(turn.canvas) if grown < stated(self.settings.expansions) else 0
        if not over and finished < BEGIN and space > 0:
            return Move(self._grow(turn, len(turn.rows) - 1, 1 + min(GROWTH, space)), (False, grown + 1), done=False)
        _, block = current_block(turn.canvas, stated(self.settings.block_length), False)
        probability = turn.proposal.probability
        inside = turn.masked & np.isin(turn.rows, block)
        chosen = np.zeros(len(turn.rows), bool)
        sure = probability[inside] > np.float32(stated(self.settings.threshold))
        chosen[inside] = sure_or_best(probability[inside], sure)
        unsure = inside & ~chosen & (probability < np.float32(stated(self.settings.relaxed_threshold)))
        if finished >= GO_ON or space <= 0 or not unsure.any():
            return Move(turn.write(chosen), (True, grown))
        least = int(np.argmin(np.where(unsure, probability, 2)))
        copies = min(GROWTH, space + 1)
        return Move(self._grow(turn, least, copies, chosen), (True, grown + 1), done=False)

    def _finished(self, turn: Turn) -> float:
        ends = np.isin(turn.proposal.token, self.facts.stop_tokens)
        return float(turn.proposal.probability[ends][-WINDOW:].astype(np.float64).sum()) / WINDOW

    def _grow(self, turn: Turn, row: int, copies: int, chosen: Any = None) -> Commits:
        """Write the chosen rows and make the masked one at `row` several."""
        write = np.zeros(len(turn.rows), bool) if chosen is None else chosen
        mask = np.zeros(len(turn.rows), bool)
        mask[row] = True
        commits = turn.rewrite(write, mask)
        times = np.where(commits.state == MASKED, copies, 1).astype(np.int32)
        return Commits(commits.positions, commits.tokens, commits.scores, commits.state, times)
