"""Two JSON schemas that hold at the same time as one: how each keyword is combined is a row of a table.

Where that has no simple answer Unsupported is raised. Not here: what the keywords mean (schema.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .language import Unsupported

ANNOTATIONS = (
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
    "readOnly", "writeOnly",
)  # fmt: skip


def _types(one: Any, other: Any) -> Any:
    lists = [each if isinstance(each, list) else [each] for each in (one, other)]
    both = [kind for kind in lists[0] if kind in lists[1] or (kind == "integer" and "number" in lists[1])]
    both += [kind for kind in lists[1] if kind == "integer" and "number" in lists[0] and kind not in both]
    return both[0] if len(both) == 1 else both


def _both(one: Any, other: Any) -> Any:
    return {"allOf": [one, other]}


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    clashing = {name: _both(one[name], other[name]) for name in one if name in other}
    return {**one, **other, **clashing}


def _values(one: list[Any], other: list[Any]) -> list[Any]:
    return [value for value in one if any(value == each and type(value) is type(each) for each in other)]


_RULES: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _values,
    "properties": _properties,
    "required": lambda one, other: [*one, *(name for name in other if name not in one)],
    "items": _both,
    "uniqueItems": lambda one, other: one or other,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
KEYWORDS = {
    *_RULES, "const", "anyOf", "oneOf", "allOf", "$ref", "additionalProperties", "prefixItems", "pattern", "format",
}  # fmt: skip


def merge(one: Any, other: Any) -> Any:
    """The schema of what both allow."""
    if one is False or other is False:
        return False
    if one is True or other is True:
        return other if one is True else one
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise Unsupported("a part of it is no object")
    _check_named(one, other)
    _check_named(other, one)
    out = dict(one)
    for key, value in other.items():
        if key not in out or key in ANNOTATIONS or out[key] == value:
            out[key] = value
        elif key in _RULES:
            out[key] = _RULES[key](out[key], value)
        elif key == "allOf":
            out[key] = [*out[key], *value]
        else:
            raise Unsupported(f"two limits of {key} hold at the same time")
    return False if out.get("type") == [] else out


def _check_named(closed: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse properties of one part that the other part knows only as additional ones."""
    more = closed.get("additionalProperties", True)
    if more is not True and set(other.get("properties", ())) - set(closed.get("properties", ())):
        raise Unsupported("additionalProperties of one part is about properties of another")
    if "prefixItems" in closed and "items" in other and "prefixItems" not in other:
        raise Unsupported("items of one part is about prefixItems of another")
