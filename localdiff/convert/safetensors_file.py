"""safetensors files: a JSON header of names, types, shapes and extents, then the data of all tensors without gaps.

Every number is checked against the file before it is used; what is accepted is what the format allows: extents that
start at 0, follow each other in some order and end with the file. Not here: shards and their index (checkpoint.py).
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .family import FloatArray
from .tensors import WEIGHT_TYPES, TensorSource, float_values, map_file, refuse_type

_MOST_HEADER = 100_000_000  # bytes, the limit of the format
_MOST_EXTENT = 1 << 46  # of one dimension and of all together
_OTHER_TYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_OTHER_TYPES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}
_SIZES = {name: int(kind[1]) for name, kind in WEIGHT_TYPES.items()} | _OTHER_TYPES


def read_safetensors(path: Path) -> list[TensorSource]:
    """The tensors of a file in the order of their data. Raises ModelFileError naming what is wrong."""
    data = map_file(path)
    header, start = _header(path, data)
    sources = []
    extents = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, first, last = _entry(path, name, entry)
        if last > data.size - start:
            raise ModelFileError(
                f"{path}: {name} ends at byte {last} of the data, which has {data.size - start}; is the file complete?"
            )
        extents.append((first, last, name))
        load = partial(_load, path, name, dtype, shape, data[start + first : start + last])
        sources.append((first, TensorSource(name, shape, load, dtype)))
    _check_extents(path, extents, int(data.size) - start)
    return [source for _, source in sorted(sources, key=lambda pair: pair[0])]


def _header(path: Path, data: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    if data.size < 8:
        raise ModelFileError(f"{path}: has {data.size} bytes, too few for a safetensors file")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > _MOST_HEADER:
        raise ModelFileError(
            f"{path}: is not a safetensors file: its header claims {length} bytes, expected at most {_MOST_HEADER}"
        )
    if length > data.size - 8:
        raise ModelFileError(
            f"{path}: its header claims {length} bytes, but the file has {data.size}; is the file complete?"
        )
    try:
        header = json.loads(data[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: its header cannot be read as JSON: {error}") from None
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: its header is a {type(header).__name__}, expected a JSON object")
    return header, 8 + length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (name, _), *_ = (Counter(name for name, _ in pairs)).most_common(1)
        raise ValueError(f"'{name}' occurs twice")
    return fields


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, end) of one tensor, consistent with each other."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise ModelFileError(f"{path}: the header's entry of {name} has no usable dtype, shape and data_offsets")
    if dtype not in _SIZES:
        raise ModelFileError(f"{path}: {name} has the unknown type {dtype}; known: {', '.join(_SIZES)}")
    first, last = offsets
    elements = prod(shape)
    if elements > _MOST_EXTENT or last - first != elements * _SIZES[dtype]:
        raise ModelFileError(
            f"{path}: {name} spans {last - first} bytes, but {dtype} values of shape {list(shape)} need "
            f"{elements * _SIZES[dtype]}"
        )
    return dtype, shape, first, last


def _counts(values: object) -> tuple[int, ...] | None:
    """A list of whole numbers that may be extents, None where it is something else."""
    if isinstance(values, list) and all(type(value) is int and 0 <= value <= _MOST_EXTENT for value in values):
        return tuple(values)
    return None


def _check_extents(path: Path, extents: list[tuple[int, int, str]], total: int) -> None:
    end = 0
    for first, last, name in sorted(extents):
        if first != end:
            what = "overlaps the tensor before it" if first < end else "leaves a gap before it"
            raise ModelFileError(f"{path}: {name} starts at byte {first} of the data and {what}, expected {end}")
        end = last
    if end != total:
        raise ModelFileError(f"{path}: {total - end} bytes at its end belong to no tensor, expected none")


def _load(path: Path, name: str, dtype: str, shape: tuple[int, ...], data: npt.NDArray[np.uint8]) -> FloatArray:
    if dtype not in WEIGHT_TYPES:
        raise refuse_type(path, name, dtype)
    return float_values(data.view("<" + WEIGHT_TYPES[dtype]).reshape(shape), dtype)
