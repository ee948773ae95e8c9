"""The quantiser against llama.cpp's: the type of every tensor of a mixture, and the errors of every type.

llama.cpp's answers are in goldens/quantize.json (tools/record_quantize_goldens.py records them); models and tensors are
those of quantize_cases.py. The mean errors must be no larger than its, with importance and without.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_cases import (
    CASES,
    CHUNK_LENGTH,
    CHUNKS,
    DATASET,
    ENCODED,
    MIXTURE_NAMES,
    WEIGHTED_CASE,
    WEIGHTED_MIXTURES,
    ModelCase,
    compact,
    errors,
    samples,
    smollm2_samples,
    weighted_result,
    write_weighted_case,
)
from real_models import smollm2_file

from localdiff import engine
from localdiff.errors import ModelFileError, OptionError
from localdiff.quantize import quantize
from localdiff.quantize.encoding import encode, stored_bytes
from localdiff.quantize.mixtures import MIXTURES, Candidate, choose_types, facts_of, find_mixture, substitutes

T = gguf.GGMLQuantizationType
GOLDENS = json.loads((Path(__file__).parent / "goldens" / "quantize.json").read_text())


# ---- mixtures ----


def chosen_types(case: ModelCase, mixture: str, importance: bool = False) -> dict[str, str]:
    kept = {name: T.F16 if len(shape) > 1 and "gate_inp" not in name else T.F32 for name, shape in case.shapes.items()}
    candidates = [Candidate(name, shape, kept[name]) for name, shape in case.shapes.items()]
    chosen = choose_types(candidates, MIXTURES[mixture], facts_of(case.metadata), importance)
    return {name: each.kind.name for name, each in chosen.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(case: ModelCase) -> None:
    recorded = GOLDENS["types"][case.name]
    compared = 0
    for mixture in MIXTURE_NAMES:
        for importance in (False, True):
            expected = recorded.get(mixture + "+imatrix" * importance, recorded[mixture])
            if expected is None:  # llama.cpp refuses rows that are no whole blocks
                continue
            assert compact(chosen_types(case, mixture, importance), mixture) == expected, (mixture, importance)
            compared += 1
    assert compared >= len(MIXTURE_NAMES)


def test_rows_that_are_no_blocks() -> None:
    """Where 256 does not divide a row the next type of blocks of 32, where 32 does not f16; each is told."""
    shapes = {"blk.0.ffn_up.weight": (8, 288), "blk.0.ffn_gate.weight": (8, 100), "blk.0.attn_q.weight": (8, 512)}
    candidates = [Candidate(name, shape, T.F32) for name, shape in shapes.items()]
    facts = facts_of({"general.architecture": "llama", "llama.block_count": 1})
    expected = {"q2_k": T.Q4_0, "q3_k_s": T.Q4_0, "q4_k_s": T.Q5_0, "q5_k_s": T.Q5_1, "q6_k": T.Q8_0}
    for name, fallback in expected.items():
        chosen = choose_types(candidates, MIXTURES[name], facts)
        assert [each.kind for each in chosen.values()] == [MIXTURES[name].base, T.F16, fallback]
        told = substitutes(chosen)
        assert any(f"not divisible by 256, stored as {fallback.name.lower()}" in each for each in told)
        assert any("stored as f16" in each and "ffn_gate" in each for each in told)
    assert substitutes(choose_types(candidates, MIXTURES["bf16"], facts)) == []


def test_mixtures_by_name() -> None:
    assert find_mixture("Q4_K_M") is find_mixture("q4_k") is MIXTURES["q4_k_m"]
    with pytest.raises(OptionError, match="type 'iq2_xxs' cannot be written; choose one of f32, f16"):
        find_mixture("iq2_xxs")
    assert all(engine.can_quantize(int(mixture.base)) for mixture in MIXTURES.values())
    assert not engine.can_quantize(int(T.IQ2_XXS))


# ---- errors ----


def check_errors(name: str, values: np.ndarray, importance: np.ndarray) -> None:
    for kind in ENCODED:
        plain = errors(encode(name, values, kind), kind, values, importance)[0]
        weighted = errors(encode(name, values, kind, importance), kind, values, importance)[1]
        theirs = GOLDENS["rmse"][name][kind.name]
        # Values on a coarser grid already can come back exactly; what half precision takes from an offset is as good.
        exact = 1e-4 * float(np.sqrt(np.square(values).mean()))
        assert plain <= max(theirs[0], exact), f"{kind.name}: {plain:.5g}, llama.cpp {theirs[0]:.5g}"
        assert weighted <= max(theirs[1], exact), f"{kind.name} weighted: {weighted:.5g}, llama.cpp {theirs[1]:.5g}"


@pytest.mark.parametrize("name", list(samples()))
def test_errors_are_no_larger_than_those_of_llama_cpp(name: str) -> None:
    check_errors(name, *samples()[name])


def test_errors_on_real_weights_are_no_larger_than_those_of_llama_cpp() -> None:
    for name, (values, importance) in smollm2_samples(smollm2_file()).items():
        check_errors(name, values, importance)


@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_importance_buys_what_it_is_given_for(kind: T) -> None:
    values, importance = samples()["student t, 4"]
    with_it = errors(encode("x", values, kind, importance), kind, values, importance)
    without = errors(encode("x", values, kind), kind, values, importance)
    assert with_it[1] < without[1]
    assert with_it[0] > without[0]


def test_llama_cpp_takes_an_importance_matrix_of_ours(tmp_path: Path) -> None:
    """The file was read by ggml's reader, its entries handed to llama.cpp's quantiser; ours does as well or better."""
    recorded = GOLDENS["imatrix"]
    weighted = sum(len(shape) > 1 for shape in WEIGHTED_CASE.shapes.values()) - 1  # the embedding has no entry
    stated = {"type": "imatrix", "dataset": DATASET, "chunks": CHUNKS, "length": CHUNK_LENGTH, "entries": weighted}
    assert recorded["read"] == stated | {f"{mixture} without": 1 for mixture in WEIGHTED_MIXTURES}
    model, matrix, out = tmp_path / "model.gguf", tmp_path / "im.gguf", tmp_path / "out.gguf"
    write_weighted_case(model, matrix)
    for mixture in WEIGHTED_MIXTURES:
        quantize(model, out, type=mixture, imatrix=matrix)
        types, error = weighted_result(model, matrix, out)
        assert compact(types, mixture) == recorded[mixture]["types"]
        assert error <= recorded[mixture]["rmse"]


# ---- the engine's function ----


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([*ENCODED, T.F16, T.BF16, T.F32]), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1)
)
def test_rows_are_independent(kind: T, rows: int, blocks: int, seed: int) -> None:
    """A row's bytes are the same alone, among others and on any number of threads; zeros stay zeros."""
    columns = 256 * blocks
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[rows // 2] = 0
    whole = encode("x", values, kind, threads=3).reshape(rows, -1)
    for row in {0, rows // 2, rows - 1}:
        assert np.array_equal(encode("x", values[row], kind, threads=1), whole[row])
    decoded = gguf.quants.dequantize(whole, kind) if kind not in (T.F16, T.F32) else None
    if decoded is not None:
        assert (decoded[rows // 2] == 0).all()
        assert np.square(decoded - values).mean() < 0.15 * max(np.square(values).mean(), 1e-9)


def test_stored_bytes() -> None:
    assert stored_bytes((3, 512), T.Q4_K) == 3 * 2 * 144
    assert stored_bytes((7, 5), T.BF16) == 70


def test_what_cannot_be_written_is_refused() -> None:
    values = np.zeros((2, 256), np.float32)
    with pytest.raises(OptionError, match=r"importance has shape \(2,\), expected \(256,\)"):
        encode("x", values, T.Q4_K, np.ones(2, np.float32))
    with pytest.raises(ModelFileError, match="x: the importance of column 3 is -1"):
        encode("x", values, T.Q4_K, np.where(np.arange(256) == 3, -1, 1).astype(np.float32))
    with pytest.raises(ModelFileError, match="out_bytes is 3, expected 288"):
        engine.quantize(int(T.Q4_K), values, 3)
    with pytest.raises(ModelFileError, match="rows of 100 values do not divide into the blocks of 32"):
        engine.quantize(int(T.Q8_0), np.zeros((2, 100), np.float32), 2 * 3 * 34)
    with pytest.raises(ModelFileError, match="type MXFP4 cannot be written"):
        engine.quantize(int(T.MXFP4), values, 272)
    values[1, 9] = np.inf
    with pytest.raises(ModelFileError, match="x: row 1, column 9 holds inf, which is not finite; the checkpoint is"):
        encode("x", values, T.Q6_K)
    values[1, 9] = 1e6
    with pytest.raises(ModelFileError, match="x: row 1, column 9 holds 1e.06, too large for type Q6_K.*; use bf16"):
        encode("x", values, T.Q6_K)
