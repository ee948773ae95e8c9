"""Infilling: texts with holes, and how long a hole becomes where nobody says.

A text is written as "Once upon a time [[8]] and they all went [[]]." or as a list of strings and Holes. Given text
stays word for word. The length of an open hole is the candidate length for which one forward pass, in which the hole
and the FOLLOWING given tokens behind it are masked, finds these tokens likeliest: where the hole is too long or too
short they are not what comes next. Where nothing is given behind it, the one whose own likeliest tokens have the
highest mean log-probability. That is a guess from a single pass, where a length model would know better; it is made
from left to right, with open holes further right at OPEN_LENGTH. Not here: tokenizing, decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .canvas import Canvas, Float32, Hole
from .errors import OptionError

LENGTHS = (1, 2, 4, 8, 16)  # what an open hole may become
OPEN_LENGTH = 4  # of open holes that are not chosen yet
FOLLOWING = 3

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
    look: Callable[[list[tuple[Canvas, range]]], list[Float32]],
    beam: int = 1,
    lengths: Sequence[int] = LENGTHS,
) -> list[list[Part]]:
    """The parts with every open hole given a length, the likeliest first; all stay within `limit` positions.

    look      gives the logits float32 [n, vocab] of the positions of a range for each (canvas, range)
    beam      how many different choices there are at most
    lengths   what an open hole may become, ascending
    """
    kept: list[tuple[float, list[Part]]] = [(0.0, list(parts))]
    for index, part in enumerate(parts):
        if isinstance(part, Hole) and part.length is None:
            tried = [(so_far, _with(chosen, index, length)) for so_far, chosen in kept for length in lengths]
            fitting = [each for each in tried if _size(provisional(each[1])) <= limit] or tried[:1]
            following = _following(parts, index)
            answers = look([_question(chosen, index, len(following), mask_token) for _, chosen in fitting])
            scored = [
                (so_far + _fit(answer, following), chosen)
                for (so_far, chosen), answer in zip(fitting, answers, strict=True)
            ]
            kept = sorted(scored, key=lambda each: -each[0])[:beam]  # of equals the shorter one comes first
    return [chosen for _, chosen in kept]


def provisional(parts: Sequence[Part]) -> list[Part]:
    """`parts` with OPEN_LENGTH for the open holes."""
    return [Hole(OPEN_LENGTH) if isinstance(part, Hole) and part.length is None else part for part in parts]


def _with(parts: Sequence[Part], index: int, length: int) -> list[Part]:
    return [*parts[:index], Hole(length), *parts[index + 1 :]]


def _following(parts: Sequence[Part], index: int) -> list[int]:
    """The first given tokens behind the hole at `index`."""
    behind = parts[index + 1] if index + 1 < len(parts) else []
    return [] if isinstance(behind, Hole) else behind[:FOLLOWING]


def _question(parts: Sequence[Part], index: int, masked: int, mask_token: int) -> tuple[Canvas, range]:
    """The canvas with `masked` given tokens behind the hole masked too, and where the hole and these stand."""
    pieces, start = provisional(parts), _size(parts[:index])
    if masked:
        behind = pieces[index + 1]
        assert isinstance(behind, list)
        pieces[index + 1 : index + 2] = [Hole(masked), behind[masked:]]
    return Canvas.of(pieces, mask_token), range(start, start + _size(parts[index : index + 1]) + masked)


def _fit(logits: Float32, following: Sequence[int]) -> float:
    """How well the text goes on after a hole of this length, or fills it, in nats."""
    centred = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    if not following:
        return float(logs.max(axis=1).mean())
    behind = logs[-len(following) :]
    return float(behind[np.arange(len(following)), following].sum())


def _size(parts: Sequence[Part]) -> int:
    return sum(part.length or 0 if isinstance(part, Hole) else len(part) for part in parts)
