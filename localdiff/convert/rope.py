"""The two orders in which the rows of Q and K are stored, and the way between them.

HF checkpoints rotate value j of a head with value j + head_dim/2 (half-split); llama.cpp's `llama` files and llama2.c
rotate 2j with 2j+1 (interleaved). Only the order of rows differs, so both ways are a transpose within each head. Works
for weights [heads * head_dim, dim] and biases [heads * head_dim].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def interleaved_rows(tensor: FloatArray, heads: int) -> FloatArray:
    """Half-split (HF) to interleaved (llama.cpp)."""
    return _swap(tensor, heads, (2, -1))


def half_split_rows(tensor: FloatArray, heads: int) -> FloatArray:
    """Interleaved (llama.cpp, llama2.c) to half-split (HF)."""
    return _swap(tensor, heads, (-1, 2))


def _swap(tensor: FloatArray, heads: int, pair: tuple[int, int]) -> FloatArray:
    grouped = tensor.reshape(heads, *pair, *tensor.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(tensor.shape)
