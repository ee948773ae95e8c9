"""Regular expressions as trees of language.py: Python's syntax, read by Python's own parser.

What is no regular language, or depends on what stands around (back references, look-around, word boundaries), and
flags that change the meaning of letters raise Unsupported. \\d, \\w and \\s are ASCII, and what their opposites allow
is what every dialect allows, so that any engine finds the text to match. Not here: automata.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .language import EMPTY, LAST, NOTHING, Alt, Node, Ranges, Repeat, Seq, Unsupported, characters, merged, without

_PARSER = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_REFUSED_FLAGS = re.IGNORECASE | re.MULTILINE | re.LOCALE
_LINE_ENDS: Ranges = [(10, 10), (13, 13), (0x2028, 0x2029)]  # of any dialect
_SPACES: Ranges = [(9, 13), (32, 32)]
_MORE_SPACES: Ranges = [
    (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
]  # fmt: skip
_ALL: Ranges = [(0, LAST)]
_BEYOND: Ranges = [(128, LAST)]
# name -> (what certainly belongs to the class, what may belong to it in some dialect)
_CLASSES: dict[str, tuple[Ranges, Ranges]] = {
    "DIGIT": ([(48, 57)], [(48, 57), *_BEYOND]),
    "WORD": ([(48, 57), (65, 90), (95, 95), (97, 122)], [(48, 57), (65, 90), (95, 95), (97, 122), *_BEYOND]),
    "SPACE": (_SPACES, [*_SPACES, *_MORE_SPACES]),
}

Spelling = Callable[[Ranges], Node]  # how one character of a set is written


def parse(pattern: str, spell: Spelling = characters, search: bool = False) -> Node:
    """The texts that match `pattern` as a whole; with search: in which it is found.

    raises   Unsupported; re.error where it is no regular expression
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what may mean something else in future
        try:
            tree = _PARSER.parse(pattern)
        except (OverflowError, RecursionError) as error:
            raise Unsupported(f"it cannot be read ({error})") from None
    if tree.state.flags & _REFUSED_FLAGS:
        raise Unsupported("it has flags that change what letters mean")
    reader = _Reader(spell, _ALL if tree.state.flags & re.DOTALL else without(_ALL, _LINE_ENDS), search)
    return reader.alternatives(list(tree))


class _Reader:
    def __init__(self, spell: Spelling, any_character: Ranges, search: bool) -> None:
        self._spell = spell
        self._any = any_character
        self._around = Repeat(spell(_ALL)) if search else EMPTY

    def alternatives(self, items: list[Any]) -> Node:
        """A whole pattern: its alternatives may begin with ^ and end with $ each."""
        if len(items) == 1 and _name(items[0]) == "BRANCH":
            return Alt(tuple(self.alternatives(list(each)) for each in items[0][1][1]))
        if len(items) == 1 and _name(items[0]) == "SUBPATTERN" and not (items[0][1][1] or items[0][1][2]):
            return self.alternatives(list(items[0][1][3]))
        begins = bool(items) and _is_anchor(items[0], "AT_BEGINNING", "AT_BEGINNING_STRING")
        items = items[1:] if begins else items
        ends = bool(items) and _is_anchor(items[-1], "AT_END", "AT_END_STRING")
        items = items[:-1] if ends else items
        body = self._sequence(items)
        return Seq((EMPTY if begins else self._around, body, EMPTY if ends else self._around))

    def _sequence(self, items: Iterable[Any]) -> Node:
        return Seq(tuple(self._item(each) for each in items))

    def _item(self, item: Any) -> Node:
        name, value = _name(item), item[1]
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._spell(self._set(name, value))
        if name == "BRANCH":
            return Alt(tuple(self._sequence(each) for each in value[1]))
        if name == "SUBPATTERN" and not (value[1] or value[2]):
            return self._sequence(value[3])
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = value
            endless = most == _PARSER.MAXREPEAT
            return Repeat(self._sequence(body), int(least), None if endless else int(most))
        if name == "FAILURE":
            return NOTHING
        raise Unsupported(f"it uses {_WORDS.get(name, name.lower())}")

    def _set(self, name: str, value: Any) -> Ranges:
        if name == "LITERAL":
            return [(value, value)]
        if name == "NOT_LITERAL":
            return without(_ALL, [(value, value)])
        if name == "ANY":
            return self._any
        negated = bool(value) and _name(value[0]) == "NEGATE"
        certain: Ranges = []
        for each in value[1:] if negated else value:
            certain += _ranges(each, possible=negated)
        return without(_ALL, certain) if negated else merged(certain)


def _ranges(item: Any, possible: bool) -> Ranges:
    """The characters of one entry of a [set]: those that certainly belong to it, or possibly."""
    name, value = _name(item), item[1]
    if name == "LITERAL":
        return [(value, value)]
    if name == "RANGE":
        return [(value[0], value[1])]
    kind = str(value).removeprefix("CATEGORY_")
    opposite = kind.startswith("NOT_")
    sets = _CLASSES[kind.removeprefix("NOT_")]
    return without(_ALL, sets[not possible]) if opposite else sets[possible]


def _is_anchor(item: Any, *names: str) -> bool:
    return _name(item) == "AT" and str(item[1]) in names


def _name(item: Sequence[Any]) -> str:
    return str(item[0])


_WORDS = {
    "AT": "anchors inside the pattern, or word boundaries",
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "GROUPREF": "references to groups",
    "GROUPREF_EXISTS": "references to groups",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
    "SUBPATTERN": "flags",
}
