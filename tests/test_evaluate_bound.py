"""Likelihoods: models with known answers, exact bounds by enumeration, the estimator in numpy, blocks on the engine."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, Logits, point_mass, random_table
from text_metadata import tiny_bpe
from tiny_gguf import write_tiny

from localdiff.engine import Request
from localdiff.errors import OptionError
from localdiff.evaluate import noise, scorer
from localdiff.evaluate.noise import Draw, at_rates, blocks, combine, counted, generator
from localdiff.evaluate.scorer import Passage, Scorer, negative_log
from localdiff.evaluate.subject import LEFT_TO_RIGHT, Subject, open_subject
from localdiff.evaluate.tasks import BOUND, PUBLISHED
from localdiff.model import Model
from localdiff.spec import DiffusionSpec

VOCAB, MASK = 11, 10
KINDS: dict[str, dict[str, Any]] = {
    "full": {"logit_shift": False},
    "full, shifted": {"logit_shift": True},
    "prefix": {"logit_shift": True, "attention": "prefix_causal"},
    "causal, reordered": {"logit_shift": False, "attention": "causal"},
    "blocks": {"logit_shift": False, "attention": "block_causal", "block_length": 4},
    "blocks, shifted": {"logit_shift": True, "attention": "block_causal", "block_length": 4},
    "left to right": dict(LEFT_TO_RIGHT),
}


def subject_of(logits: Logits, kind: str, vocab: int = VOCAB) -> tuple[Subject, FakeEngine]:
    spec = DiffusionSpec(MASK, **KINDS[kind])
    engine = FakeEngine(logits, vocab, 64)
    model = Model(engine, tiny_bpe(), spec, Path("fake.gguf"), math="exact")  # type: ignore[arg-type]
    return Subject(model, spec, kind == "left to right"), engine


def uniform(request: Request) -> np.ndarray:
    return np.full((len(request.tokens), VOCAB), 3.25)


def in_reading_order(logits: Logits) -> Logits:
    """A fake model that answers for positions, for requests that store tokens in another order."""

    def answer(request: Request) -> np.ndarray:
        if request.positions is None:
            return logits(request)
        tokens = np.empty_like(request.tokens)
        tokens[request.positions] = request.tokens
        return logits(Request(tokens, request.positions))[request.positions]

    return answer


TEXT = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5], np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_uniform_model_has_log_v_and_a_certain_one_nothing(kind: str) -> None:
    passages = [Passage(TEXT, 1, 0), Passage(TEXT[:6], 3, 1)]
    for estimator in (BOUND,) if "blocks" in kind else (BOUND, PUBLISHED):
        subject, _ = subject_of(uniform, kind)
        for passage, found in zip(passages, Scorer(subject).likelihoods(passages, 7, 0, estimator), strict=True):
            assert found.tokens == len(passage.tokens) - passage.given
            if estimator == BOUND:  # k masked tokens with weight N / k: every draw is exact
                assert found.nats == pytest.approx(found.tokens * math.log(VOCAB), abs=1e-6)
    shifted = subject_of(uniform, kind)[0].spec.logit_shift
    subject, _ = subject_of(in_reading_order(point_mass(TEXT, VOCAB, shifted)), kind)
    assert [each.nats for each in Scorer(subject).likelihoods([Passage(TEXT, 1, 0)], 5, 0)] == [0.0]


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def nats_of(logits: Logits, tokens: np.ndarray, hidden: tuple[int, ...], shift: bool) -> float:
    """The sum of -log p of the hidden tokens, float64."""
    noised = tokens.copy()
    noised[list(hidden)] = MASK
    rows = logits(Request(noised, np.array(hidden, np.int32)))
    return -float(sum(log_softmax(rows[place - shift])[tokens[place]] for place in hidden))


def enumerated(logits: Logits, tokens: np.ndarray, first: int, end: int, shift: bool) -> float:
    """The bound of positions first .. end - 1 over every set of masks: the mean over k of N / k times the mean sum."""
    places, total = range(first, end), end - first
    means = []
    for k in range(1, total + 1):
        sums = [nats_of(logits, tokens[:end], hidden, shift) for hidden in itertools.combinations(places, k)]
        means.append(total / k * np.mean(sums))
    return float(np.mean(means))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "left to right"])
def test_the_bound_is_what_enumeration_gives(kind: str) -> None:
    text, given = TEXT[:7], 1
    logits = random_table(VOCAB, 3.0)
    subject, _ = subject_of(in_reading_order(logits), kind)
    cut = blocks(given, len(text), subject.spec.block_length) if "blocks" in kind else [(given, len(text))]
    exact = sum(enumerated(logits, text, start, end, subject.spec.logit_shift) for start, end in cut)
    (found,) = Scorer(subject).likelihoods([Passage(text, given, 0)], 800, 1)
    assert 0 < found.error < 0.1 * exact
    assert abs(found.nats - exact) < 4 * found.error


def test_left_to_right_is_exact() -> None:
    logits = random_table(VOCAB, 3.0)
    subject, engine = subject_of(logits, "left to right")
    (found,) = Scorer(subject).likelihoods([Passage(TEXT, 2, 0)], 99, 0)
    rows = logits(Request(TEXT, np.arange(9, dtype=np.int32)))
    assert found.nats == pytest.approx(-sum(log_softmax(rows[p - 1])[TEXT[p]] for p in range(2, 9)), rel=1e-6)
    assert (found.tokens, found.error) == (7, 0.0)
    (call,) = engine.sessions[0].requests
    assert (call[0].attention, call[0].logit_shift, call[0].tokens.tolist()) == ("causal", True, TEXT.tolist())


@pytest.mark.parametrize("estimator", [BOUND, PUBLISHED])
def test_the_estimator_is_its_formula(estimator: str) -> None:
    """From the canvases that the engine was given, in float64."""
    logits, draws, given = random_table(VOCAB, 2.0), 6, 2
    subject, engine = subject_of(logits, "full, shifted")
    (found,) = Scorer(subject).likelihoods([Passage(TEXT, given, 3)], draws, 5, estimator)
    total, values = len(TEXT) - given, []
    for request in (each for call in engine.sessions[0].requests for each in call):
        hidden = tuple(np.flatnonzero(request.tokens == MASK).tolist())
        assert hidden == tuple(request.score.tolist())
        assert min(hidden) >= given
        values.append(nats_of(logits, TEXT, hidden, True) * total / len(hidden))
    values += [0.0] * (draws - len(values))  # draws without a mask
    assert found.nats == pytest.approx(np.mean(values), rel=1e-6)
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(draws), rel=1e-6)


def test_what_is_masked_and_how_often() -> None:
    drawn = counted(3, 13, 5000, generator(7, 0))
    counts = np.array([len(each.hidden) for each in drawn])
    assert np.bincount(counts, minlength=11)[1:].tolist() == [500] * 10  # stratified: no chance in it
    assert all(each.weight == 10 / len(each.hidden) for each in drawn)
    hits = np.bincount(np.concatenate([each.hidden for each in drawn]), minlength=13)
    assert hits[:3].tolist() == [0, 0, 0]
    assert np.abs(hits[3:] - 2750).max() < 4 * math.sqrt(5000 * 0.55 * 0.45)
    rates = at_rates(0, 2000, 4, generator(7, 1))
    assert [round(len(each.hidden) / 2000, 1) for each in rates] == [1.0, 0.8, 0.5, 0.2] or all(
        abs(len(each.hidden) / 2000 - share) < 0.05 for each, share in zip(rates, (1.0, 0.75, 0.5, 0.25), strict=True)
    )
    again = counted(3, 13, 5000, generator(7, 0))
    assert all(np.array_equal(one.hidden, other.hidden) for one, other in zip(drawn, again, strict=True))
    assert combine([Draw(TEXT, 2.0)], [np.array([1.0, 0.5])], 4).nats == 3.0


def test_blocks_are_cut_at_multiples() -> None:
    assert blocks(1, 10, 4) == [(1, 4), (4, 8), (8, 10)]
    assert blocks(4, 8, 4) == [(4, 8)]
    assert blocks(5, 7, 4) == [(5, 7)]
    assert blocks(3, 3, 4) == []


def test_negative_log_against_float64() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (5, 999)).astype(np.float32)
    targets = np.array([0, 998, 5, 7, 7], np.int32)
    expected = [-log_softmax(row.astype(np.float64))[target] for row, target in zip(logits, targets, strict=True)]
    assert negative_log(logits, targets) == pytest.approx(np.array(expected), rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bound") / "tiny.gguf", layers=2, context=48)


RECORDS = {
    "full": "shift=0",
    "blocks": "shift=0,attn=block_causal,block=4",
    "blocks, shifted": "shift=1,attn=block_causal,block=4",
    "reordered": "shift=0,attn=causal,decoder=wedlm",
}


@pytest.fixture
def passages() -> list[Passage]:
    random = np.random.default_rng(3)
    sizes = ((21, 1), (30, 6), (5, 4))
    return [Passage(random.integers(0, 256, size, dtype=np.int32), given, 9 + size) for size, given in sizes]


@pytest.mark.parametrize("record", RECORDS)
def test_texts_beside_each_other_change_nothing(tiny: Path, record: str, passages: list[Passage]) -> None:
    with open_subject(tiny, diffusion=f"mask=262,{RECORDS[record]}") as subject:
        together = Scorer(subject).likelihoods(passages, 3, 0)
        alone = [Scorer(subject).likelihoods([each], 3, 0)[0] for each in passages]
    assert together == alone


@pytest.mark.parametrize("record", ["blocks", "blocks, shifted"])
def test_blocks_with_kept_keys_equal_whole_passes(
    tiny: Path, record: str, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_subject(tiny, diffusion=f"mask=262,{RECORDS[record]}") as subject:
        kept = Scorer(subject).likelihoods(passages, 3, 0)
        walk = Scorer._walk

        def whole(*arguments: Any) -> Iterator[Any]:
            for each in walk(*arguments):
                yield scorer.replace(each, request=scorer.replace(each.request, compute=None))

        monkeypatch.setattr(Scorer, "_walk", whole)
        assert [each.nats for each in Scorer(subject).likelihoods(passages, 3, 0)] == pytest.approx(
            [each.nats for each in kept], rel=1e-6
        )


def test_little_room_for_logits_changes_nothing(tiny: Path, passages: list[Passage], monkeypatch: Any) -> None:
    with open_subject(tiny) as subject:
        expected = Scorer(subject).likelihoods(passages, 3, 0)
        monkeypatch.setattr(scorer, "LOGITS", 5 * subject.model.info.vocab)
        monkeypatch.setattr(scorer, "ROWS", 40)
        found = Scorer(subject).likelihoods(passages, 3, 0)
    assert [each.nats for each in found] == pytest.approx([each.nats for each in expected], rel=1e-12)


def test_refusals(tiny: Path) -> None:
    with open_subject(tiny, diffusion="mask=262,shift=1") as subject:
        with pytest.raises(OptionError, match="a text has 9 tokens and 0 of them are given"):
            Scorer(subject).likelihoods([Passage(TEXT, 0, 0)], 1, 0)
        with pytest.raises(OptionError, match="on a canvas of 48"):
            Scorer(subject).likelihoods([Passage(np.zeros(49, np.int32), 1, 0)], 1, 0)
    record = f"mask=262,{RECORDS['blocks']}"
    with open_subject(tiny, diffusion=record) as subject, pytest.raises(OptionError, match="without blocks"):
        Scorer(subject).likelihoods([Passage(TEXT, 1, 0)], 1, 0, PUBLISHED)
    with (
        open_subject(tiny, diffusion="mask=262,shift=0,process=uniform") as subject,
        pytest.raises(OptionError, match="noise process"),
    ):
        Scorer(subject)
    assert noise.ESTIMATORS.keys() == {BOUND, PUBLISHED}
