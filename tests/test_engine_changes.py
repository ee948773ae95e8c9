"""What a canvas asks the engine to change in its logits: guidance, penalty, bias, tokens left out; and raw logits.

Every kernel row, against the same changes made with numpy in float32 to the logits that the engine reports: with equal
operations in equal order the numbers are equal, so tokens are compared with ==. Refusals; independence of the batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import write_tiny

from localdiff.engine import EngineModel, File, Proposal, Request, Session, isa_rows, pack_tokens
from localdiff.errors import EngineError

VOCAB, LENGTH = 263, 14
ISAS = [name for name, supported in isa_rows() if supported]
SCORE = np.array([4, 5, 9, 13], np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("changes") / "tiny.gguf")


@pytest.fixture(scope="module", params=ISAS)
def session(request: Any, path: Path) -> Iterator[Session]:
    with (
        File.open(path) as file,
        EngineModel(file, isa=request.param, threads=2) as model,
        model.session(slots=5, slot_length=32, threads=2) as made,
    ):
        yield made


def tokens(seed: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length, dtype=np.int32)


def softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    p = np.exp(rows - rows.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def check(proposal: Proposal, logits: np.ndarray) -> None:
    """`proposal` at temperature 0 is what these logits give."""
    p = softmax(logits)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(proposal.token, order[:, 0])
    np.testing.assert_allclose(proposal.probability, p.max(axis=1), rtol=2e-6)
    log = np.log(np.where(p > 0, p, 1))
    np.testing.assert_allclose(proposal.entropy, -(p * log).sum(axis=1), rtol=1e-5, atol=1e-6)
    a = proposal.alternative_token.shape[1]
    present = np.take_along_axis(p, order[:, :a], axis=1) > 0
    np.testing.assert_array_equal(proposal.alternative_token, np.where(present, order[:, :a], -1))


def asked(**changes: Any) -> Request:
    return Request(tokens(1), SCORE, logit_shift=True, alternatives=6, **changes)


def beside(seed: int = 2, length: int = LENGTH, **changes: Any) -> Request:
    """A companion that scores the last positions as SCORE does, with other tokens before them."""
    return Request(tokens(seed, length), SCORE + (length - LENGTH), slot=4, logit_shift=True, **changes)


def changed(
    logits: np.ndarray, u: np.ndarray, guidance: float, repeated: np.ndarray, penalty: float, bias: dict[int, float]
) -> np.ndarray:
    """The rule in float32, step by step as the header states it."""
    out = u + np.float32(guidance + 1) * (logits - u) if guidance else logits.copy()
    for row in out:
        values, factor = row[repeated], np.float32(penalty)
        row[repeated] = np.where(values > 0, values / factor, values * factor)
        for token, value in bias.items():
            row[token] += np.float32(value)
    return out


@pytest.mark.parametrize("guidance", [0.0, 2.5, -0.5])
@pytest.mark.parametrize("length", [LENGTH, LENGTH + 7])
def test_changes_are_made_in_the_stated_order(session: Session, guidance: float, length: int) -> None:
    (logits,), (u,) = session.logits([asked()]), session.logits([beside(length=length)])
    repeated, bias = np.arange(0, VOCAB, 3, dtype=np.int32), {5: 2.0, 77: -100.0, 200: 0.5}
    allowed = np.random.default_rng(3).random((4, VOCAB)) < 0.3
    forbidden = np.array([1, 9, 30], np.int32)
    raw, raw_u = np.zeros((2, 4, VOCAB), np.float32)
    request = asked(
        guidance=guidance, unconditional=beside(length=length, logits=raw_u) if guidance else None,
        repeated=repeated, repetition_penalty=1.25, bias_tokens=np.array(list(bias), np.int32),
        bias=np.array(list(bias.values()), np.float32), allowed=pack_tokens(allowed), forbidden=forbidden, logits=raw,
    )  # fmt: skip
    (proposal,) = session.propose([request])
    expected = changed(logits, u, guidance, repeated, 1.25, bias)
    expected[:, forbidden] = -np.inf
    expected[~allowed] = -np.inf
    check(proposal, expected)
    np.testing.assert_array_equal(raw, logits)
    if guidance:
        np.testing.assert_array_equal(raw_u, u)
        assert not np.array_equal(expected.argmax(axis=1), logits.argmax(axis=1))


def test_each_change_alone(session: Session) -> None:
    (logits,) = session.logits([asked()])
    best = logits.argmax(axis=1).astype(np.int32)
    none = np.empty(0, np.int32)
    raised = np.array([7], np.int32)
    check(session.propose([asked(bias_tokens=raised, bias=np.array([50.0], np.float32))])[0],
          changed(logits, logits, 0, none, 1, {7: 50.0}))  # fmt: skip
    check(session.propose([asked(repeated=np.unique(best), repetition_penalty=1.5)])[0],
          changed(logits, logits, 0, np.unique(best), 1.5, {}))  # fmt: skip
    one_each = np.zeros((4, VOCAB), bool)
    one_each[np.arange(4), [262, 0, 31, 32]] = True  # the ends of words
    (proposal,) = session.propose([asked(allowed=pack_tokens(one_each))])
    assert proposal.token.tolist() == [262, 0, 31, 32]
    assert proposal.probability.tolist() == [1.0] * 4
    assert (proposal.alternative_token[:, 1:] == -1).all()
    stray = pack_tokens(one_each)
    stray[:, -1] |= np.uint32(0xFFFFFF80)  # bits beyond the vocabulary say nothing
    np.testing.assert_array_equal(session.propose([asked(allowed=stray)])[0].token, proposal.token)
    check(session.propose([asked(repeated=none, bias_tokens=none, bias=np.empty(0, np.float32))])[0], logits)


def test_guidance_samples_with_the_guided_canvas_random_numbers(session: Session) -> None:
    """At guidance -1 only the companion counts, and what is drawn is keyed by the guided canvas's positions."""
    drawn = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "step": 3, "scores_from": "sampled"}
    (guided,) = session.propose([asked(guidance=-1.0, unconditional=beside(), **drawn)])
    (alone,) = session.propose([replace(beside(), alternatives=6, **drawn)])
    for name in ("token", "probability", "margin", "entropy", "alternative_token"):
        np.testing.assert_array_equal(getattr(guided, name), getattr(alone, name))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_the_batch(path: Path, threads: int) -> None:
    """Guided and plain canvases of different lengths, in any order, alone and together: the same bits."""
    allowed = pack_tokens(np.random.default_rng(1).random((4, VOCAB)) < 0.5)
    seen = np.array([2, 3], np.int32)
    requests = [
        Request(tokens(1), SCORE, guidance=1.5, unconditional=Request(tokens(2, 20), SCORE + 6), temperature=0.7),
        Request(tokens(3, 9), SCORE[:2], repeated=seen, repetition_penalty=2.0),
        Request(tokens(4, 31), SCORE, guidance=0.5, unconditional=Request(tokens(5, 31), SCORE), allowed=allowed),
        Request(tokens(6, 12), SCORE[:1], temperature=1.0, seed=4),
    ]

    def answers(session: Session, order: list[int]) -> list[Proposal]:
        slots = iter(range(10))
        placed = []
        for request in (requests[i] for i in order):
            companion = request.unconditional and replace(request.unconditional, slot=next(slots))
            placed.append(replace(request, slot=next(slots), unconditional=companion))
        return session.propose(placed)

    with (
        File.open(path) as file,
        EngineModel(file, threads=threads) as model,
        model.session(slots=6, slot_length=32, threads=threads) as session,
    ):
        alone = [answers(session, [i])[0] for i in range(4)]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0], [1, 2]):
            for i, found in zip(order, answers(session, order), strict=True):
                for name in vars(found):
                    np.testing.assert_array_equal(getattr(found, name), getattr(alone[i], name))


