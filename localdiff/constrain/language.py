"""Regular languages over bytes as trees: what a regex or a JSON schema is turned into, before it is an automaton.

Nodes are immutable and say nothing of tokens. A set of bytes is an int of 256 bits, a set of characters a list of
ranges of code points; characters() writes such a set as UTF-8. Not here: reading regexes (regex.py) and schemas
(schema.py), automata (automaton.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Ranges = list[tuple[int, int]]  # first and last code point, ascending and apart from each other
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_WIDTHS = (0x7F, 0x7FF, 0xFFFF, LAST)  # the last code point of 1, 2, 3 and 4 bytes


class Unsupported(Exception):
    """What is asked for is no regular language, or not one that is translated here; the text says why."""


@dataclass(frozen=True)
class OneOf:
    """One byte of a set."""

    bytes: int


@dataclass(frozen=True)
class Text:
    """These bytes."""

    data: bytes


@dataclass(frozen=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of the parts; without any no text at all."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times (None: without end) the part, `separator` between two of them."""

    part: Node
    least: int = 0
    most: int | None = None
    separator: Node = Text(b"")


@dataclass(frozen=True)
class Members:
    """Parts in this order with `separator` between those that are there; each is (part, may it be left out)."""

    parts: tuple[tuple[Node, bool], ...]
    separator: Node


Node = OneOf | Text | Seq | Alt | Repeat | Members
EMPTY = Text(b"")
NOTHING = Alt(())


def optional(part: Node) -> Node:
    return Alt((part, EMPTY))


def barren(node: Node) -> bool:
    """Whether there is no text at all."""
    if isinstance(node, Repeat):
        return node.least > 0 and barren(node.part)
    if isinstance(node, Members):
        return any(barren(part) and not may_be_absent for part, may_be_absent in node.parts)
    if isinstance(node, Alt):
        return all(map(barren, node.parts))
    return any(map(barren, node.parts)) if isinstance(node, Seq) else node == OneOf(0)


def size(node: Node) -> int:
    """How many states an automaton of `node` is made from, about."""
    if isinstance(node, OneOf):
        return 1
    if isinstance(node, Text):
        return len(node.data)
    if isinstance(node, Repeat):
        copies = max(node.least, 1) if node.most is None else node.most
        return copies * (size(node.part) + size(node.separator) + 2)
    if isinstance(node, Members):
        return sum(size(part) + 3 for part, _ in node.parts) + len(node.parts) * size(node.separator)
    return 2 + sum(map(size, node.parts))


# ---- characters ----


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same code points as ranges that are ascending and apart."""
    out: Ranges = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def without(ranges: Iterable[tuple[int, int]], removed: Iterable[tuple[int, int]]) -> Ranges:
    out = merged(ranges)
    for first, last in removed:
        kept = [((low, min(high, first - 1)), (max(low, last + 1), high)) for low, high in out]
        out = [piece for pair in kept for piece in pair if piece[0] <= piece[1]]
    return out


def bits(values: Iterable[int]) -> int:
    """The set of some bytes."""
    out = 0
    for value in values:
        out |= 1 << value
    return out


def characters(ranges: Iterable[tuple[int, int]]) -> Node:
    """One character of a set, in UTF-8; surrogates are none."""
    single, longer = 0, []
    for low, high in without(ranges, [_SURROGATES]):
        for width, last in enumerate(_WIDTHS):
            first = 0 if width == 0 else _WIDTHS[width - 1] + 1
            if max(low, first) <= min(high, last):
                if width == 0:
                    single |= bits(range(low, min(high, last) + 1))
                else:
                    longer += spans(chr(max(low, first)).encode(), chr(min(high, last)).encode(), 0x80, 0xBF)
    parts: list[Node] = [OneOf(single)] if single else []
    return Alt((*parts, *(Seq(tuple(OneOf(each) for each in sequence)) for sequence in longer)))


def spans(low: bytes, high: bytes, least: int, most: int) -> list[list[int]]:
    """Sequences of byte sets for the texts of one length from `low` to `high`; bytes but the first are least..most."""
    if len(low) == 1:
        return [[bits(range(low[0], high[0] + 1))]]
    if low[0] == high[0]:
        return [[1 << low[0], *rest] for rest in spans(low[1:], high[1:], least, most)]
    rest = len(low) - 1
    lowest, highest = bytes([least] * rest), bytes([most] * rest)
    first, last = low[0], high[0]
    out: list[list[int]] = []
    end: list[list[int]] = []
    if low[1:] != lowest:
        out = [[1 << first, *tail] for tail in spans(low[1:], highest, least, most)]
        first += 1
    if high[1:] != highest:
        end = [[1 << last, *tail] for tail in spans(lowest, high[1:], least, most)]
        last -= 1
    if first <= last:
        out.append([bits(range(first, last + 1)), *([bits(range(least, most + 1))] * rest)])
    return out + end
