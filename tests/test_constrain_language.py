"""Regexes, schemas and numbers as automata, against Python's re, jsonschema and counting; and what is no automaton."""

import itertools
import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from constraint_cases import fits, is_valid, regex_case, schema_case

from localdiff.constrain import json_text
from localdiff.constrain.automaton import ByteAutomaton, compile
from localdiff.constrain.language import LAST, NOTHING, Node, Unsupported, characters
from localdiff.constrain.regex import parse
from localdiff.constrain.schema import language


def accepts(automaton: ByteAutomaton, text: str | bytes) -> bool:
    state = 0
    for byte in text if isinstance(text, bytes) else text.encode():
        state = int(automaton.following[state, automaton.class_of[byte]])
        if state < 0:
            return False
    return bool(automaton.accepting[state])


def some_texts(automaton: ByteAutomaton, rng: np.random.Generator, count: int, length: int = 60) -> list[bytes]:
    """Texts from walks that turn home once they are long."""
    home = np.where(automaton.accepting, 0, 10**6)
    for _ in range(len(home)):
        ahead = np.where(automaton.following >= 0, home[automaton.following], 10**6).min(axis=1) + 1
        shorter = np.minimum(home, ahead)
        if np.array_equal(shorter, home):
            break
        home = shorter
    texts = []
    for _ in range(count if home[0] < 10**6 else 0):
        state, out = 0, bytearray()
        while not (automaton.accepting[state] and (len(out) >= length or rng.random() < 0.2)):
            row = automaton.following[state]
            open_ = [kind for kind in np.flatnonzero(row >= 0) if home[row[kind]] < 10**6]
            if not open_:
                break
            if len(out) >= length:
                open_ = [min(open_, key=lambda kind: home[row[kind]])]
            kind = open_[int(rng.integers(len(open_)))]
            out.append(int(rng.choice(np.flatnonzero(automaton.class_of == kind))))
            state = int(row[kind])
        texts.append(bytes(out))
    return texts


