"""Every architecture row against transformers and against the float64 reference.

Budget: float32 weights run in float32, so 1e-5 of the largest logit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import FAMILIES, VOCAB, hf_logits, make_model, metadata_of, tensors_of, write_gguf
from reference import Reference, visible_to

from localdiff.engine import EngineModel, File, Request, isa_rows

ISAS = [name for name, supported in isa_rows() if supported]
BUDGET = 1e-5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """family -> (transformers model, GGUF file of float32), made when first asked for."""
    folder = tmp_path_factory.mktemp("families")
    made: dict[str, tuple[Any, Path]] = {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in made:
            family = FAMILIES[name]
            model = make_model(family)
            path = folder / f"{name}.gguf"
            made[name] = model, write_gguf(path, family.arch, metadata_of(family, model), tensors_of(family, model))
        return made[name]

    return get


def tokens_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, length, dtype=np.int32)


def engine_logits(path: Path, tokens: np.ndarray, isa: str | None = None, **canvas: Any) -> np.ndarray:
    with File.open(path) as file:
        session = EngineModel(file, isa=isa, threads=2).session(slot_length=len(tokens), threads=2)
        out = session.logits([Request(tokens=tokens, score=np.arange(len(tokens), dtype=np.int32), **canvas)])[0]
        session.close()
    return out


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(built: Any, name: str, isa: str) -> None:
    model, path = built(name)
    tokens = tokens_of(41)
    assert worst(engine_logits(path, tokens, isa), hf_logits(FAMILIES[name], model, tokens)) <= BUDGET


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "extra"),
    [("full", {}), ("causal", {}), ("block_causal", {"block_length": 8}), ("prefix_causal", {"prefix": 11})],
)
def test_logits_equal_the_reference(built: Any, name: str, kind: str, extra: dict[str, int]) -> None:
    tokens = tokens_of(29, 1)
    path = built(name)[1]
    expected = Reference(path).logits(tokens, visible_to(kind, len(tokens), **extra))
    assert worst(engine_logits(path, tokens, attention=kind, **extra), expected) <= BUDGET
