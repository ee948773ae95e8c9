"""How tensors are stored: the weight types that `convert` writes, which tensor gets which, and the encoding.

Vectors (norms, biases) and position embeddings stay float32. With q4_0 and q4_1 the token embedding and the head use
q8_0, because the error of 4 bits shows there first. Rows that do not divide into blocks of 32 fall back to f16.
Not here: the K-quants and importance matrices, which need the quantiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, OptionError
from .family import FloatArray

_BLOCK = 32
_F16_MAX = 65504.0


@dataclass(frozen=True)
class StorageType:
    name: str
    kind: gguf.GGMLQuantizationType
    file_type: int  # general.file_type
    head: str | None = None  # type of the token embedding and the head, None = this one
    largest: float = float("inf")  # magnitude beyond which a value, or the scale of its block, overflows


STORAGE_TYPES = {
    storage.name: storage
    for storage in (
        StorageType("f32", gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        StorageType("f16", gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, largest=_F16_MAX),
        StorageType("bf16", gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        StorageType("q8_0", gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, largest=127 * _F16_MAX),
        StorageType("q4_0", gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, "q8_0", 8 * _F16_MAX),
        StorageType("q4_1", gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1, "q8_0", _F16_MAX),
    )
}
_OF_THE_QUANTISER = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q5_0", "q5_1", "iq", "tq")
_HEAD_TENSORS = ("token_embd.weight", "output.weight")


def find_type(name: str) -> StorageType:
    storage = STORAGE_TYPES.get(name.lower())
    if storage is None:
        known = ", ".join(STORAGE_TYPES)
        if name.lower().startswith(_OF_THE_QUANTISER):
            raise OptionError(
                f"type '{name}' comes with the quantiser, which this version lacks; convert writes {known}"
            )
        raise OptionError(f"type '{name}' is unknown; convert writes {known}")
    return storage


def choose_type(target: str, shape: tuple[int, ...], wanted: StorageType) -> StorageType:
    """The type of one tensor, by its name in the file and its shape there."""
    if len(shape) < 2 or target == "position_embd.weight":
        return STORAGE_TYPES["f32"]
    if target in _HEAD_TENSORS and wanted.head is not None:
        wanted = STORAGE_TYPES[wanted.head]
    if wanted.kind in gguf.GGML_QUANT_SIZES and gguf.GGML_QUANT_SIZES[wanted.kind][0] > 1 and shape[-1] % _BLOCK:
        return STORAGE_TYPES["f16"]
    return wanted


def stored_bytes(shape: tuple[int, ...], storage: StorageType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[storage.kind]
    return int(np.prod(shape, dtype=np.int64)) // int(block) * int(size)


def encode(name: str, tensor: FloatArray, storage: StorageType) -> npt.NDArray[np.generic]:
    """The bytes of a tensor in its stored type; raises ModelFileError for values that the type cannot hold."""
    largest = float(np.max(np.abs(tensor), initial=0.0))
    if not np.isfinite(largest):
        raise ModelFileError(f"{name}: holds a value that is not finite; the checkpoint is damaged")
    if largest > storage.largest:
        raise ModelFileError(f"{name}: holds {largest:g}, too large for type {storage.name}; use bf16 or f32")
    if storage.kind == gguf.GGMLQuantizationType.F32:
        return np.ascontiguousarray(tensor, dtype=np.float32)
    encoded: npt.NDArray[np.generic] = gguf.quants.quantize(np.ascontiguousarray(tensor), storage.kind)
    return encoded
