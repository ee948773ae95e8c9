"""Infilling: texts with holes, and how long a hole becomes where nobody says.

A text is written as "Once upon a time [[8]] and they all went [[]]." or as a list of strings and Holes. Given text
stays word for word. The length of an open hole is the candidate length for which one forward pass over the still empty
hole gives its likeliest tokens the highest mean log-probability. That is a guess from a single pass, where a length
model would know better; it is made from left to right, with open holes further right at OPEN_LENGTH. Not here:
tokenizing, decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .canvas import Canvas, Hole
from .engine import Proposal
from .errors import OptionError

LENGTHS = (1, 2, 4, 8, 16)  # what an open hole may become
OPEN_LENGTH = 4  # of open holes that are not chosen yet

_HOLE = re.compile(r"\[\[\s*(\d{0,9})\s*\]\]")

Part = list[int] | Hole  # given tokens, or what is to be made


def parse_infill(text: str) -> list[str | Hole]:
    """Cut "a [[3]] b [[]]" into strings and holes; [[]] is a hole whose length the model chooses."""
    parts: list[str | Hole] = []
    at = 0
    for match in _HOLE.finditer(text):
        parts += [text[at : match.start()], Hole(int(match[1]) if match[1] else None)]
        at = match.end()
    return [part for part in [*parts, text[at:]] if part != ""]


def check_parts(parts: Sequence[str | Hole]) -> None:
    """Raise OptionError unless `parts` are strings and holes, at least one of them a hole."""
    wrong = next((part for part in parts if not isinstance(part, str | Hole)), None)
    if wrong is not None:
        raise OptionError(f"infill got a {type(wrong).__name__}, expected strings and holes")
    if not any(isinstance(part, Hole) for part in parts):
        raise OptionError("the text has no hole, expected [[8]] for 8 tokens or [[]] for a length the model chooses")


def choose_lengths(
    parts: Sequence[Part],
    mask_token: int,
    limit: int,
    propose: Callable[[list[tuple[Canvas, range]]], list[Proposal]],
    beam: int = 1,
) -> list[list[Part]]:
    """The parts with every open hole given a length, the likeliest first; all stay within `limit` positions.

    propose   scores the positions of a range for each (canvas, range), without temperature
    beam      how many different choices there are at most
    """
    kept: list[tuple[float, list[Part]]] = [(0.0, list(parts))]
    for index, part in enumerate(parts):
        if isinstance(part, Hole) and part.length is None:
            tried = [(so_far, _with(chosen, index, length)) for so_far, chosen in kept for length in LENGTHS]
            fitting = [each for each in tried if _size(provisional(each[1])) <= limit] or tried[:1]
            asked = [(Canvas.of(provisional(chosen), mask_token), _range(chosen, index)) for _, chosen in fitting]
            scored = [
                (so_far + float(np.log(np.maximum(answer.probability, 1e-30)).mean()), chosen)
                for (so_far, chosen), answer in zip(fitting, propose(asked), strict=True)
            ]
            kept = sorted(scored, key=lambda each: -each[0])[:beam]  # of equals the shorter one comes first
    return [chosen for _, chosen in kept]


def provisional(parts: Sequence[Part]) -> list[Part]:
    """`parts` with OPEN_LENGTH for the open holes."""
    return [Hole(OPEN_LENGTH) if isinstance(part, Hole) and part.length is None else part for part in parts]


def _with(parts: Sequence[Part], index: int, length: int) -> list[Part]:
    return [*parts[:index], Hole(length), *parts[index + 1 :]]


def _range(parts: Sequence[Part], index: int) -> range:
    """The positions of the hole at `index`; the holes before it have lengths."""
    start = _size(parts[:index])
    return range(start, start + _size(parts[index : index + 1]))


def _size(parts: Sequence[Part]) -> int:
    return sum(part.length or 0 if isinstance(part, Hole) else len(part) for part in parts)
