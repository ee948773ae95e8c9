"""JSON schemas as trees of language.py: those without recursion, which are finite automata.

What is generated is a part of what the schema allows: properties in the order in which they are written, none that
is not named, at most one space after commas and colons. Keywords that are not translated here raise Unsupported, and so
do schemas that allow any value at all. Not here: the spelling of strings and numbers (json_text.py), automata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from . import json_text
from .language import EMPTY, NOTHING, Alt, Members, Node, Repeat, Seq, Text, Unsupported, optional
from .regex import parse
from .schema_merge import ANNOTATIONS, KEYWORDS, merge

Schema = Mapping[str, Any]
_SPACE = optional(Text(b" "))
_DEPTH = 40  # of schemas within schemas


def language(schema: Any, spaced: bool) -> Node:
    """The JSON texts that are generated for `schema`.

    spaced   the vocabulary may have no way to write { and names without spaces between them
    raises   Unsupported
    """
    reader = _Reader(schema, _SPACE if spaced else EMPTY)
    return Seq((reader.gap, reader.read(schema, ())))


class _Reader:
    def __init__(self, root: Any, gap: Node) -> None:
        self.gap = gap
        self._root = root
        self._comma, self._colon = Seq((gap, Text(b","), _SPACE)), Seq((gap, Text(b":"), _SPACE))
        self._depth = 0

    def read(self, schema: Any, inside: tuple[str, ...]) -> Node:
        """inside: the references that lead here."""
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise Unsupported("it allows any value somewhere" if schema is True else "a part of it is no object")
        self._depth += 1
        if self._depth > _DEPTH:
            raise Unsupported(f"it is nested deeper than {_DEPTH}")
        try:
            return self._read({key: value for key, value in schema.items() if key not in ANNOTATIONS}, inside)
        finally:
            self._depth -= 1

    def _read(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Node:
        unknown = next((key for key in schema if key not in KEYWORDS), None)
        if unknown is not None:
            raise Unsupported(f"it uses {unknown}")
        if "$ref" in schema:
            name = schema.pop("$ref")
            if name in inside:
                raise Unsupported("it refers to itself")
            return self.read(self._merged(self._resolve(name), schema), (*inside, name))
        if "allOf" in schema:
            parts = schema.pop("allOf")
            both: Any = schema
            for part in parts:
                both = self._merged(both, part)
            return self.read(both, inside)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                branches = schema.pop(keyword)
                if keyword == "oneOf" and not _apart([self._followed(each) for each in branches]):
                    raise Unsupported("alternatives of its oneOf may hold at the same time")
                return Alt(tuple(self.read(self._merged(schema, each), inside) for each in branches))
        for keyword in ("const", "enum"):
            if keyword in schema:
                values = schema[keyword] if keyword == "enum" else [schema[keyword]]
                if set(schema) - {keyword, "type"}:
                    raise Unsupported(f"it has {keyword} beside other limits")
                return Alt(tuple(self._value(each) for each in values if _is(each, schema.get("type"))))
        kind = schema.get("type") or _guessed(schema)
        if isinstance(kind, list):
            return Alt(tuple(self.read({**schema, "type": each}, inside) for each in kind))
        reader = {"object": self._object, "array": self._array, "string": self._string}.get(kind)
        if reader is not None:
            return reader(schema, inside)
        if kind in ("integer", "number"):
            return _number(schema, kind == "integer")
        if kind == "boolean":
            return Alt((Text(b"true"), Text(b"false")))
        if kind == "null":
            return Text(b"null")
        raise Unsupported(f"it has the type {kind!r}")

    def _object(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Node:
        named, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = schema.get("required", [])
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        wanted = {**named, **{name: more for name in required if name not in named}}
        if not wanted and isinstance(more, Mapping):
            if least > 1:
                raise Unsupported("it has minProperties above 1 for names that may be equal")
            pair = Seq((json_text.quoted(Repeat(json_text.ANY_CHARACTER)), self._colon, self.read(more, inside)))
            return self._braces(Repeat(pair, least, most, self._comma))
        if not wanted and more is not False:
            raise Unsupported("it allows any value somewhere")
        if least > len(set(required)) or (most is not None and most < len(wanted)):
            raise Unsupported("it has minProperties or maxProperties beside named properties")
        pairs = []
        for name, each in wanted.items():
            value = self.read(each, inside)
            pairs.append((Seq((json_text.scalar(name), self._colon, value)), name not in required))
        return self._braces(Members(tuple(pairs), self._comma))

    def _braces(self, members: Node) -> Node:
        return Seq((Text(b"{"), self.gap, members, self.gap, Text(b"}")))

    def _array(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Node:
        first, rest = schema.get("prefixItems", []), schema.get("items", not schema.get("prefixItems"))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if isinstance(rest, list):
            raise Unsupported("its items are a list")
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            return NOTHING
        if schema.get("uniqueItems") and (most is None or most > 1):
            raise Unsupported("it uses uniqueItems")
        first = first if most is None else first[:most]
        more = most is None or most > len(first)
        tail: Node = EMPTY
        if more:
            tail = self._tail(self.read(rest, inside), len(first), least, most)
        for index, each in reversed(list(enumerate(first))):
            item = self.read(each, inside)
            tail = Seq((self._comma, item, tail) if index else (item, tail))
            tail = tail if index < least else optional(tail)
        return Seq((Text(b"["), self.gap, tail, self.gap, Text(b"]")))

    def _tail(self, item: Node, before: int, least: int, most: int | None) -> Node:
        """The items after the first `before` ones."""
        count, end = max(0, least - before), None if most is None else most - before
        if not before:
            return Repeat(item, count, end, self._comma)
        return Repeat(Seq((self._comma, item)), count, end)

    def _string(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Node:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and least > most:
            return NOTHING
        if "pattern" not in schema and "format" not in schema:
            return json_text.quoted(Repeat(json_text.ANY_CHARACTER, least, most))
        if least or most is not None or {"pattern", "format"} <= schema.keys():
            raise Unsupported("it has a pattern or format beside other limits of a string")
        pattern = schema["pattern"] if "pattern" in schema else json_text.FORMATS.get(schema["format"])
        if pattern is None:
            raise Unsupported(f"it has the format {schema['format']!r}")
        if "{," in pattern:
            raise Unsupported("dialects differ about {,n} in its pattern")
        try:
            return json_text.quoted(parse(pattern, json_text.character, search="pattern" in schema))
        except re.error as error:
            raise Unsupported(f"its pattern {pattern!r} is damaged ({error})") from None

    def _value(self, value: Any) -> Node:
        """A fixed value."""
        if isinstance(value, Mapping):
            pairs = [Seq((json_text.scalar(name), self._colon, self._value(each))) for name, each in value.items()]
            return self._braces(Members(tuple((pair, False) for pair in pairs), self._comma))
        if isinstance(value, list):
            items = tuple((self._value(each), False) for each in value)
            return Seq((Text(b"["), self.gap, Members(items, self._comma), self.gap, Text(b"]")))
        return json_text.scalar(value)

    def _merged(self, one: Any, other: Any) -> Any:
        return merge(self._followed(one), self._followed(other))

    def _followed(self, schema: Any) -> Any:
        """The schema, or what it refers to where it does nothing else."""
        for _ in range(_DEPTH):
            if not (isinstance(schema, Mapping) and set(schema) - set(ANNOTATIONS) == {"$ref"}):
                return schema
            schema = self._resolve(schema["$ref"])
        raise Unsupported("it refers to itself")

    def _resolve(self, name: Any) -> Any:
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise Unsupported(f"it refers to {name!r}, which is not in the schema")
        found = self._root
        for step in name.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise Unsupported(f"it refers to {name!r}, which is not in the schema")
            found = found[step]
        return found


def _number(schema: dict[str, Any], whole: bool) -> Node:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if isinstance(above, bool) or isinstance(below, bool):
        raise Unsupported("its exclusive bounds are those of an old draft")
    open_low = above is not None and (low is None or above >= low)
    open_high = below is not None and (high is None or below <= high)
    low, high = above if open_low else low, below if open_high else high
    if low is not None and high is not None and low > high:
        return NOTHING
    if not whole:
        return json_text.number(low, high, open_low, open_high)
    first = None if low is None else math.floor(low) + 1 if open_low else math.ceil(low)
    last = None if high is None else math.ceil(high) - 1 if open_high else math.floor(high)
    return json_text.integer(first, last)


_OF_TYPE: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}


def _is(value: Any, kind: Any) -> bool:
    """Whether a fixed value is of a type, or of one of several; None: of any."""
    if kind is None:
        return True
    if isinstance(kind, list):
        return any(_is(value, each) for each in kind)
    if isinstance(value, bool) or kind not in _OF_TYPE:
        return bool(kind == "boolean")
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, _OF_TYPE[kind])


_MARKS = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def _guessed(schema: dict[str, Any]) -> str:
    """The type that the keywords are about, where none is stated."""
    for kind, marks in _MARKS.items():
        if any(mark in schema for mark in marks):
            return kind
    raise Unsupported("it allows any value somewhere")


def _apart(branches: list[Any]) -> bool:
    """Whether no value can match two of the schemas: each has a type of its own."""
    kinds = [each.get("type") if isinstance(each, Mapping) else None for each in branches]
    alike = ["number" if kind == "integer" else kind for kind in kinds]
    return all(isinstance(kind, str) for kind in kinds) and len(set(alike)) == len(alike)
