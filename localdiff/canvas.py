"""Canvas: the tokens being denoised, prompt included, and what is known about each position.

Every position is given (the caller's, never changed), masked (not known yet) or committed (written by a decoder). The
state is kept apart from the tokens, because a genuine token may have the mask token's id. A canvas is immutable:
apply() returns the next one, so that the history of a text is a list of canvases. Not here: text, the engine, policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import OptionError

Int32 = npt.NDArray[np.int32]
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
    """What a decoder writes in one step: positions int32 [n], ascending, and their tokens int32 [n]."""

    positions: Int32
    tokens: Int32

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Canvas:
    """tokens int32 [length], state uint8 [length] of GIVEN, MASKED, COMMITTED; both read-only."""

    tokens: Int32
    state: npt.NDArray[np.uint8]
    mask_token: int

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
        return _frozen(np.array(tokens, np.int32), np.array(state, np.uint8), mask_token)

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
        """The canvas with `commits` written. Only masked positions can be written, and never the mask token."""
        positions = commits.positions
        if np.any(positions[1:] <= positions[:-1]):
            raise ValueError(f"commits are at {positions.tolist()}, expected ascending positions")
        if len(positions) and not 0 <= positions[0] <= positions[-1] < len(self):
            raise ValueError(f"commits are at {positions.tolist()}, expected positions below {len(self)}")
        if np.any(self.state[positions] != MASKED):
            raise ValueError(f"commits are at {positions.tolist()}, expected masked positions only")
        if np.any(commits.tokens == self.mask_token):
            raise ValueError(f"a commit writes the mask token {self.mask_token}, expected a token of the text")
        tokens, state = self.tokens.copy(), self.state.copy()
        tokens[positions] = commits.tokens
        state[positions] = COMMITTED
        return _frozen(tokens, state, self.mask_token)


def _frozen(tokens: Int32, state: npt.NDArray[np.uint8], mask_token: int) -> Canvas:
    tokens.setflags(write=False)
    state.setflags(write=False)
    return Canvas(tokens, state, mask_token)
