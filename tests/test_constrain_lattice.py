"""The dynamic programme over texts that must match, against all texts counted out; what is no automaton or no match is
refused."""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from localdiff.constrain.automaton import compile
from localdiff.constrain.regex import parse
from localdiff.constrain.table import TokenAutomaton, build
from localdiff.constrain.tokens import TokenTree
from localdiff.engine import Automaton, Match, Proposal, Request, propose_logits
from localdiff.errors import EngineError

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
