"""Token healing: where a hole begins or ends inside a word, the given text next to it is tokenised with the hole.

"Once upon a ti[[2]]" gives the token " ti", after which a model that learnt " time" as one token hardly expects "me".
So the tokens of the partial word are replaced by one that begins (before a hole; ends, after one) with the same
characters and reaches into the hole, where the model thinks it likelier, in the masked place, than the token that stood
there: one forward pass for all boundaries. Given characters stay as they are; only their tokens may change. Not here:
boundaries where the text itself says that a word ends, by a space or a mark; the lengths of holes (infill.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .canvas import Canvas, Hole, Int32
from .infill import Part, provisional
from .text import Tokenizer

WORD_TOKENS = 4  # of a partial word, at most


@dataclass(frozen=True)
class Reach:
    """How far given tokens reach into a hole: whether those before and after it do, and their given characters."""

    before: bool = False
    after: bool = False
    before_text: str = ""
    after_text: str = ""


@dataclass(frozen=True)
class Boundary:
    """The edge of a hole inside a word.

    piece    which of the parts the word's tokens are in
    hole     which part is the hole
    before   whether the tokens are before the hole
    tokens   the partial word, at the end (before) or the beginning of its part
    text     its bytes
    allowed  int32 tokens that may stand for it: first the one that stands there, then those that reach further
    """

    piece: int
    hole: int
    before: bool
    tokens: tuple[int, ...]
    text: bytes
    allowed: Int32

    def healed(self, part: list[int], token: int) -> list[int]:
        """The tokens of the part with `token` in place of the partial word."""
        count = len(self.tokens)
        return [*part[:-count], token] if self.before else [token, *part[count:]]


Ask = Callable[
    [list[tuple[Canvas, int, Int32]]], list[int]
]  # canvas, masked position, allowed tokens -> likeliest token


def heal(
    parts: Sequence[Part],
    texts: Sequence[str | None],
    fixed: int,
    tokenizer: Tokenizer,
    never: frozenset[int],
    mask_token: int,
    ask: Ask,
) -> tuple[list[Part], dict[int, Reach]]:
    """The parts with healed tokens, and by part how far they reach into the holes.

    texts   of the given parts, None for holes
    fixed   how many tokens at the beginning of the first part stand for no text
    never   tokens that do not reach into a hole
    """
    found = _boundaries(parts, texts, fixed, tokenizer, never)
    if not found:
        return list(parts), {}
    answers = ask([_question(parts, boundary, mask_token) for boundary in found])
    healed, reaches = list(parts), dict[int, Reach]()
    for boundary, token in zip(found, answers, strict=True):
        part = healed[boundary.piece]
        assert isinstance(part, list)
        if token == boundary.allowed[0]:
            continue
        healed[boundary.piece] = boundary.healed(part, token)
        text, known = boundary.text.decode(), reaches.get(boundary.hole, Reach())
        reaches[boundary.hole] = (
            replace(known, before=True, before_text=text)
            if boundary.before
            else replace(known, after=True, after_text=text)
        )
    return healed, reaches


def _boundaries(
    parts: Sequence[Part], texts: Sequence[str | None], fixed: int, tokenizer: Tokenizer, never: frozenset[int]
) -> list[Boundary]:
    """The edges of holes inside words for which there are tokens that reach further, no two with the same tokens."""
    found: list[Boundary] = []
    for hole, part in enumerate(parts):
        if not isinstance(part, Hole):
            continue
        for piece, before in ((hole - 1, True), (hole + 1, False)):
            if not 0 <= piece < len(parts) or not (text := texts[piece]):
                continue
            tokens = parts[piece]
            assert isinstance(tokens, list)
            if not (text[-1] if before else text[0]).isalnum():
                continue
            free = tokens[fixed if piece == 0 else 0 :]
            used = len(found[-1].tokens) if found and found[-1].piece == piece else 0  # by the hole before it
            boundary = _boundary(piece, hole, before, free[used:], tokenizer, never)
            found += [] if boundary is None else [boundary]
    return found


def _boundary(
    piece: int, hole: int, before: bool, tokens: list[int], tokenizer: Tokenizer, never: frozenset[int]
) -> Boundary | None:
    """The longest partial word that a single token can stand for and reach further."""
    pieces = tokenizer.pieces
    for count in range(_word(tokens, before, pieces), 0, -1):
        word = tokens[-count:] if before else tokens[:count]
        text = b"".join(pieces[token] for token in word)
        if any(tokenizer.is_special(token) for token in word) or not _is_text(text):
            continue
        longer = tokenizer.beginning_with(text) if before else tokenizer.ending_with(text)
        further = [token for token in longer if token not in never]
        if further:
            allowed = np.array([word[0] if before else word[-1], *further], np.int32)
            return Boundary(piece, hole, before, tuple(word), text, allowed)
    return None


def _word(tokens: list[int], before: bool, pieces: Sequence[bytes]) -> int:
    """How many tokens the word at the end (before) or the beginning of the tokens has."""
    most = min(len(tokens), WORD_TOKENS)
    for count in range(1, most):
        edge, inner = (tokens[-count], tokens[-count - 1]) if before else (tokens[count], tokens[count - 1])
        begins = pieces[edge][:1].isspace() or not _is_word(pieces[inner][-1:] if before else pieces[edge][:1])
        if begins:
            return count
    return most


def _question(parts: Sequence[Part], boundary: Boundary, mask_token: int) -> tuple[Canvas, int, Int32]:
    """The canvas with one mask in place of the partial word, and where it is."""
    pieces = provisional(parts)
    part = pieces[boundary.piece]
    assert isinstance(part, list)
    left = part[: -len(boundary.tokens)] if boundary.before else part[len(boundary.tokens) :]
    around: list[Part] = [left, Hole(1)] if boundary.before else [Hole(1), left]
    pieces[boundary.piece : boundary.piece + 1] = around
    at = boundary.piece + (1 if boundary.before else 0)
    return Canvas.of(pieces, mask_token), len(Canvas.of(pieces[:at], mask_token)), boundary.allowed


def _is_word(character: bytes) -> bool:
    """Whether a byte belongs to a word: letters and digits, and whatever is not ASCII."""
    return character.isalnum() or character >= b"\x80"


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
