"""The quantiser: rows of float32 become the blocks of a tensor type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._abi import ffi
from ..errors import ModelFileError, OptionError
from .binding import Float32, check, count_of, library, new_struct


def can_quantize(kind: int) -> bool:
    """Whether quantize() writes the tensor type of this GGML number."""
    return bool(library().ld_quantize_supported(int(kind)))


def quantize(
    kind: int, values: Float32, nbytes: int, importance: Float32 | None = None, threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """The blocks of a tensor type for rows of values; the same bytes whatever the threads and the processor.

    kind        GGML number of the tensor type
    values      float32 [..., columns]
    nbytes      what the result takes, by the caller's reckoning
    importance  float32 [columns], cost of a squared error in each column, not negative; None = all alike
    returns     uint8 [nbytes]
    raises      ModelFileError for values that are not finite or that the type cannot hold, or a bad importance
    """
    array = np.ascontiguousarray(values, np.float32)
    columns = array.shape[-1]
    weights = ffi.NULL
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if importance.shape != (columns,):
            raise OptionError(f"importance has shape {importance.shape}, expected ({columns},), one value per column")
        weights = ffi.cast("float *", importance.ctypes.data)
    out = np.empty(nbytes, np.uint8)
    options = new_struct("ld_quantize_options", threads=count_of("threads", threads), importance=weights)
    source, target = ffi.cast("float *", array.ctypes.data), ffi.cast("void *", out.ctypes.data)
    status = library().ld_quantize_rows(int(kind), source, array.size // columns, columns, options, target, nbytes)
    check(status, invalid=ModelFileError)
    return out
