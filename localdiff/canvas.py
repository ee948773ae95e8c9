"""Canvas: the tokens being denoised, prompt included, and what is known about each position.

Every position is given (the caller's, never changed), masked (not known yet) or committed (written by a decoder). The
state is kept apart from the tokens, because a genuine token may have the mask token's id, and a masked position may
show the model a random token. A canvas is immutable: apply() returns the next one, so that the history of a text is a
list of canvases, or of commits. Not here: text, the engine, policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import OptionError

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
GIVEN, MASKED, COMMITTED = 0, 1, 2


@dataclass(frozen=True)
class Hole:
    """A place to fill in; length is its number of tokens, None where the model shall choose."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and (isinstance(self.length, bool) or not isinstance(self.length, int)):
            raise OptionError(f"the length of a hole is {self.length!r}, expected a whole number of tokens or None")
        if self.length is not None and self.length < 1:
            raise OptionError(f"the length of a hole is {self.length}, expected at least 1 token")


@dataclass(frozen=True)
class Commits:
    """What one denoise step changes; applied to the canvas before it, it gives the canvas after it.

    positions  int32 [n]    ascending
    tokens     int32 [n]    what is written there
    scores     float32 [n]  what the decoder ranked or tested them by, higher = surer; None where it looked at none
    state      uint8 [n]    MASKED (back to unknown) or COMMITTED; None = masked positions only, all committed now
    copies     int32 [n]    how many times the position stands there afterwards: 0 removes it; None = 1 each
    added      masks that are added at the end of the canvas first; the changes may be there too
    """

    positions: Int32
    tokens: Int32
    scores: Float32 | None = None
    state: UInt8 | None = None
    copies: Int32 | None = None
    added: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def written(self) -> Int32:
        """The positions that hold a token afterwards, as they are numbered afterwards."""
        kept = np.ones(len(self), bool) if self.state is None else self.state == COMMITTED
        copies = np.ones(len(self), np.int32) if self.copies is None else self.copies
        before = np.cumsum(copies - 1) - (copies - 1)  # what the earlier changes add to the canvas
        written: Int32 = (self.positions + before)[kept & (copies == 1)].astype(np.int32)
        return written

    def together(self, other: Commits) -> Commits:
        """These and other changes, at different positions, as one; ValueError where one of them copies positions."""
        if self.copies is not None or other.copies is not None:
            raise ValueError("commits that copy positions cannot be joined with others")
        if not len(other):
            return self
        order = np.argsort(np.concatenate([self.positions, other.positions]), kind="stable")

        def joined(name: str, absent: float) -> npt.NDArray[Any]:
            parts = [getattr(each, name) for each in (self, other)]
            sizes = len(self), len(other)
            filled = [np.full(size, absent) if part is None else part for part, size in zip(parts, sizes, strict=True)]
            return np.concatenate(filled)[order]

        return Commits(
            joined("positions", 0).astype(np.int32),
            joined("tokens", 0).astype(np.int32),
            joined("scores", np.nan).astype(np.float32),
            None if self.state is None and other.state is None else joined("state", COMMITTED).astype(np.uint8),
        )


@dataclass(frozen=True)
class Canvas:
    """The canvas at one moment; the arrays are read-only.

    tokens  int32 [length]
    state   uint8 [length]  GIVEN, MASKED, COMMITTED
    origin  int32 [length]  where the position was in the first canvas of this text; copies share one; never falling
    """

    tokens: Int32
    state: UInt8
    mask_token: int
    origin: Int32

    @staticmethod
    def of(parts: Sequence[Sequence[int] | Hole], mask_token: int) -> Canvas:
        """Join given tokens and holes of known length."""
        tokens: list[int] = []
        state: list[int] = []
        for part in parts:
            if isinstance(part, Hole):
                assert part.length is not None, "lengths are chosen before a canvas is made"
                tokens += [mask_token] * part.length
                state += [MASKED] * part.length
            else:
                tokens += part
                state += [GIVEN] * len(part)
        return Canvas.begun(tokens, state, mask_token)

    @staticmethod
    def begun(tokens: Sequence[int], state: Sequence[int], mask_token: int) -> Canvas:
        """The first canvas of a text."""
        origin = np.arange(len(tokens), dtype=np.int32)
        return _frozen(np.array(tokens, np.int32), np.array(state, np.uint8), mask_token, origin)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def masked(self) -> Int32:
        """Positions not known yet, ascending."""
        return np.flatnonzero(self.state == MASKED).astype(np.int32)

    @property
    def maskable(self) -> Int32:
        """Positions that are not given, ascending: masked at the start, masked or committed now."""
        return np.flatnonzero(self.state != GIVEN).astype(np.int32)

    def apply(self, commits: Commits) -> Canvas:
        """The canvas with `commits` applied. Given positions never change; ValueError where commits say otherwise."""
        positions = commits.positions
        if commits.added:
            return self.longer(commits.added).apply(replace(commits, added=0))
        if np.any(positions[1:] <= positions[:-1]):
            raise ValueError(f"commits are at {positions.tolist()}, expected ascending positions")
        if len(positions) and not 0 <= positions[0] <= positions[-1] < len(self):
            raise ValueError(f"commits are at {positions.tolist()}, expected positions below {len(self)}")
        if commits.state is None and np.any(self.state[positions] != MASKED):
            raise ValueError(f"commits are at {positions.tolist()}, expected masked positions only")
        if np.any(self.state[positions] == GIVEN):
            raise ValueError(f"commits are at {positions.tolist()}, expected no given positions")
        settled = np.full(len(positions), COMMITTED, np.uint8) if commits.state is None else commits.state
        kept = settled == COMMITTED if commits.copies is None else (settled == COMMITTED) & (commits.copies > 0)
        if np.any(kept & (commits.tokens == self.mask_token)):
            raise ValueError(f"a commit writes the mask token {self.mask_token}, expected a token of the text")
        tokens, state = self.tokens.copy(), self.state.copy()
        tokens[positions] = commits.tokens
        state[positions] = settled
        if commits.copies is None:
            return _frozen(tokens, state, self.mask_token, self.origin)
        copies = np.ones(len(self), np.int32)
        copies[positions] = commits.copies
        tokens, state, origin = (np.repeat(each, copies) for each in (tokens, state, self.origin))
        return _frozen(tokens, state, self.mask_token, origin)

    def longer(self, added: int) -> Canvas:
        """The canvas with masks added at its end."""
        tokens = np.pad(self.tokens, (0, added), constant_values=self.mask_token)
        state = np.pad(self.state, (0, added), constant_values=MASKED)
        following = self.origin[-1] + np.arange(1, added + 1, dtype=np.int32)
        return _frozen(tokens, state, self.mask_token, np.concatenate([self.origin, following]))

    def up_to(self, end: int) -> Canvas:
        """The positions before `end`."""
        return Canvas(self.tokens[:end], self.state[:end], self.mask_token, self.origin[:end])

    def settled_before(self, position: int) -> Canvas:
        """The canvas as if everything before `position` had been given."""
        state = self.state.copy()
        state[:position] = GIVEN
        return _frozen(self.tokens, state, self.mask_token, self.origin)


def _frozen(tokens: Int32, state: UInt8, mask_token: int, origin: Int32) -> Canvas:
    for array in (tokens, state, origin):
        array.setflags(write=False)
    return Canvas(tokens, state, mask_token, origin)