IDS, ONE = np.array([3], np.int32), np.array([1.0], np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias_tokens": np.array([VOCAB], np.int32), "bias": ONE}, r"bias_token\[0\] is 263, expected ascending"),
        ({"bias_tokens": np.array([-1], np.int32), "bias": ONE}, r"bias_token\[0\] is -1"),
        ({"bias_tokens": np.array([4, 4], np.int32), "bias": np.ones(2, np.float32)}, r"bias_token\[1\] is 4"),
        ({"bias_tokens": IDS, "bias": np.array([np.nan], np.float32)}, "the bias of token 3 is nan"),
        ({"bias_tokens": IDS, "bias": np.array([-np.inf], np.float32)}, "the bias of token 3 is -inf"),
        ({"bias_tokens": IDS, "bias": np.ones(2, np.float32)}, r"bias has shape \[2\], expected \[1\]"),
        ({"bias_tokens": IDS, "bias": np.ones(1)}, "bias is not a contiguous, writable float32 array"),
        ({"bias_tokens": IDS}, "bias is not a contiguous"),
        ({"repeated": np.array([9, 2], np.int32), "repetition_penalty": 2.0}, r"repeated\[1\] is 2"),
        ({"repeated": np.array([VOCAB], np.int32)}, r"repeated\[0\] is 263"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be 0"),
        ({"allowed": np.zeros((4, 9), np.uint32)}, "no token is allowed at position 4"),
        ({"allowed": np.full((4, 9), 0, np.uint32) | np.array([0] * 8 + [0x80], np.uint32)}, "no token is allowed"),
        ({"allowed": np.full((4, 9), 8, np.uint32) & np.array([8] + [0] * 8, np.uint32), "forbidden": IDS}, "no token"),
        ({"allowed": np.ones((4, 8), np.uint32)}, r"allowed has shape \[4, 8\], expected \[4, 9\]"),
        ({"logits": np.zeros((3, VOCAB), np.float32)}, r"logits has shape \[3, 263\], expected \[4, 263\]"),
        ({"guidance": 1.0}, "guidance needs an unconditional canvas"),
        ({"unconditional": beside()}, "guidance needs an unconditional canvas"),
        ({"guidance": float("nan"), "unconditional": beside()}, "guidance must be -1000 to 1000"),
        ({"guidance": 2000.0, "unconditional": beside()}, "guidance must be -1000 to 1000"),
        ({"guidance": 1.0, "unconditional": replace(beside(), slot=0)}, "its slot is used by another canvas"),
        ({"guidance": 1.0, "unconditional": replace(beside(), score=SCORE[:3])}, "scores 3 positions, expected 4"),
        ({"guidance": 1.0, "unconditional": replace(beside(), guidance=1.0)}, "cannot come from a canvas that is"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(session: Session, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        session.propose([asked(**changes)])
    assert len(session.propose([asked()])) == 1, "the session stays usable"
