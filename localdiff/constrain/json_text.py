"""How JSON writes characters, numbers and fixed values, as trees of language.py.

One spelling of each value is enough for what is to be generated: characters stand for themselves, but for quotes,
backslashes and control characters, which are escaped; numbers have no superfluous zeros. Not here: schemas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from .language import (
    EMPTY,
    LAST,
    Alt,
    Node,
    OneOf,
    Repeat,
    Seq,
    Text,
    Unsupported,
    barren,
    bits,
    characters,
    merged,
    optional,
    spans,
    without,
)

_ESCAPES = {0x22: b'"', 0x5C: b"\\", 0x08: b"b", 0x0C: b"f", 0x0A: b"n", 0x0D: b"r", 0x09: b"t"}
_DIGITS, _NOT_ZERO = OneOf(bits(b"0123456789")), OneOf(bits(b"123456789"))
_FRACTION = Seq((Text(b"."), Repeat(_DIGITS, 1)))
_EXPONENT = Seq((OneOf(bits(b"eE")), optional(OneOf(bits(b"+-"))), Repeat(_DIGITS, 1, 2)))
# strictly between two integers; and with numbers below _EXACT no rounding reaches the next one
_BETWEEN = Seq((Text(b"."), Repeat(Text(b"0"), 0, 3), _NOT_ZERO, Repeat(_DIGITS, 0, 2)))
_EXACT = 10**9


def character(ranges: Iterable[tuple[int, int]]) -> Node:
    """One character of a set inside a JSON string."""
    wanted = merged(ranges)
    escaped = [code for code in _ESCAPES if any(low <= code <= high for low, high in wanted)]
    plain = without(wanted, [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
    parts = [characters(plain)] if plain else []
    if escaped:
        parts.append(Seq((Text(b"\\"), OneOf(bits(b"".join(_ESCAPES[code] for code in escaped))))))
    if not parts:  # other control characters, which text hardly ever needs
        parts = [Text(b"\\u%04x" % code) for low, high in wanted for code in range(low, min(high, 0x1F) + 1)]
    return Alt(tuple(parts))


ANY_CHARACTER = character([(0, LAST)])


def quoted(inside: Node) -> Node:
    return Seq((Text(b'"'), inside, Text(b'"')))


def scalar(value: Any) -> Node:
    """A string, number, boolean or null as it is."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return Text(text.encode())
    except UnicodeEncodeError:  # lone surrogates can be written as escapes only
        return Text(json.dumps(value).encode())


def integer(low: float | None = None, high: float | None = None) -> Node:
    """The integers from `low` to `high`, None = without end."""
    first = None if low is None else math.ceil(low)
    last = None if high is None else math.floor(high)
    if first is None and last is None:
        return Alt((Text(b"0"), Seq((optional(Text(b"-")), _NOT_ZERO, Repeat(_DIGITS)))))
    parts = []
    if last is None or last >= 0:
        parts.append(_natural(max(0, first or 0), last))
    if first is None or first < 0:
        least = 1 if last is None else max(1, -last)
        parts.append(Seq((Text(b"-"), _natural(least, None if first is None else -first))))
    return Alt(tuple(parts))


def _natural(first: int, last: int | None) -> Node:
    """The integers from `first` (at least 0) to `last`."""
    parts: list[Node] = []
    digits = len(str(first))
    while last is None or digits <= len(str(last)):
        low, high = max(first, 0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
        if last is None and digits > len(str(first)):
            parts.append(Seq((_NOT_ZERO, Repeat(_DIGITS, digits - 1))))
            break
        high = high if last is None else min(high, last)
        if low <= high:
            found = spans(str(low).encode(), str(high).encode(), 0x30, 0x39)
            parts += [Seq(tuple(OneOf(each) for each in sequence)) for sequence in found]
        digits += 1
    return Alt(tuple(parts))


def number(
    low: float | None = None, high: float | None = None, open_low: bool = False, open_high: bool = False
) -> Node:
    """The numbers from `low` to `high`, without the ends where they are open; Unsupported where they lie so close
    together that whole steps between them say nothing."""
    if low is None and high is None:
        whole = Seq((optional(Text(b"-")), Alt((Text(b"0"), Seq((_NOT_ZERO, Repeat(_DIGITS)))))))
        return Seq((whole, optional(_FRACTION), optional(_EXPONENT)))
    first = None if low is None else math.ceil(low)
    last = None if high is None else math.floor(high)
    parts = [
        integer(
            None if low is None or first is None else first + (open_low and first == low),
            None if high is None or last is None else last - (open_high and last == high),
        )
    ]
    # n.d lies between n and n + 1, -n.d between -n - 1 and -n
    for sign, bottom, top in ((EMPTY, first, last), (Text(b"-"), _opposite(last), _opposite(first))):
        least, most = max(0, bottom or 0), min(_EXACT, top - 1 if top is not None else _EXACT)
        if least <= most:
            parts.append(Seq((sign, _natural(least, most), _BETWEEN)))
    if all(map(barren, parts)):
        raise Unsupported("the bounds of a number are less than a whole step apart")
    return Alt(tuple(parts))


def _opposite(value: int | None) -> int | None:
    return None if value is None else -value


_DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(Z|[+-](0\d|1[0-2]):[0-5]\d)"
# Texts of a format, a part of those that it allows: enough to be valid
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
    "email": r"[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]{2,10})+",
    "hostname": r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,30}[a-z0-9])?){0,3}",
    "uri": r"https?://[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]{2,10})+(/[A-Za-z0-9_.~-]+)*/?",
}
