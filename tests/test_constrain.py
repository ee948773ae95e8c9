"""Constraints on canvases: every decoder on a model that proposes noise, every kind of vocabulary, and what is refused.
The dynamic programme itself is in test_constrain_lattice.py."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from constraint_cases import (
    bytes_vocabulary,
    fits,
    is_valid,
    regex_case,
    schema_case,
    spaces_vocabulary,
    words_vocabulary,
)
from fake import FakeEngine, point_mass, random_table

from localdiff.canvas import GIVEN, Hole
from localdiff.decode.table import DECODERS
from localdiff.errors import OptionError
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.sessions import SessionPool
from localdiff.spec import DiffusionSpec

JSON = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -5, "maximum": 12},
        "s": {"type": "string", "maxLength": 4},
        "l": {"type": "array", "items": {"enum": ["é", True]}, "maxItems": 2},
    },
    "required": ["n"],
    "additionalProperties": False,
}


def noisy(metadata: dict[str, Any], length: int = 96, spread: float = 3.0, **spec: Any) -> Model:
    """A model of random logits with this vocabulary."""
    vocab = len(metadata["tokenizer.ggml.tokens"])
    mask = metadata["tokenizer.ggml.mask_token_id"]
    engine = FakeEngine(random_table(vocab, spread), vocab, length)
    record = DiffusionSpec(mask, **({"logit_shift": False} | spec))
    return Model(engine, metadata, record, Path("fake.gguf"))  # type: ignore[arg-type]


def takes(name: str, **options: Any) -> bool:
    try:
        noisy(bytes_vocabulary(), **spec_for(name)).compose("x", GenerateOptions(decoder=name, regex="a", **options))
    except OptionError:
        return False
    return True


def spec_for(name: str) -> dict[str, Any]:
    return {"attention": "causal"} if "reorders" in DECODERS[name].traits else {}


WRITING = [name for name in DECODERS if takes(name)]


def test_decoders_that_write_once_take_constraints() -> None:
    assert {"llada", "threshold", "topk", "dream", "klass", "random-keep", "eb-sampler", "wedlm"} <= set(WRITING)
    assert not {"rdm", "p2", "remdm", "llada2.1", "entropy-bound", "dreamon", "daedal", "credit"} & set(WRITING)


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_decoder_writes_what_matches(name: str, temperature: float) -> None:
    model = noisy(bytes_vocabulary(), **spec_for(name))
    options = {"decoder": name, "temperature": temperature, "top_p": 0.9}
    for seed in range(2):
        stream = model.stream("Say hello", json_schema=JSON, seed=seed, max_new_tokens=24, **options)
        for event in stream:
            given = event.canvas.state == GIVEN
            assert event.canvas.tokens[given].tolist() == model.tokenize("Say hello")
        assert is_valid(stream.result.text, JSON)
    texts = [model.generate("", regex=r"(\w+ ){2,4}end\.", seed=7, max_new_tokens=18, **options).text for _ in range(2)]
    assert fits(texts[0], r"(\w+ ){2,4}end\.")
    assert texts[0] == texts[1]


@pytest.mark.parametrize("cache", ["exact", "prefix", "dual", "dllm"])
def test_caches_and_drift_reports_go_with_constraints(cache: str) -> None:
    out = noisy(bytes_vocabulary()).generate(
        "", regex="a(b|c){10,20}", decoder="threshold", cache=cache, report_drift=cache != "exact", max_new_tokens=30,
        seed=1,
    )  # fmt: skip
    assert fits(out.text, "a(b|c){10,20}")
    assert out.decoder["constraint"] == "regex"


MATRIX: list[tuple[Callable[[], dict[str, Any]], list[str]]] = [
    (bytes_vocabulary, ["(hello|hell)o?!", "é+🙂", " ?a b", r"\s\d{3}", "", "[^a]{3}"]),
    (spaces_vocabulary, ["the|a b", "é{2}🙂", " +x", "(ab)+ 12", "", " ", "[^a]{3}"]),
    (words_vocabulary, ["red( green)*", "red(a|b)*", "a(b)+ 1", "12?", r"(red|green)\. a"]),
]


@pytest.mark.parametrize(("vocabulary", "patterns"), MATRIX)
@pytest.mark.parametrize("prompt", ["", "a"])
def test_texts_match_with_vocabularies_of_every_kind(vocabulary: Any, patterns: list[str], prompt: str) -> None:
    for seed, pattern in enumerate(patterns):
        model = noisy(vocabulary())
        options = {"regex": pattern, "max_new_tokens": 12, "seed": seed, "decoder": "threshold"}
        assert fits(model.generate(prompt, **options).text, pattern), pattern


def test_what_a_vocabulary_cannot_write_is_refused() -> None:
    with pytest.raises(OptionError, match="no text that this vocabulary can write matches the regex 'z'"):
        noisy(words_vocabulary()).generate("", regex="z")


def test_json_of_words_has_spaces_where_json_allows_them() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    texts = {
        noisy(words_vocabulary()).generate("", json_schema=schema, max_new_tokens=16, seed=s).text for s in range(4)
    }
    assert all(is_valid(text, schema) for text in texts)


@pytest.mark.parametrize("seed", range(12))
def test_random_schemas_on_noise(seed: int) -> None:
    schema = schema_case(seed)
    options = {"decoder": WRITING[seed % len(WRITING)], "seed": seed, "temperature": seed % 2}
    model = noisy(bytes_vocabulary(), 96, **spec_for(options["decoder"]))
    assert is_valid(model.generate("", json_schema=schema, max_new_tokens=80, **options).text, schema)


@pytest.mark.parametrize("seed", range(8))
def test_random_regexes_on_noise(seed: int) -> None:
    pattern = regex_case(seed)
    model = noisy(bytes_vocabulary())
    out = model.generate("x", regex=pattern, max_new_tokens=60, seed=seed, decoder=WRITING[seed % 4], temperature=1.0)
    assert fits(out.text, pattern)


def test_a_batch_with_a_constraint_each() -> None:
    model = noisy(bytes_vocabulary())
    wanted = [
        {"regex": "a+b"},
        {"json_schema": JSON},
        {},
        {"regex": "c{7}"},
        {"json_object": True},
        {"json_schema": {"const": 1}},
    ]
    options = [GenerateOptions(seed=4, max_new_tokens=30, decoder="threshold", **each) for each in wanted]
    together = model._run([page for each in options for page in model.compose("hello", each)])
    for _ in together:
        pass
    texts = [result.text for result in together.results]
    assert texts == [model.generate("hello", each).text for each in options]
    assert fits(texts[0], "a+b")
    assert is_valid(texts[1], JSON)
    assert texts[3] == "c" * 7
    assert isinstance(json.loads(texts[4]), dict)
    assert texts[5] == "1"


def test_tokens_without_a_choice_are_written_without_a_pass() -> None:
    model = noisy(bytes_vocabulary())
    out = model.generate("", json_schema={"const": {"hello": ["hello", 12]}}, max_new_tokens=60, decoder="threshold")
    assert json.loads(out.text) == {"hello": ["hello", 12]}
    assert out.nfe <= 3  # the spaces after comma and colon may be there or not
    whole = model.generate("", regex="hello hello", max_new_tokens=60)
    assert whole.text == "hello hello"
    assert whole.nfe == 0
    assert whole.stop_reason == "stop"
    assert whole.tokens == model.tokenizer.encode("hello hello", add_bos=False)
    events = list(model.stream("", regex="hello hello(a|b)", max_new_tokens=9, decoder="threshold"))
    assert [event.step for event in events][:2] == [0, 1]
    assert events[0].text == "hello "
    assert len(events[0].positions) == 2


def test_room_that_runs_out_ends_the_text() -> None:
    model = noisy(bytes_vocabulary())
    model._pool = SessionPool(FakeEngine(point_mass([5], 263), 263, 96), 1)  # type: ignore[arg-type]
    for count in (9, 10, 13, 20):
        out = model.generate(
            "", json_schema={"type": "array", "items": {"type": "string"}, "minItems": 2}, max_new_tokens=count
        )
        assert is_valid(out.text, {"type": "array", "minItems": 2})
        assert len(out.tokens) <= count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a" * 9, "max_new_tokens": 8}, "the shortest text .* has 9 tokens, but there is room for 8"),
        ({"json_schema": {"enum": []}}, "no text that this vocabulary can write matches the JSON schema"),
        ({"json_schema": {"type": "string", "minLength": 96}, "max_new_tokens": 20}, "has 22 tokens, but"),
        ({"regex": "("}, r"the regex '\(' cannot be used"),
        ({"regex": "a(?=b)"}, "cannot be used"),
        ({"grammar": "start: nothing"}, "the grammar cannot be used"),
        ({"grammar": "start: /a{50}/", "max_new_tokens": 9, "decoder": "llada"}, "no text of at most 9 tokens was"),
        ({"json_schema": "/nowhere/x.json"}, "the JSON schema /nowhere/x.json cannot be read"),
        ({"json_schema": {"not": {"type": "null"}}}, "cannot be used"),
        ({"json_object": True, "decoder": "topk"}, "is no small finite automaton .* the decoder topk counts its steps"),
        ({"regex": "a", "decoder": "rdm"}, "the decoder rdm takes tokens back"),
        ({"regex": "a", "decoder": "llada2.1"}, "replaces tokens one by one"),
        ({"regex": "a", "decoder": "credit"}, "writes other tokens than those that regex allows"),
        ({"regex": "a", "decoder": "llada", "end_token": "never"}, "keeps a text that matches regex from ending"),
        ({"regex": "a", "decoder": "threshold", "cache": "active"}, "the cache active keeps proposals that"),
        ({"regex": "a" * (1 << 16)}, "expected at most 32768; shorten it"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_before_the_first_pass(options: dict[str, Any], message: str) -> None:
    model = noisy(bytes_vocabulary())
    with pytest.raises(OptionError, match=message):
        model.generate("x", **options)
    assert not model._engine.sessions  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "json_object": True}, "json_object and regex exclude each other"),
        ({"regex": 5}, "regex is a int, expected a text"),
        ({"json_schema": 5}, "json_schema is a int, expected a schema as a dict, or the path of a file"),
        ({"grammar": b"x"}, "grammar is a bytes, expected a text"),
        ({"json_object": 1}, "json_object is 1, expected True or False"),
    ],
)
def test_options_of_the_wrong_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenerateOptions(**options)


def test_constraints_come_from_files(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "s.json", tmp_path / "g.lark"
    schema.write_text('{"const": "é"}', encoding="utf-8")
    grammar.write_text('start: "a" start "b" | "c"')
    model = noisy(bytes_vocabulary())
    assert model.generate("", json_schema=schema).text == '"é"'
    assert model.generate("", json_schema=str(schema)).text == '"é"'
    assert re.fullmatch("(a*)c(b*)", model.generate("", grammar=grammar, decoder="llada").text)
    schema.write_text("{")
    with pytest.raises(OptionError, match="is no JSON"):
        model.generate("", json_schema=schema)
    grammar.write_bytes(b"\xff")
    with pytest.raises(OptionError, match="byte 0 is not UTF-8"):
        model.generate("", grammar=grammar)


# ---- texts that are avoided ----


@pytest.mark.parametrize("vocabulary", [bytes_vocabulary, spaces_vocabulary, words_vocabulary])
@pytest.mark.parametrize("name", ["threshold", "topk", "eb-sampler"])
def test_avoided_texts_are_never_written(vocabulary: Any, name: str) -> None:
    model = noisy(vocabulary(), spread=1.0)
    options = {"decoder": name, "temperature": 1.0, "max_new_tokens": 24}
    free = [model.generate("", seed=seed, **options).text for seed in range(2)]
    pairs = [text[at : at + 2] for text in free for at in range(len(text) - 1)]  # of bytes that are characters
    avoided = tuple(dict.fromkeys(pair for pair in pairs if pair.isascii() and pair.isprintable()))[:9]
    assert any(each in text for each in avoided for text in free)
    for seed in range(2):
        out = model.generate("", seed=seed, avoid=avoided, **options)
        assert not any(each in out.text for each in avoided)
        assert out.decoder["constraint"] == "avoid"
        assert out.decoder["avoid"] == avoided


def test_avoided_texts_go_with_what_must_match() -> None:
    model = noisy(bytes_vocabulary())
    for seed in range(4):
        options = {"seed": seed, "max_new_tokens": 30, "decoder": "threshold"}
        out = model.generate("", regex="[abc]{6,12}", avoid=["ab", "ca", "bb"], **options)
        assert fits(out.text, "(?!.*(ab|ca|bb))[abc]{6,12}")
        schema = {"enum": ["red", "green", "blue"]}
        assert model.generate("", json_schema=schema, avoid=["r"], **options).text == '"blue"'
    hole = model.infill(["x", Hole(5), "y"], avoid="e", seed=1).holes[0]
    assert "e" not in hole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "ab", "avoid": "b"}, "no text that this vocabulary can write matches the regex 'ab' with avoid"),
        ({"json_object": True, "avoid": "b"}, "no small finite automaton .* leave avoid out"),
        ({"avoid": "ab" * 4000}, "avoid is no small finite automaton .* shorten it"),
        ({"avoid": "a", "decoder": "rdm"}, "the decoder rdm takes tokens back"),
        ({"avoid": ""}, "avoid holds '', expected texts that are not empty"),
        ({"avoid": "a", "grow": 8}, "avoid is matched over a canvas of one length"),
    ],
)  # fmt: skip
def test_what_cannot_be_avoided_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        noisy(bytes_vocabulary()).generate("x", **options)


# ---- holes ----


def test_a_hole_is_filled_to_its_last_token() -> None:
    model = noisy(bytes_vocabulary())
    for seed in range(4):
        out = model.infill(["Id ", Hole(6), ", ok"], regex=r"\d+[a-z]?", seed=seed, decoder="threshold")
        assert fits(out.holes[0], r"\d+[a-z]?")
        assert len(out.tokens) == 6
        assert out.text == f"Id {out.holes[0]}, ok"
    assert fits(model.infill([Hole(3), " x"], regex="a|bcd", seed=1).holes[0], "a|bcd")
    assert fits(noisy(spaces_vocabulary()).infill(["the ", Hole(4), "x"], regex="[ab]+", seed=1).holes[0], "[ab]+")
    assert fits(noisy(spaces_vocabulary()).infill([Hole(4), "x"], regex=" *[ab]+", seed=1).holes[0], " *[ab]+")


def test_an_open_hole_becomes_as_long_as_a_text_can_be() -> None:
    model = noisy(bytes_vocabulary())
    for seed in range(4):
        for pattern, lengths in (("123", {3}), ("(12){1,3}", {2, 4}), (r"\d{5,7}", {5, 6, 7})):
            out = model.infill(["Id:", Hole(), ", ok"], regex=pattern, seed=seed)
            assert fits(out.holes[0], pattern)
            assert len(out.tokens) in lengths
    with pytest.raises(OptionError, match="no text of 1 to .* tokens matches the regex"):
        model.infill(["x", Hole(), "y"], regex="a{900}")
    with pytest.raises(OptionError, match="only those can fill a hole"):
        model.infill(["x", Hole(), "y"], grammar="start: /a/")


def test_what_a_hole_cannot_be_is_refused() -> None:
    model = noisy(bytes_vocabulary())
    with pytest.raises(OptionError, match="no text of exactly 7 tokens matches"):
        model.infill(["x", Hole(7), "y"], regex="(ab){1,3}")
    with pytest.raises(OptionError, match="has 2 holes, but the regex 'a' is about one"):
        model.infill([Hole(1), "y", Hole(1)], regex="a")
    with pytest.raises(OptionError, match="only those can fill a hole"):
        model.infill(["x", Hole(9), "y"], grammar="start: /a/")


# ---- what only a parser can follow ----

TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v"],
    "additionalProperties": False,
}
LEFT_TO_RIGHT = ("threshold", "factor", "llada", "llada2", "klass", "eb-sampler", "localleap", "hierarchical", "wedlm")


@pytest.mark.parametrize("name", LEFT_TO_RIGHT)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recursive_schemas_and_grammars(name: str, temperature: float) -> None:
    model = noisy(bytes_vocabulary(), **spec_for(name))
    options = {"decoder": name, "temperature": temperature, "seed": 2, "top_p": 0.9}
    for count in (10, 30):
        assert is_valid(model.generate("", json_schema=TREE, max_new_tokens=count, **options).text, TREE)
        text = model.generate("x", grammar='start: "(" start ")" | /[a-z]{2,9}/', max_new_tokens=count, **options).text
        assert re.fullmatch(r"\(*[a-z]{2,9}\)*", text)
        assert text.count("(") == text.count(")")
    assert isinstance(json.loads(model.generate("", json_object=True, max_new_tokens=40, **options).text), dict)


def test_proposals_to_the_right_are_taken_while_they_fit() -> None:
    model = noisy(bytes_vocabulary())
    wanted = model.tokenizer.encode('{"v":12}', add_bos=False)
    sure = FakeEngine(point_mass([0, *wanted, 261, 261], 263), 263, 96)
    model._pool = SessionPool(sure, 1)  # type: ignore[arg-type]
    out = model.generate([0], json_schema=TREE, max_new_tokens=len(wanted) + 2, decoder="threshold")
    assert out.tokens == wanted
    assert out.nfe == 1


def test_where_a_parser_gives_up_the_text_at_hand_is_written() -> None:
    pattern = "((((a{1,100}){1,100}){1,100}){1,100})"
    for seed in range(3):
        out = noisy(bytes_vocabulary()).generate("", regex=pattern, max_new_tokens=24, decoder="llada", seed=seed)
        assert re.fullmatch("a+", out.text)


def test_llguidance_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    model = noisy(bytes_vocabulary())
    assert fits(model.generate("", regex="ab?").text, "ab?")
    with pytest.raises(
        OptionError, match=r"needs llguidance, which is not installed; run pip install 'localdiff\[constrain\]'"
    ):
        model.generate("", json_schema=TREE, decoder="llada")
