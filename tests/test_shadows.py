"""Shadows: rows that ask once more for tokens of a canvas, each without seeing the one that it asks for.

Every kernel row, and the GPU's kernels where their emulation is built, against the float64 reference; that the canvas
does not know of them, in whatever company; caches under them; what is refused.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import VOCAB, FamilyFiles
from emulated import DEVICES, PLUGIN
from reference import Reference, visible_to

from localdiff.engine import EngineModel, File, Proposal, Request
from localdiff.errors import EngineError

NAMES = ("BERT", "Dream", "SDAR-MoE")  # learned positions; rotary; experts
LENGTH, MASK = 21, 4
KINDS: list[tuple[str, dict[str, int]]] = [
    ("full", {}), ("causal", {}), ("block_causal", {"block_length": 8}), ("prefix_causal", {"prefix": 5}),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return FamilyFiles(tmp_path_factory.mktemp("shadows"))


def open_model(path: Path, device: str) -> EngineModel:
    with File.open(path) as file:
        if device == "cuda":
            return EngineModel(file, device=PLUGIN)
        return EngineModel(file, isa=device, threads=1)


def tokens_of(seed: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, length, dtype=np.int32)


def shadowed(seed: int = 1, shift: bool = False, slot: int = 0, **canvas: Any) -> Request:
    """All positions scored, and some asked for again."""
    tokens, hidden = tokens_of(seed), np.array([3, 8, 9, 10, 20], np.int32)
    shadows = tokens[hidden - 1] if shift else np.full(len(hidden), MASK, np.int32)
    score = np.arange(LENGTH, dtype=np.int32)
    return Request(tokens, score, slot, logit_shift=shift, hidden=hidden, shadows=shadows, **canvas)


def expected_logits(path: Path, request: Request, kind: str, extra: dict[str, int]) -> np.ndarray:
    """The canvas with its shadows as one long one, by definition."""
    m = len(request.hidden)
    place = np.arange(LENGTH)
    reach = np.concatenate([visible_to(kind, LENGTH, **extra), np.full(m, LENGTH + m)])
    positions = np.concatenate([place, request.hidden - request.logit_shift])
    hidden = np.concatenate([np.full(LENGTH, -1), request.hidden])
    tokens = np.concatenate([request.tokens, request.shadows])
    rows = Reference(path).logits(tokens, reach, positions, hidden)
    source = np.maximum(place - 1, 0) if request.logit_shift else place
    return rows[np.concatenate([source, LENGTH + np.arange(m)])]


def same(a: Proposal, b: Proposal, count: int) -> bool:
    return np.array_equal(a.token[:count], b.token[:count]) and np.array_equal(
        a.probability[:count], b.probability[:count]
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_shadows_are_what_the_reference_says(files: FamilyFiles, name: str, device: str) -> None:
    with open_model(files(name), device) as model, model.session(slot_length=LENGTH + 5, threads=1) as session:
        for kind, extra in KINDS:
            for shift in (False, True):
                request = shadowed(shift=shift, attention=kind, **extra)
                found = session.logits([request])[0]
                expected = expected_logits(files(name), request, kind, extra)
                assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_the_scores_are_those_of_the_token_that_stands_there(files: FamilyFiles, device: str) -> None:
    """Whatever the sampling: nothing is drawn, and the probability is that of the token."""
    with open_model(files("Dream"), device) as model, model.session(slot_length=LENGTH + 5, threads=1) as session:
        drawn: dict[str, Any] = {"temperature": 0.7, "seed": 3}
        for sampling in ({}, drawn | {"top_p": 0.9}, drawn | {"scores_from": "sampled"}):
            request = shadowed(**sampling)
            forbidden = np.array([1, request.tokens[8]], np.int32)
            answer = session.propose([replace(request, forbidden=forbidden)])[0]
            np.testing.assert_array_equal(answer.token[LENGTH:], request.tokens[request.hidden])
            rows = session.logits([request])[0].astype(np.float64)[LENGTH:]
            rows[:, forbidden] = -np.inf
            if sampling.get("scores_from") == "sampled":
                rows /= 0.7
            p = np.exp(rows - rows.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            wanted = p[np.arange(len(p)), request.tokens[request.hidden]]
            assert wanted[1] == 0
            assert (wanted > 0).sum() == 4
            np.testing.assert_allclose(answer.probability[LENGTH:], wanted, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_canvas_does_not_know_of_its_shadows(files: FamilyFiles, device: str) -> None:
    with open_model(files("Dream"), device) as model, model.session(slot_length=LENGTH + 5, threads=1) as session:
        for kind, extra in KINDS:
            request = shadowed(attention=kind, temperature=0.8, **extra)
            alone = session.propose([replace(request, hidden=None, shadows=None)])[0]
            assert same(alone, session.propose([request])[0], LENGTH)
            other = session.propose([replace(request, shadows=request.shadows + 1)])[0]
            assert same(alone, other, LENGTH)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_shadows_do_not_depend_on_threads_or_company(files: FamilyFiles, device: str, threads: int) -> None:
    with open_model(files("Dream"), device) as model:
        requests = [
            shadowed(1), Request(tokens_of(2, 9), np.arange(9, dtype=np.int32), 1), shadowed(3, True, 2),
            shadowed(4, slot=3, attention="block_causal", block_length=7),
        ]  # fmt: skip
        with model.session(slots=4, slot_length=LENGTH + 5, threads=1) as session:
            alone = [session.logits([request])[0] for request in requests]
        with model.session(slots=4, slot_length=LENGTH + 5, threads=threads) as session:
            for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
                together = session.logits([requests[index] for index in order])
                for index, rows in zip(order, together, strict=True):
                    assert np.array_equal(rows, alone[index])


@pytest.mark.parametrize("device", DEVICES)
def test_kept_rows_are_what_shadows_see(files: FamilyFiles, device: str) -> None:
    """A block of a block-causal canvas, the rest kept: the bits of computing everything."""
    with open_model(files("SDAR-MoE"), device) as model, model.session(slot_length=LENGTH + 5, threads=1) as session:
        request = shadowed(attention="block_causal", block_length=7)
        whole = session.logits([request])[0]
        rows = np.arange(14, 21, dtype=np.int32)
        part = session.logits([replace(request, score=rows, compute=rows)])[0]
        assert np.array_equal(part, whole[14:])


def test_what_cannot_be_done_is_refused(files: FamilyFiles) -> None:
    request = shadowed()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shadows": request.shadows[:3]}, "hidden has 5 positions and shadows 3 tokens"),
        ({"hidden": request.hidden[::-1]}, "hidden.1. is 10, expected ascending positions below 21"),
        ({"hidden": request.hidden + 1}, "hidden.4. is 21, expected ascending positions below 21"),
        ({"positions": np.arange(LENGTH + 5, dtype=np.int32)}, "positions and shadows exclude each other"),
        ({"tokens": tokens_of(1, LENGTH + 1)}, "length is 27, expected 1 to 26"),
        ({"shadows": np.full(5, VOCAB, np.int32)}, f"token {VOCAB} at position 21 is outside the vocabulary"),
    ]
    with open_model(files("Dream"), "scalar") as model, model.session(slot_length=LENGTH + 5) as session:
        for changes, message in cases:
            with pytest.raises(EngineError, match=message):
                session.logits([replace(request, **changes)])
    with (
        open_model(files("ModernBERT"), "scalar") as model,
        model.session(slot_length=LENGTH + 5) as session,
        pytest.raises(EngineError, match="shadows cannot be given to a model with windows"),
    ):
        session.logits([request])
