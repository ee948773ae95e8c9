"""Fast arithmetic on the GPU, with its kernels emulated: whole models, and where copies of weights lie.

Models whose matrices are quantised and whose last group of 128 is shorter, against the scalar row's fast arithmetic;
copies that stay, that are made for every product and that make room, all with the same bits. The products by themselves
are tested in cpp/test_cuda_int8.cpp. The emulator's scratch holds 8 KiB of a weight, so that these models have parts.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import FAMILIES, make_model, metadata_of, tensors_of, write_gguf
from emulated import PLUGIN, needs_plugin
from test_cli import localdiff as command
from test_cuda import ROOT, chosen, compare, divergence, open_model, tokens_of  # noqa: F401
from test_cuda_graphs import STEPS, assert_equal, graphs

import localdiff
from localdiff.arithmetic import Arithmetic
from localdiff.engine import EngineModel, Request
from localdiff.errors import OptionError

pytestmark = needs_plugin

# Free memory is set by an environment variable that a GPU knows nothing of.
emulated_memory = pytest.mark.skipif("LOCALDIFF_CUDA" in os.environ, reason="a GPU has the memory that it has")

LAYERS = 2
SIZES = {"hidden_size": 160, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": LAYERS}
KEYS = {
    "embedding_length": 160, "feed_forward_length": 96, "attention.key_length": 16, "attention.value_length": 16,
    "block_count": LAYERS,
}  # fmt: skip
TIED, EXPERTS = "SDAR", "SDAR-MoE"
SOME = [STEPS[i] for i in (0, 1, 3, 4, 5)]  # two kinds of step, met twice and three times


class Files:
    """Quantised models of a family, of 160 x 64 to 160 x 160 values a matrix; each is written when first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name: str, kind: str = "Q8_0") -> Path:
        path = self.folder / f"{name}-{kind}.gguf"
        if not path.exists():
            family = FAMILIES[name]
            own: dict[str, Any] = {"moe_intermediate_size": 32} if name == EXPERTS else {}
            keys = {"expert_feed_forward_length": 32} if own else {}
            family = replace(
                family, config={**family.config, **SIZES, **own}, metadata={**family.metadata, **KEYS, **keys}
            )
            model = make_model(family, scale=0.1)
            write_gguf(path, family.arch, metadata_of(family, model), tensors_of(family, model), quantise=kind)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("fast"))


def logits(model: EngineModel, tokens: np.ndarray, math: str = "fast") -> np.ndarray:
    with model.session(slot_length=len(tokens), threads=1, math=math) as session:
        return session.logits([Request(tokens, np.arange(len(tokens), dtype=np.int32))])[0]


def answers(model: EngineModel, math: str = "fast") -> list[Any]:
    with model.session(slots=2, slot_length=16, threads=1, math=math) as session:
        return [step(session) for step in SOME]


@pytest.mark.parametrize(
    ("name", "kind"), [(TIED, "Q8_0"), (TIED, "Q5_1"), (EXPERTS, "Q8_0"), (EXPERTS, "MXFP4"), ("Fast-dLLM v2", "Q4_0")]
)
def test_whole_models_give_the_processors_logits(files: Files, name: str, kind: str) -> None:
    # Norms differ in their last bits, which moves an input by a step of 8 bits now and then: not with so few tokens.
    tokens, path = tokens_of(7), files(name, kind)
    expected = logits(open_model(path, "cpu"), tokens)
    model = open_model(path)
    found, exact = logits(model, tokens), logits(model, tokens, "exact")
    assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5
    assert 0 < divergence(exact, found) <= 5e-3


@pytest.mark.parametrize("name", [TIED, EXPERTS])
def test_every_split_of_the_layers(files: Files, name: str) -> None:
    tokens, path = tokens_of(7), files(name)
    expected = logits(open_model(path, "cpu"), tokens)
    for layers in range(LAYERS + 1):
        found = logits(open_model(path, gpu_layers=layers), tokens)
        assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5


