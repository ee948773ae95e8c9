"""What every reader of checkpoints gives: tensors by name, whose values become float32 when they are asked for.

The bytes stay in the mapped file until then. Not here: the containers (safetensors_file.py, torch_file.py, llama2c.py),
packed integer formats, whose values cannot be had without the code that packed them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .family import FloatArray

# The types that hold weights, by the names of safetensors. BF16, for which numpy has no type, is half a float32.
WEIGHT_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2"}


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a checkpoint; `load` reads it as a float32 array of its own."""

    name: str  # in the file
    shape: tuple[int, ...]
    load: Callable[[], FloatArray]
    dtype: str = "F32"  # in the file, by the names of safetensors


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a file, memory-mapped and read-only. Raises ModelFileError where it is empty or cannot be read."""
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from None


def float_values(values: npt.NDArray[Any], dtype: str) -> FloatArray:
    """A new float32 array of the values, whose numpy type is that of WEIGHT_TYPES in either byte order."""
    if dtype == "BF16":
        widened: FloatArray = (values.astype(np.uint32) << 16).view(np.float32)
        return widened
    return values.astype(np.float32)


def refuse_type(path: Path, name: str, dtype: str) -> ModelFileError:
    known = ", ".join(WEIGHT_TYPES)
    return ModelFileError(f"{path}: {name} has type {dtype}, which is not supported; supported: {known}")
