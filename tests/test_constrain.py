"""Constraints on canvases: the dynamic programme against all texts counted out, every decoder on a model that proposes
noise, every kind of vocabulary, and what is refused."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from localdiff.constrain.automaton import compile
from localdiff.constrain.regex import parse
from localdiff.constrain.table import TokenAutomaton, build
from localdiff.constrain.tokens import TokenTree
from localdiff.decode.table import DECODERS
from localdiff.engine import Automaton, Match, Proposal, Request, propose_logits
from localdiff.errors import EngineError, OptionError
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.sessions import SessionPool
from localdiff.spec import DiffusionSpec

PIECES = {0: b"a", 1: b"b", 2: b"ab", 3: b"c"}
STOP, VOCAB = 4, 6
PATTERNS = ("a(b|c)*", "(ab|b)+c?", "a{2,3}b?", "(a|b|c){3}")


def tables(pattern: str, stops: bool = True) -> TokenAutomaton:
    return build(compile(parse(pattern)), TokenTree.of(PIECES), VOCAB, (STOP,) if stops else ())


def whole_texts(pattern: str, length: int, stops: bool = True) -> list[tuple[int, ...]]:
    """Every filling of `length` positions that matches: a text, then stop tokens to the end."""
    found = []
    for tokens in itertools.product(range(VOCAB - 1 if stops else STOP), repeat=length):
        made = list(itertools.takewhile(lambda token: token != STOP, tokens))
        text = b"".join(PIECES[token] for token in made).decode()
        if set(tokens[len(made) :]) <= {STOP} and re.fullmatch(pattern, text):
            found.append(tokens)
    return found


@dataclass(frozen=True)
class Case:
    """Four positions of which some are known and one perhaps not scored, and all texts that fit.

    free     the position that is neither known nor scored, -1 for none; places: those that are scored
    logits   float32 [places, VOCAB]
    """

    texts: list[tuple[int, ...]]
    match: Match
    logits: np.ndarray
    free: int
    places: list[int]

    def proposed(self, **options: Any) -> Proposal:
        score = np.array(self.places, np.int32) + self.match.first
        tokens = np.zeros(9, np.int32)
        return propose_logits([Request(tokens, score, logits=self.logits, match=self.match, **options)], VOCAB)[0]

    @property
    def shares(self) -> dict[tuple[int, ...], float]:
        """The probability of what can stand at `places`, where no position is free."""
        weights = {tuple(text[place] for place in self.places): 0.0 for text in self.texts}
        for text in weights:
            weights[text] = float(np.exp(sum(float(self.logits[row, token]) for row, token in enumerate(text))))
        return {text: weight / sum(weights.values()) for text, weight in weights.items()}


def random_case(seed: int, length: int = 4) -> Case:
    rng = np.random.default_rng(seed)
    pattern, stops = PATTERNS[seed % len(PATTERNS)], bool(rng.random() < 0.7)
    automaton = tables(pattern, stops)
    texts = whole_texts(pattern, length, stops)
    known = np.full(length, -1, np.int32)
    if texts and rng.random() < 0.6:
        place = int(rng.integers(length))
        known[place] = texts[int(rng.integers(len(texts)))][place]
    places = [place for place in range(length) if known[place] < 0]
    free = places.pop(int(rng.integers(len(places)))) if rng.random() < 0.3 else -1
    texts = [text for text in texts if all(known[p] < 0 or text[p] == known[p] for p in range(length))]
    logits = rng.normal(0, 3, (len(places), VOCAB)).astype(np.float32)
    return Case(texts, Match(automaton.engine, int(rng.integers(3)), 0, known, 0), logits, free, places)


@pytest.mark.parametrize("seed", range(60))
def test_the_walk_is_the_likeliest_of_all_texts_and_its_confidence_theirs(seed: int) -> None:
    case = random_case(seed)
    assert case.match.possible == bool(case.texts)
    if not case.texts:
        with pytest.raises(EngineError, match="no text that its automaton accepts is left"):
            case.proposed()
        return
    # what is not scored may be anything, so texts that differ only there are one
    shares = case.shares
    found = case.proposed(alternatives=2)
    assert shares[tuple(found.token.tolist())] == pytest.approx(max(shares.values()), rel=1e-4)
    if case.free < 0:
        check_scores(case, found, shares)


def check_scores(case: Case, found: Proposal, shares: dict[tuple[int, ...], float]) -> None:
    """Probability, margin, entropy and two alternatives are those of each place given that the text matches."""
    of_places = np.zeros((len(case.places), VOCAB))
    for text, share in shares.items():
        of_places[np.arange(len(case.places)), text] += share
    own = of_places[np.arange(len(case.places)), found.token]
    np.testing.assert_allclose(found.probability, own, rtol=1e-3, atol=1e-6)
    ranked = -np.sort(-of_places, axis=1)
    np.testing.assert_allclose(found.margin, ranked[:, 0] - ranked[:, 1], rtol=1e-3, atol=1e-5)
    entropy = -np.sum(of_places * np.log(np.where(of_places > 0, of_places, 1)), axis=1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.alternative_probability, ranked[:, :2], rtol=1e-3, atol=1e-6)
    there = found.alternative_token >= 0
    assert np.all(found.alternative_probability[~there] == 0)
    own = np.take_along_axis(of_places, np.maximum(found.alternative_token, 0), axis=1)
    np.testing.assert_allclose(np.where(there, own, 0), ranked[:, :2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_texts_come_as_often_as_they_should(seed: int) -> None:
    case = random_case(seed)
    if not case.texts or case.free >= 0:
        return
    wanted = case.shares
    counts = dict.fromkeys(wanted, 0)
    for step in range(1500):
        found = case.proposed(temperature=1.0, seed=seed, step=step, scores_from="sampled")
        drawn = tuple(found.token.tolist())
        counts[drawn] += 1
        # what each was drawn from, times the probability of coming to its state: at the first place it is the share
        first = sum(share for text, share in wanted.items() if text[0] == drawn[0])
        if case.places[0] == 0:
            assert found.probability[0] == pytest.approx(first, rel=1e-3)
        assert np.all(found.probability <= 1 + 1e-6)
        assert np.all(found.entropy >= -1e-6)
    for text, share in wanted.items():
        spread = float(4 * np.sqrt(share * (1 - share) / 1500) + 1e-3)
        assert counts[text] / 1500 == pytest.approx(share, abs=spread)
    raw = case.proposed(temperature=1.0, seed=seed, step=1, alternatives=2)
    assert raw.token.tolist() == case.proposed(temperature=1.0, seed=seed, step=1, scores_from="sampled").token.tolist()
    check_scores(case, raw, wanted)
    coldest = case.proposed(temperature=1e-4, seed=seed, step=5).token.tolist()
    assert case.proposed(temperature=1.0, top_k=1, seed=seed, step=6).token.tolist() == coldest
    assert case.proposed(temperature=1.0, top_p=1e-6, seed=seed, step=7).token.tolist() == coldest


def test_wishes_change_the_logits_that_are_matched() -> None:
    case = next(case for case in map(random_case, range(60)) if case.free < 0 and len(case.texts) > 6)
    rng = np.random.default_rng(5)
    without = rng.normal(0, 2, case.logits.shape).astype(np.float32)
    beside = Request(np.zeros(9, np.int32), np.arange(len(case.places), dtype=np.int32), logits=without)
    bias = np.array([0.5, -1.5], np.float32)
    found = case.proposed(
        guidance=1.5, unconditional=beside, bias_tokens=np.array([0, 3], np.int32), bias=bias,
        repeated=np.array([1], np.int32), repetition_penalty=1.4, alternatives=2,
    )  # fmt: skip
    changed = without + 2.5 * (case.logits - without)
    changed[:, 1] = np.where(changed[:, 1] > 0, changed[:, 1] / 1.4, changed[:, 1] * 1.4)
    changed[:, [0, 3]] += bias
    other = replace(case, logits=changed.astype(np.float32))
    assert found.token.tolist() == other.proposed().token.tolist()
    check_scores(other, found, other.shares)


def test_what_a_match_cannot_be_is_refused() -> None:
    case = random_case(0)
    automaton, tokens = case.match.automaton, case.match.tokens
    wrong = {
        "none of its states": {"state": 99},
        "negative": {"first": -1},
        "negative length": {"left": -1},
        r"tokens\[0\] is 6, expected -1 to 5": {"tokens": np.full(4, 6, np.int32)},
        "not among those that must match": {"tokens": tokens[:1]},
        "stands at a scored position": {"tokens": np.zeros(4, np.int32)},
    }
    for message, change in wrong.items():
        with pytest.raises(EngineError, match=message):
            replace(case, match=replace(case.match, **change)).proposed()
    with pytest.raises(EngineError, match="excludes forbidden and allowed"):
        case.proposed(forbidden=np.array([1], np.int32))
    with pytest.raises(EngineError, match="of another vocabulary"):
        propose_logits([Request(tokens, tokens[:0], logits=np.zeros((0, 9), np.float32), match=case.match)], 9)
    damaged = replace(case, logits=np.full_like(case.logits, np.nan))
    with pytest.raises(EngineError, match="not finite"):
        damaged.proposed()
    automaton.close()
    with pytest.raises(EngineError, match="the automaton is closed"):
        case.proposed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [0, 2, 1, 3]}, "first must not descend"),
        ({"first": [1, 1, 2, 3]}, r"first\[0\] must be 0"),
        ({"first": [0, 1, 2, 9]}, "do not belong together"),
        ({"kind": [0, 1, 2]}, r"kind\[2\] is 2, expected 0 to 1"),
        ({"kind": [1, 0, 0], "first": [0, 2, 2, 3]}, "classes of a state must ascend"),
        ({"target": [0, -1, 1]}, r"target\[1\] is -1, expected 0 to 2"),
        ({"class_of": [0, 1, 3]}, r"class_of\[2\] is 3, expected 0 to 2"),
        ({"class_of": [0, 0, 2]}, "a class has no token"),
        ({"distance": [0, 0, -1]}, r"distance\[2\] is -1"),
        ({"classes": 4}, "classes must be 0 to vocab"),
    ],
)  # fmt: skip
def test_tables_that_are_no_automaton_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "class_of": [0, 1, 2], "classes": 2, "first": [0, 1, 2, 3], "kind": [0, 1, 0], "target": [0, 1, 2],
        "distance": [0, 0, 0],
    }  # fmt: skip
    tables = {key: value if key == "classes" else np.array(value, np.int32) for key, value in (good | change).items()}
    with pytest.raises(EngineError, match=message):
        Automaton(**tables)


def test_possible_lengths() -> None:
    for pattern, stops in itertools.product(PATTERNS, (True, False)):
        automaton = tables(pattern, stops)
        for length in range(6):
            assert automaton.possible(length)[0] == bool(whole_texts(pattern, length, stops)), (pattern, length)


def test_texts_that_a_model_thinks_impossible_stay_possible() -> None:
    automaton = tables("c{40}")
    logits = np.full((40, VOCAB), 0, np.float32)
    logits[:, 3] = -1e4
    match = Match(automaton.engine, 0, 0, np.full(40, -1, np.int32), 3)
    request = Request(np.zeros(40, np.int32), np.arange(40, dtype=np.int32), logits=logits, match=match)
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "scores_from": "sampled"}):
        (found,) = propose_logits([replace(request, **options)], VOCAB)
        assert found.token.tolist() == [3] * 40
        assert found.probability.tolist() == pytest.approx([1] * 40)


# ---- canvases ----

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
        "", regex="a(b|c){10,20}", decoder="threshold", cache=cache, report_drift=True, max_new_tokens=30, seed=1
    )
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
