"""What every decoder is: a pure object made of settings, a seed and a few facts of the model.

A decoder sees a canvas and the model's answer (Turn) and says what changes (Move). It keeps nothing between steps: the
canvas, the number of the step and the memory that its last Move handed on say all, so that any step can be replayed.
Random numbers are counter-based, keyed by seed, step and position: they depend neither on the other canvases of a batch
nor on which positions are still masked. Not here: how positions are ranked and chosen (order.py), the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Float32, Int32

if TYPE_CHECKING:
    from ..engine import Proposal
    from .table import Settings

T = TypeVar("T")
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Places = npt.NDArray[np.intp]

NO_POSITIONS: Int32 = np.empty(0, np.int32)
NOTHING = Commits(NO_POSITIONS, NO_POSITIONS)


@dataclass(frozen=True)
class Facts:
    """What a decoder may need to know of the model.

    vocab, forbidden            tokens that may be proposed: all below vocab except int32 forbidden
    canvas_limit                longest that the canvas may become, 0 = as long as it is
    expand_token, delete_token  tokens that stand for two masks and for none; None where the model has them not
    stop_tokens                 tokens that end the text, none where holes are filled
    line_end                    the token of a line end; None where the vocabulary has none
    background                  float32 [vocab] how probable tokens are in an empty canvas; None unless asked for
    """

    vocab: int = 0
    forbidden: Int32 = field(default_factory=lambda: NO_POSITIONS)
    canvas_limit: int = 0
    expand_token: int | None = None
    delete_token: int | None = None
    stop_tokens: tuple[int, ...] = ()
    line_end: int | None = None
    background: Float32 | None = None

    @property
    def allowed(self) -> Int32:
        """The tokens that may be proposed, ascending."""
        return np.setdiff1d(np.arange(self.vocab, dtype=np.int32), self.forbidden)


@dataclass(frozen=True)
class Look:
    """What a decoder asks of the next forward pass.

    rows          int32 [n] positions to score, ascending; at least one
    temperature   instead of the one of the settings
    alternatives  how many of the likeliest tokens are reported for each row
    forbidden     int32 tokens that are not proposed in this pass, besides those that never are
    order         int32 [length] positions in the order in which the model reads them; None = as they stand
    verify        int32 [m] written positions, ascending, whose tokens are scored by rows that do not see them
    """

    rows: Int32
    temperature: float | None = None
    alternatives: int = 0
    forbidden: Int32 | None = None
    order: Int32 | None = None
    verify: Int32 = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class Turn:
    """What a decoder is shown: forward pass number `step` (from 1) scored `rows`; memory is that of its last Move.

    verify, verified   int32, float32 [m]: the positions of Look.verify and how probable their tokens are, unseen
    """

    canvas: Canvas
    rows: Int32
    proposal: Proposal
    step: int
    memory: Any = None
    verify: Int32 = field(default_factory=lambda: NO_POSITIONS)
    verified: Float32 = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def masked(self) -> Bools:
        """Which of the rows are masked."""
        masked: Bools = self.canvas.state[self.rows] == MASKED
        return masked

    @property
    def likeliest(self) -> Iterator[tuple[int, Int32, Float32]]:
        """Of each row its position, and its likeliest tokens with their probabilities, as many as were asked for."""
        answers = self.proposal.alternative_token, self.proposal.alternative_probability
        return zip(self.rows.tolist(), *answers, strict=True)

    def write(self, chosen: Bools | Places, scores: Floats | None = None) -> Commits:
        """Commit the proposed tokens of the chosen rows (a mask, or ascending places, over `rows`).

        scores   of all rows, what they were ranked by; by default the probabilities
        """
        ranked = self.proposal.probability if scores is None else scores
        return Commits(self.rows[chosen], self.proposal.token[chosen], ranked[chosen].astype(np.float32))

    def rewrite(self, write: Bools, mask: Bools, scores: Floats | None = None) -> Commits:
        """Write the proposed tokens at the rows `write`, whatever stands there, and mask the rows `mask` again."""
        chosen = write | mask
        written = self.write(chosen, scores)
        tokens = np.where(mask[chosen], np.int32(self.canvas.mask_token), written.tokens)
        state = np.where(mask[chosen], MASKED, COMMITTED).astype(np.uint8)
        return Commits(written.positions, tokens, written.scores, state)

    def among(self, rows: Bools) -> Turn:
        """The turn as if only these rows had been scored."""
        answers = {each.name: getattr(self.proposal, each.name)[rows] for each in fields(self.proposal)}
        return replace(self, rows=self.rows[rows], proposal=replace(self.proposal, **answers))


@dataclass(frozen=True)
class Move:
    """What a decoder does.

    memory   for the next turn; never changed once handed on
    done     True: the text is finished; False: another pass is wanted whatever the canvas looks like; None: the text
             is finished when nothing is masked, or nothing before its end
    """

    commits: Commits
    memory: Any = None
    done: bool | None = None


class Decoder:
    """The defaults of all decoders: any canvas fits, all masked positions are scored, nothing is done before.

    scores_from   "raw" or "sampled", the distribution that confidences are taken from (engine.Request)
    """

    scores_from: ClassVar[str] = "raw"

    def __init__(self, settings: Settings, seed: int, facts: Facts) -> None:
        self.settings = settings
        self.seed = seed
        self.facts = facts

    def check(self, canvas: Canvas) -> None:
        """Raise OptionError where the settings do not fit the canvas or the model."""

    def room(self, canvas: Canvas) -> int:
        """The longest that the canvas can become, in positions."""
        return len(canvas)

    def shadows(self, canvas: Canvas) -> int:
        """How many positions Look.verify may name: places of the engine that are taken behind the canvas."""
        return 0

    def start(self, canvas: Canvas) -> Commits:
        """What changes before the first forward pass."""
        return NOTHING

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        """What to ask of forward pass number `step` (from 1), while a position is masked or a Move was not done."""
        return Look(canvas.masked)

    def step(self, turn: Turn) -> Move:
        """What to change after a forward pass."""
        raise NotImplementedError

    def settled(self, canvas: Canvas) -> int:
        """The position before which committed tokens stay as they are, while the text goes on."""
        return len(canvas)


class RewritingDecoder(Decoder):
    """A decoder that looks at every position again and may change any of them until the last step."""

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        return Look(canvas.maskable)

    def settled(self, canvas: Canvas) -> int:
        return 0


def stated(value: T | None) -> T:
    """A setting that the decoder's row has."""
    assert value is not None
    return value


def uniform(seed: int, step: int, positions: Int32, stream: int = 0) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per position; other streams are other numbers."""
    if not len(positions):
        return np.empty(0)
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, 0, stream], np.uint64)
    bits = np.random.Philox(key=key, counter=counter)
    drawn: npt.NDArray[np.float64] = np.random.Generator(bits).random(int(positions[-1]) + 1)
    return drawn[positions]
