"""Values -> the stored bytes of a type. The arithmetic is the engine's; here are sizes and messages."""

from __future__ import annotations

from typing import TypeAlias

import gguf
import numpy as np
import numpy.typing as npt

from .. import engine
from ..errors import ModelFileError

T: TypeAlias = gguf.GGMLQuantizationType


def stored_bytes(shape: tuple[int, ...], kind: T) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // int(block) * int(size)


def encode(
    name: str,
    values: npt.NDArray[np.float32],
    kind: T,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor, or of rows of it; raises ModelFileError for values that the type cannot hold."""
    try:
        return engine.quantize(int(kind), values, stored_bytes(values.shape, kind), importance, threads)
    except ModelFileError as error:
        if "not finite" in str(error):
            raise ModelFileError(f"{name}: {error}; the checkpoint is damaged") from None
        raise ModelFileError(f"{name}: {error}; use bf16 or f32") from None
