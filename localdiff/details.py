"""Per-token uncertainty: when each token of a canvas settled, how probable it was then, what else it might have been.

Marks are kept beside a canvas, one entry per position, and follow it when it grows or shrinks. What they hold is of the
forward pass in whose step the token was written: probability and entropy under the distribution that the decoder ranks
by (with decoders that sample the tempered and filtered one, at temperature 0 the model's own), after guidance, penalty
and bias. Not here: text (page.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import COMMITTED, MASKED, Commits, Float32, Int32

if TYPE_CHECKING:
    from .engine import Proposal


@dataclass(frozen=True)
class Alternative:
    """A token that might have stood there, its text alone, its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenDetail:
    """One token of a text.

    text          what it adds to the text: "" while masked, or where its bytes are half a character
    state         given, settled, fresh (written in the last step), masked
    step          the forward pass in whose step it was written, from 1
    probability   of the token; None where the decoder wrote one of its own choice that was not among the alternatives
    entropy       in nats
    alternatives  likeliest first, with the option alternatives; the token itself is one of them where it is likely
    step, probability and entropy are None where the token is given or masked.
    """

    position: int
    token: int
    text: str
    state: str
    step: int | None
    probability: float | None
    entropy: float | None
    alternatives: tuple[Alternative, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For people and programs: without position and state, and without alternatives where none were asked for."""
        absent = ("position", "state") if self.alternatives else ("position", "state", "alternatives")
        return {name: value for name, value in asdict(self).items() if name not in absent}


@dataclass(frozen=True)
class Marks:
    """step int32 [length], 0 = not written; probability, entropy float32 [length], NaN = unknown;
    alternative_token int32, alternative_probability float32 [length, k], -1 = none."""

    step: Int32
    probability: Float32
    entropy: Float32
    alternative_token: Int32
    alternative_probability: Float32

    @staticmethod
    def empty(length: int, alternatives: int) -> Marks:
        unknown = np.full(length, np.nan, np.float32)
        never, none = np.zeros(length, np.int32), np.full((length, alternatives), -1, np.int32)
        return Marks(never, unknown, unknown, none, np.zeros((length, alternatives), np.float32))

    def after(self, step: int, commits: Commits, rows: Int32, proposal: Proposal) -> Marks:
        """The marks after a denoise step that scored `rows` (ascending) and made `commits`."""
        more = Marks.empty(commits.added, self.alternative_token.shape[1])
        now = Marks(*map(np.concatenate, zip(self._arrays(), more._arrays(), strict=True)))
        state = np.full(len(commits), COMMITTED) if commits.state is None else commits.state
        now.step[commits.positions] = np.where(state == MASKED, 0, step)
        written = (state == COMMITTED) & np.isin(commits.positions, rows)
        positions, tokens = commits.positions[written], commits.tokens[written]
        at = np.searchsorted(rows, positions)
        now.probability[positions] = _probability(tokens, at, proposal)
        now.entropy[positions] = proposal.entropy[at]
        kept = self.alternative_token.shape[1]
        now.alternative_token[positions] = proposal.alternative_token[at, :kept]
        now.alternative_probability[positions] = proposal.alternative_probability[at, :kept]
        if commits.copies is None:
            return now
        copies = np.ones(len(self.step), np.int32)
        copies[commits.positions] = commits.copies
        return Marks(*(np.repeat(array, copies, axis=0) for array in now._arrays()))

    def _arrays(self) -> tuple[Any, ...]:
        return self.step, self.probability, self.entropy, self.alternative_token, self.alternative_probability


def _probability(tokens: Int32, at: Any, proposal: Proposal) -> Float32:
    """Of `tokens` at the rows `at`: as proposed, else as an alternative, else NaN."""
    own = np.where(tokens == proposal.token[at], proposal.probability[at], np.float32(np.nan))
    same = proposal.alternative_token[at] == tokens[:, None]
    listed = np.where(same, proposal.alternative_probability[at], 0).sum(axis=1)
    found: Float32 = np.where(np.isnan(own) & same.any(axis=1), listed, own).astype(np.float32)
    return found
