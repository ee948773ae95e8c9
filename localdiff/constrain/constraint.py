"""What a constraint on the text of a canvas is to the denoise loop.

A constraint is of one canvas whose length does not change. Before the first pass and after every step it may write
tokens that leave no choice; before a pass it says what it needs of it; after the pass it puts tokens that keep a whole
text possible in place of the proposed ones; and it has the last word on what is written. What it keeps between steps
are only results that it could compute again from the canvas. Not here: the two kinds (regular.py, matching.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..canvas import MASKED, Canvas, Commits

if TYPE_CHECKING:
    from ..decode.decoder import Turn
    from ..engine import Request


class Constraint:
    """first, end   the text stands at these positions; end is one past the last
    vocab        rows of the model
    """

    def __init__(self, first: int, end: int, vocab: int) -> None:
        self.first = first
        self.end = end
        self.vocab = vocab

    def forced(self, canvas: Canvas) -> Commits:
        """Tokens after those that are known from the beginning on, where there is no choice."""
        raise NotImplementedError

    def turn(self, turn: Turn, request: Request) -> Turn:
        """The turn with proposals that may be written together.

        request   what the decoder wants, with the logits that the engine filled in, of the rows of the turn
        """
        raise NotImplementedError

    def kept(self, turn: Turn, commits: Commits) -> Commits:
        """What is written of the commits that a decoder chose from such a turn."""
        return commits

    def rest(self, turn: Turn) -> Commits:
        """Everything that makes the text whole, where no pass follows."""
        return turn.write(turn.masked)

    def written(self, turn: Turn, commits: Commits) -> Commits:
        """All that is written after a turn: what is kept, and what is then forced."""
        kept = self.kept(turn, commits)
        forced = self.forced(turn.canvas.apply(kept))
        return kept.together(forced)

    def known(self, canvas: Canvas) -> int:
        """The first position of the text that is masked, or its end."""
        masked = np.flatnonzero(canvas.state[self.first : self.end] == MASKED)
        return self.first + int(masked[0]) if len(masked) else self.end

    def room(self, canvas: Canvas, position: int) -> int:
        """How many positions from `position` on are masked without a gap."""
        rest = canvas.state[position : self.end] == MASKED
        return len(rest) if rest.all() else int(np.argmin(rest))


def sequence(position: int, tokens: Sequence[int]) -> Commits:
    """Tokens that are written side by side, without a doubt."""
    places = np.arange(position, position + len(tokens), dtype=np.int32)
    return Commits(places, np.array(tokens, np.int32), np.ones(len(tokens), np.float32))
