"""dreamon: one token per step, where the model may answer "two positions" or "none" instead of a token.

DreamOn (Dream-v0's successor for infilling of unknown length, github.com/DreamLM/DreamOn). Each step writes the
position that the model is surest of. Its expand token becomes two masks, its delete token removes the position. An
expansion is refused once `expansions` of them are spent or the canvas is as long as it can be, so the steps are at most
the masks plus twice the expansions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits
from ..errors import OptionError
from .decoder import Decoder, Look, Move, Turn, stated
from .order import confidence, surest


class DreamOn(Decoder):
    """Memory: how many expansions are spent."""

    scores_from = "sampled"

    def check(self, canvas: Canvas) -> None:
        if self.facts.expand_token is None or self.facts.delete_token is None:
            raise OptionError(
                "the decoder dreamon needs a model with tokens for expand and delete, but the record names none; "
                "choose another decoder, or give --diffusion expand=ID,delete=ID"
            )

    def room(self, canvas: Canvas) -> int:
        return max(len(canvas), min(self.facts.canvas_limit, len(canvas) + stated(self.settings.expansions)))

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        spent = (memory or 0) >= stated(self.settings.expansions) or len(canvas) >= self.facts.canvas_limit
        return Look(canvas.masked, forbidden=np.array([self.facts.expand_token], np.int32) if spent else None)

    def step(self, turn: Turn) -> Move:
        spent, scores = turn.memory or 0, confidence(turn.proposal, stated(self.settings.order))
        written = turn.write(surest(scores, 1), scores)
        token = int(written.tokens[0])
        if token not in (self.facts.expand_token, self.facts.delete_token):
            return Move(written, spent)
        expands = token == self.facts.expand_token
        replaced = np.array([turn.canvas.mask_token if expands else token], np.int32)
        state = np.array([MASKED if expands else COMMITTED], np.uint8)
        copies = np.array([2 if expands else 0], np.int32)
        return Move(Commits(written.positions, replaced, written.scores, state, copies), spent + expands)
