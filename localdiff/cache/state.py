"""What the engine holds of one canvas, and what a policy sees when it chooses rows.

A position is stale where its state was computed from another token than stands there now, was never computed, or saw
another part of the canvas. Exact policies ask what could have changed; approximate ones leave some of it as it is.
Records are immutable. Not here: the policies, calls of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from ..canvas import Canvas, Int32
from ..engine import Float32, Request

if TYPE_CHECKING:
    from ..decode.table import Settings

NEVER = -1


@dataclass(frozen=True)
class State:
    """Per position of one slot: token and reach int32 [length] its state was computed with, and in which step.

    token        NEVER where the engine holds nothing
    reach        the end of what its row saw, see reach()
    step         number of the denoise step; 0 = an earlier generation
    drift        float32 [length] how far its values moved when it was last computed (Request.value_drift), 1 = unknown
    """

    token: Int32
    reach: Int32
    step: Int32
    drift: Float32

    @staticmethod
    def empty(length: int) -> State:
        never = np.full(length, NEVER, np.int32)
        return State(never, never, np.zeros(length, np.int32), np.ones(length, np.float32))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        known: npt.NDArray[np.bool_] = self.token != NEVER
        return known

    def resumed(self, tokens: Int32, reach: Int32) -> State:
        """What an exact run left, as far as it holds for other tokens: rows that saw no stale position."""
        fresh = State.empty(len(tokens))
        shared = min(len(tokens), len(self.token))
        stale = (self.token[:shared] != tokens[:shared]) | (self.reach[:shared] != reach[:shared])
        kept = np.flatnonzero(reach[:shared] <= (np.argmax(stale) if stale.any() else shared))
        return fresh.computed(kept.astype(np.int32), tokens, reach, 0)

    def without(self, rows: Int32) -> State:
        """While a call is running the state of its rows is unknown."""
        token = self.token.copy()
        token[rows] = NEVER
        return replace(self, token=token)

    def drifted(self, rows: Int32, drift: Float32) -> State:
        now = self.drift.copy()
        now[rows] = drift
        return replace(self, drift=now)

    def computed(self, rows: Int32, tokens: Int32, reach: Int32, step: int) -> State:
        """After `rows` were computed from `tokens`."""
        now = replace(self, token=self.token.copy(), reach=self.reach.copy(), step=self.step.copy())
        now.token[rows], now.reach[rows], now.step[rows] = tokens[rows], reach[rows], step
        return now


@dataclass(frozen=True)
class View:
    """What a policy sees before a forward pass.

    score       int32 [n] positions that the decoder wants scored, ascending
    source      int32 [n] the rows that predict them: the same, or one less with logit_shift
    confidence  float32 [n] probability of what was last proposed for them; NaN where nothing was
    reach       int32 [length] the end of what each row sees
    state       what the engine holds
    step        number of the coming step, from 1
    """

    canvas: Canvas
    score: Int32
    source: Int32
    confidence: Float32
    reach: Int32
    state: State
    step: int

    @property
    def stale(self) -> npt.NDArray[np.bool_]:
        """bool [length]: the state is not that of the token that stands there."""
        stale: npt.NDArray[np.bool_] = (self.state.token != self.canvas.tokens) | (self.state.reach != self.reach)
        return stale

    @property
    def full_pass(self) -> int:
        """The step in which every row was last computed, or later."""
        return int(self.state.step.min())


class CachePolicy:
    """The defaults of all policies.

    exact     the result is that of recomputing everything
    narrows   scored positions whose row is not among the chosen ones keep what was proposed for them earlier; else
              their rows are computed, whatever rows() says
    measures  it looks at State.drift
    """

    exact: ClassVar[bool] = False
    narrows: ClassVar[bool] = False
    measures: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def rows(self, view: View) -> Int32 | None:
        """The positions to recompute in the coming forward pass, ascending; None = all."""
        raise NotImplementedError


def reach(request: Request) -> Int32:
    """int32 [length]: row p sees the positions below reach[p] (the header's LD_ATTENTION_*); it never falls with p.

    Behind a causal prompt it is one more than that: a row of the canvas is never what it would be in the prompt, though
    the last one sees the same.
    """
    length = len(request.tokens)
    positions = np.arange(length, dtype=np.int32)
    if request.attention == "causal":
        return positions + 1
    if request.attention == "block_causal":
        return np.minimum((positions // request.block_length + 1) * request.block_length, length).astype(np.int32)
    if request.attention == "prefix_causal":
        return np.where(positions < request.prefix, positions + 1, length + 1).astype(np.int32)
    return np.full(length, length, np.int32)
