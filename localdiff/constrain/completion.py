"""A short text that completes what a matcher has read: the proof that a whole text still fits.

First what was to follow before is tried, all of it or its end, which is right after most tokens; else a search goes
from level to level with a handful of tokens at each: those that close something, the longest, and one for each byte.
States with the same mask count as one at a level. What is found need not be the shortest. Nothing found does not prove
that there is nothing, but the search always ends soon. Not here: what the text is needed for (matching.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..canvas import Int32

if TYPE_CHECKING:
    from llguidance import LLMatcher

_CLOSING = frozenset(b"\"'`)]}>;\n")
_BEAM, _CLOSERS, _LONGEST, _FIRSTS = 16, 6, 4, 12
_TRIED = 4000  # tokens in all

Bools = npt.NDArray[np.bool_]


class Choices:
    """The tokens that may be part of a text.

    usable   bool [vocab]
    spaced   bool [vocab]: those that begin with a space
    """

    def __init__(self, pieces: Mapping[int, bytes], vocab: int) -> None:
        self.usable, self.spaced = np.zeros((2, vocab), bool)
        self._length, self._first = np.zeros((2, vocab), np.int32)
        self._closing = np.zeros(vocab, bool)
        for token, piece in pieces.items():
            self.usable[token] = True
            self._length[token], self._first[token] = len(piece), piece[0]
            self.spaced[token] = piece.startswith(b" ")
            self._closing[token] = _CLOSING.issuperset(piece)

    def mask(self, matcher: LLMatcher) -> Bools:
        """bool [vocab]: the tokens that may follow, those that end the text not among them."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed: Bools = np.unpackbits(bits, count=len(self.usable), bitorder="little").astype(bool)
        return allowed & self.usable

    def some(self, mask: Bools) -> list[int]:
        """A few of the tokens of a mask."""
        allowed = np.flatnonzero(mask).astype(np.int32)
        if len(allowed) <= _CLOSERS + _LONGEST + _FIRSTS:
            return self._closing_first(allowed)
        longest = allowed[np.argsort(-self._length[allowed], kind="stable")]
        _, firsts = np.unique(self._first[longest[::-1]], return_index=True)
        picked = [longest[self._closing[longest]][:_CLOSERS], longest[:_LONGEST], longest[::-1][firsts][:_FIRSTS]]
        return self._closing_first(np.unique(np.concatenate(picked)))

    def _closing_first(self, tokens: Int32) -> list[int]:
        order = np.lexsort((-self._length[tokens], ~self._closing[tokens]))
        found: list[int] = tokens[order].tolist()
        return found


def complete(matcher: LLMatcher, choices: Choices, planned: Sequence[int], room: int) -> list[int] | None:
    """At most `room` tokens after which the text is whole; None where none are found.

    planned   what was to follow before the last tokens were read
    """
    if matcher.is_accepting():
        return []
    for start in range(len(planned) - 1, -1, -1):
        rest = list(planned[start:])
        ahead = matcher.deep_copy()
        if len(rest) <= room and ahead.try_consume_tokens(rest) == len(rest) and ahead.is_accepting():
            return rest
    return _search(matcher, choices, room)


def _search(matcher: LLMatcher, choices: Choices, room: int) -> list[int] | None:
    level: list[tuple[LLMatcher, list[int]]] = [(matcher, [])]
    tried = 0
    while level and tried < _TRIED:
        found: dict[bytes, tuple[LLMatcher, list[int]]] = {}
        for before, tokens in level:
            forced = before.compute_ff_tokens()
            usable = bool(forced) and bool(choices.usable[forced].all())
            for each in [forced] if usable else [[token] for token in choices.some(choices.mask(before))]:
                after = before.deep_copy()
                tried += 1
                if len(tokens) + len(each) > room or after.try_consume_tokens(each) != len(each):
                    continue
                if after.is_accepting():
                    return [*tokens, *each]
                key = after.compute_bitmask()
                if key not in found or len(found[key][1]) > len(tokens) + len(each):
                    found[key] = after, [*tokens, *each]
        level = sorted(found.values(), key=lambda entry: len(entry[1]))[:_BEAM]
    return None