@emulated_memory
@pytest.mark.parametrize("name", [TIED, EXPERTS])
def test_the_same_bits_wherever_memory_lets_weights_lie(
    files: Files, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files(name)
    model = open_model(path)
    before, recorded = model.memory.device_weights, graphs()
    resident = answers(model)
    assert graphs()[1] - recorded[1] == 3
    kept = model.memory.device_weights
    # 34 bytes per 32 values; 1 per value and 4 per group, of which rows of 160 have two
    assert 0.8 * before < kept - before < 1.2 * before
    assert_equal(resident, answers(model))
    assert model.memory.device_weights == kept

    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "off")
    assert_equal(resident, answers(open_model(path)))
    monkeypatch.delenv("LOCALDIFF_CUDA_GRAPHS")

    short = open_model(path, gpu_layers=LAYERS)
    monkeypatch.setenv("LD_EMULATED_MEMORY", str(1 << 20))
    before, recorded = short.memory.device_weights, graphs()
    assert_equal(resident, answers(short))
    assert graphs()[1] - recorded[1] == 3
    assert short.memory.device_weights == before


@emulated_memory
def test_some_copies_stay_and_the_others_are_made_for_every_product(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = open_model(files(TIED)), open_model(files(TIED), gpu_layers=LAYERS)
    tokens = tokens_of(9)
    expected, before = logits(model, tokens), other.memory.device_weights
    # A sixteenth of 4 GiB is left free, and the head's copy is larger than those of attention.
    monkeypatch.setenv("LD_EMULATED_MEMORY", str((4 << 30) // 16 + 12_000))
    assert np.array_equal(logits(other, tokens), expected)
    all_copies = model.memory.device_weights - before
    assert 0 < other.memory.device_weights - before < all_copies


def test_exact_and_fast_sessions_side_by_side(files: Files) -> None:
    path = files(EXPERTS)
    alone = {math: answers(open_model(path), math) for math in ("exact", "fast")}
    with open_model(path) as model:
        sessions = {
            key: model.session(slots=2, slot_length=16, threads=1, math=key.split()[0])
            for key in ("exact", "fast", "fast again")
        }
        told: dict[str, list[Any]] = {key: [] for key in sessions}
        for step in SOME:
            for key, session in sessions.items():
                told[key].append(step(session))
        for key, session in sessions.items():
            session.close()
            assert_equal(told[key], alone[key.split()[0]])


@emulated_memory
def test_copies_that_no_session_uses_make_room(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = open_model(files(TIED)), tokens_of(9)
    before = model.memory.device_weights
    expected = logits(model, tokens)
    kept = model.memory.device_weights
    with model.session(slot_length=9, math="fast") as using:
        using.logits([Request(tokens, np.arange(9, dtype=np.int32))])
        monkeypatch.setenv("LD_EMULATED_MEMORY", "4096")
        assert np.array_equal(logits(model, tokens), expected)
        assert model.memory.device_weights == kept  # a session reads them
    with model.session(slot_length=9):
        assert model.memory.device_weights == before


def test_products_that_are_not_int8_refuse(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDIFF_CUDA_PRODUCTS", "float32")
    model = open_model(files(TIED))
    with pytest.raises(OptionError, match="math is fast, which has int8 products, and LOCALDIFF_CUDA_PRODUCTS"):
        model.session(slot_length=4, math="fast")


@pytest.mark.usefixtures("chosen")
def test_auto_is_exact_on_a_gpu_and_says_why() -> None:
    path = ROOT / "localdiff" / "models" / "localdiff-stories.gguf"
    reason = "fast arithmetic has not been timed on a GPU, ask for it with math fast"
    for layers in (None, 1):
        with localdiff.load(path, device="cuda", gpu_layers=layers) as model:
            assert model.arithmetic == Arithmetic("exact", None, reason)
        with localdiff.load(path, device="cuda", gpu_layers=layers, math="fast") as model:
            assert model.arithmetic == Arithmetic("fast", None, "as asked for")
    assert f"exact: {reason}" in command("info", path).stdout


def test_the_default_model_in_fast_is_the_processors() -> None:
    """The same integers on both sides; the bound is that of exact arithmetic."""
    text = "Once upon a time there was a little bear who lived in a wood. " * 3
    path = ROOT / "localdiff" / "models" / "localdiff-stories.gguf"
    mean, _, other = compare(path, text, 16, PLUGIN, "fast")
    assert mean <= 1e-3
    assert other == 0