@pytest.mark.parametrize("part", range(3))
def test_automata_of_regexes_accept_what_re_matches(part: int) -> None:
    rng = np.random.default_rng(part)
    for seed in range(part * 40, part * 40 + 40):
        pattern = regex_case(seed)
        automaton = compile(parse(pattern))
        for text in some_texts(automaton, rng, 4, 20) if len(automaton.following) < 800 else ():
            assert fits(text.decode(), pattern), (pattern, text)
        for _ in range(40):  # ASCII, where all dialects mean the same
            text = "".join(rng.choice(list("atheA. _-19[^x\\"), int(rng.integers(0, 7))))
            assert accepts(automaton, text) == fits(text, pattern), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "references"), (r"a(?=b)", "look-around"), (r"(?<!a)b", "look-around"), (r"\bword", "anchors"),
        ("a^b", "anchors"), ("(?i)a", "flags"), ("(?i:a)", "flags"), ("(?m)^a", "flags"),
        ("(a{1,90}){1,900}", "states"),
        ("(a|b)*a(a|b){15}", "states"),
    ],
)  # fmt: skip
def test_what_is_not_regular_or_too_large_is_no_automaton(pattern: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        compile(parse(pattern))


def test_characters_are_utf8_without_surrogates() -> None:
    rng = np.random.default_rng(0)
    edges = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0xFFFFF, LAST]
    for _ in range(60):
        low, high = sorted(rng.choice([*edges, *rng.integers(0, LAST, 4)], 2).tolist())
        automaton = compile(characters([(low, high)]))
        for code in {*edges, low, high, max(0, low - 1), min(LAST, high + 1), (low + high) // 2}:
            written = chr(code).encode("utf-8", "surrogatepass")
            inside = low <= code <= high and not 0xD800 <= code <= 0xDFFF
            assert accepts(automaton, written) == inside, (low, high, code)


@pytest.mark.parametrize("seed", range(30))
def test_integers_within_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = (int(rng.integers(-1500, 1500)) if rng.random() < 0.7 else None for _ in range(2))
    automaton = compile(json_text.integer(low, high))
    numbers = {*range(-120, 120), *rng.integers(-99999, 99999, 300).tolist()}
    numbers |= {edge + step for edge in (low, high) if edge is not None for step in (-1, 0, 1)}
    for value in numbers:
        inside = (low is None or value >= low) and (high is None or value <= high)
        assert accepts(automaton, str(value)) == inside, (low, high, value)
    assert not any(accepts(automaton, text) for text in ("", "-", "01", "-0", "00", "1.0", "+1", " 1", "1e3"))


@pytest.mark.parametrize("seed", range(40))
def test_numbers_within_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = round(float(rng.uniform(-30, 30)), 1) if rng.random() < 0.8 else None
    high = round((low or 0) + float(rng.uniform(0, 40)), 1) if rng.random() < 0.8 else None
    open_low, open_high = bool(low is not None and rng.random() < 0.5), bool(high is not None and rng.random() < 0.5)
    schema = {"exclusiveMinimum" if open_low else "minimum": low, "exclusiveMaximum" if open_high else "maximum": high}
    schema = {key: value for key, value in schema.items() if value is not None}
    try:
        automaton = compile(json_text.number(low, high, open_low, open_high))
    except Unsupported:
        assert high is not None
        assert low is not None
        assert high - low < 2
        return
    validator = jsonschema.Draft202012Validator(schema)
    texts = some_texts(automaton, rng, 100, 12)
    assert texts
    for text in texts:
        assert validator.is_valid(json.loads(text)), (schema, text)


TABLE: list[tuple[Any, list[str], list[str]]] = [  # schema, texts that it generates, texts that it must not
    ({"type": "string"}, ['""', '"a"', '"é🙂"', r'"\""', r'"\\ \n\t"'], ["", '"', '"\n"', r'"\x"', "a", '"a" ']),
    ({"type": "string", "minLength": 1, "maxLength": 2}, ['"é"', r'"\"\""', '"🙂🙂"'], ['""', '"abc"', r'"\"\"\""']),
    ({"type": "string", "pattern": "b+"}, ['"abba"', '"b"'], ['"a"', '""']),
    ({"type": "string", "pattern": "^a|b$"}, ['"a9"', '"9b"'], ['"9a"', '"b9"']),
    ({"type": "string", "pattern": '^["\\\\]$'}, [r'"\""', r'"\\"'], ['"""', '"a"']),
    ({"type": "string", "pattern": "^[\\x00-\\x02]$"}, [r'"\u0001"'], ['"\x01"']),
    ({"enum": ["é", 'a"', None, 1.5, {"a": [1, {}]}]}, ['"é"', r'"a\""', "null", "1.5", '{"a": [1,{}]}'], ["1", "{}"]),
    ({"const": "\ud800"}, ['"\\ud800"'], ['"d800"']),
    ({"enum": [1, "1", True], "type": ["string", "boolean"]}, ['"1"', "true"], ["1"]),
    ({"type": "integer"}, ["0", "-7", "120"], ["-0", "01", "1.5", "1e5"]),
    ({"type": "number"}, ["0", "-0.5", "1e5", "2.5E-10"], ["1.", ".5", "1e500", "NaN"]),
    ({"type": "integer", "exclusiveMinimum": 2.5, "maximum": 4}, ["3", "4"], ["2", "5"]),
    ({"type": "array", "items": {"type": "null"}}, ["[]", "[null]", "[null, null,null]"], ["[null,]", "[,]", "[1]"]),
    ({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3}, ["[null, null]"], ["[null]", "[]"]),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1},
        ["[1]", "[1, 2]", "[1,2,3,3]"],
        ["[]", "[2]", "[1, 3]"],
    ),
    ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, ["[]", "[1]"], ["[1, 1]"]),
    (
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
        ['{"b": 2}', '{"a":1, "b":2}', '{"b":2,"c":3}', '{"a": 1, "b": 2, "c": 3}'],
        ["{}", '{"a":1}', '{"b":2,}', '{,"b":2}', '{"b":2 "c":3}', '{"c":3,"b":2}'],
    ),
    ({"type": "object", "properties": {"a": False, "b": {"const": 1}}}, ["{}", '{"b":1}'], ['{"a":1}']),
    ({"type": "object", "additionalProperties": {"type": "null"}}, ["{}", '{"x": null, "":null}'], ['{"x":1}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"x":1}']),
    ({"allOf": [{"minimum": 3}, {"maximum": 4}], "type": "integer"}, ["3", "4"], ["2", "5"]),
    (
        {"$defs": {"a/b": {"type": "null"}}, "type": "array", "items": {"$ref": "#/$defs/a~1b"}, "maxItems": 1},
        ["[null]", "[]"],
        ["[1]"],
    ),
    ({"oneOf": [{"type": "null"}, {"type": "integer", "minimum": 5}]}, ["null", "5"], ["4"]),
    ({"type": ["null", "boolean"]}, ["null", "true", "false"], ["0"]),
    ({"type": "string", "format": "date"}, ['"2026-02-28"'], ['"2026-13-01"', '"2026-02-30"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "yes", "no"), TABLE)
def test_schemas_generate_what_is_valid_and_nothing_else(schema: Any, yes: list[str], no: list[str]) -> None:
    automaton = compile(language(schema, False))
    assert all(accepts(automaton, text) for text in yes), [text for text in yes if not accepts(automaton, text)]
    assert not any(accepts(automaton, text) for text in no), [text for text in no if accepts(automaton, text)]
    spaced = compile(language(schema, True))
    assert all(accepts(spaced, text) for text in yes)


@pytest.mark.parametrize("seed", range(60))
def test_everything_that_a_schema_generates_is_valid(seed: int) -> None:
    schema = schema_case(seed)
    automaton = compile(language(schema, bool(seed % 2)))
    for text in some_texts(automaton, np.random.default_rng(seed), 8):
        assert is_valid(text.decode(), schema), (schema, text)


@pytest.mark.parametrize(
    "schema",
    [False, {"enum": []}, {"type": "string", "minLength": 3, "maxLength": 2}, {"anyOf": []},
     {"type": "integer", "minimum": 2, "maximum": 1}, {"type": "array", "items": False, "minItems": 1},
     {"allOf": [{"type": "string"}, {"type": "null"}]},
     {"type": "object", "properties": {"a": False}, "required": ["a"]}, {"enum": ["a"], "type": "integer"},
     {"type": "object", "required": ["a"], "additionalProperties": False}],
)  # fmt: skip
def test_schemas_that_nothing_satisfies_have_no_text(schema: Any) -> None:
    assert not some_texts(compile(language(schema, False)), np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({}, "any value"), (True, "any value"), ({"type": "object"}, "any value"), ({"type": "array"}, "any value"),
        ({"$ref": "#"}, "refers to itself"), ({"$ref": "http://x"}, "not in the schema"), ({"$ref": "#/a/b"}, "not in"),
        ({"type": "array", "items": {"$ref": "#"}}, "refers to itself"), ({"not": {}}, "it uses not"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"), ({"type": "text"}, "the type 'text'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "beside other limits"),
        ({"type": "string", "format": "iri"}, "format 'iri'"), ({"type": "string", "pattern": "(a"}, "is damaged"),
        ({"type": "array", "items": {"type": "string", "maxLength": 900}, "minItems": 900}, "states"),
        ({"type": "number", "minimum": 0.1, "maximum": 0.2}, "less than a whole step"),
        ({"allOf": [{"items": {}, "prefixItems": [{}]}, {"items": {}}]}, "prefixItems of another"),
        ({"type": "object", "properties": {"a": {"const": 1}}, "patternProperties": {}}, "patternProperties"),
    ],
)  # fmt: skip
def test_schemas_that_are_no_automata_say_why(schema: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        compile(language(schema, False))


def test_a_deep_schema_ends_soon() -> None:
    schema: Any = {"type": "null"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Unsupported, match="nested deeper"):
        language(schema, False)


@pytest.mark.parametrize("seed", range(20))
def test_texts_that_are_avoided_are_in_no_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pattern = ("[abc]*", "(ab|c)*", "a{2,4}(b|c)*", "(a|bc)+")[seed % 4]
    avoided = ["".join(rng.choice(list("abc"), rng.integers(1, 4))) for _ in range(rng.integers(1, 4))]
    automaton = compile(parse(pattern)).avoiding([text.encode() for text in avoided])
    for length in range(6):
        for letters in itertools.product("abcd", repeat=length):
            text = "".join(letters)
            expected = bool(re.fullmatch(pattern, text)) and not any(each in text for each in avoided)
            assert accepts(automaton, text) == expected, (text, avoided)


def test_what_is_avoided_may_be_too_much() -> None:
    with pytest.raises(Unsupported, match="more than 6000 states"):
        compile(parse("[abc]*")).avoiding([b"abc" * 2100])


def test_a_space_at_the_beginning_can_be_swallowed() -> None:
    for node, texts in ((parse("ab|c"), ["ab", "c"]), (parse("[a-z ]b"), ["ab", " b"]), (parse(" *x"), ["x", "  x"])):
        plain, swallowing = compile(node), compile(node).swallowing_space()
        for text in itertools.chain(texts, ["", "b", " ", "x ", "abc"]):
            for given in (text, " " + text):
                assert accepts(swallowing, given) == accepts(plain, given.removeprefix(" ")), (text, given)
    assert not accepts(compile(NOTHING).swallowing_space(), " ")


def test_what_must_follow_is_known() -> None:
    node: Node = parse("abc(d|ef)g?é")
    assert compile(node).forced(0, 99) == (b"abc", False)
    assert compile(parse("né")).forced(0, 99) == ("né".encode(), True)
    assert compile(parse("né")).forced(0, 2) == ("né".encode()[:2], False)
    assert compile(parse("")).forced(0, 99) == (b"", True)
    assert re.fullmatch("a+", "a")
    assert compile(parse("a+")).forced(0, 99) == (b"a", False)
