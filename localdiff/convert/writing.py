"""Writing of one GGUF file: typed metadata, planned tensors streamed one at a time, and the check of the result.

Nothing is held in memory but the metadata and the tensor being written. The check re-opens the finished file with the
reader of the `gguf` package and compares every key, name, shape, type and extent with the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..atomic import atomic_file
from ..errors import ModelFileError
from .gguf_file import GgufFile, open_gguf

Progress = Callable[[str, int, int], None]  # name of the tensor written, tensors done, tensors in all


@dataclass(frozen=True)
class Typed:
    """A metadata value whose GGUF types are given; other values get theirs from Python's."""

    value: Any
    kind: gguf.GGUFValueType
    element: gguf.GGUFValueType | None = None


@dataclass(frozen=True)
class PlannedTensor:
    name: str
    shape: tuple[int, ...]  # of the values, slowest first
    kind: gguf.GGMLQuantizationType
    nbytes: int
    load: Callable[[], npt.NDArray[np.generic]]  # the stored bytes, as an array of any type


def write_gguf(
    out: Path,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: list[PlannedTensor],
    *,
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> None:
    """Write atomically. `metadata` holds everything but general.architecture; None values are not allowed."""

    def validate(path: Path) -> None:
        _validate(path, {"general.architecture", *metadata}, tensors)

    with atomic_file(out, validate=validate, overwrite=overwrite) as temporary:
        writer = gguf.GGUFWriter(temporary, arch)
        writer.data_alignment = alignment
        try:
            for key, value in metadata.items():
                typed = _typed(key, value)
                writer.add_key_value(key, typed.value, typed.kind, typed.element)
            for tensor in tensors:
                # numpy's type is only a carrier here: the shape is that of the values
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, tensor.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, tensor in enumerate(tensors, start=1):
                writer.write_tensor_data(tensor.load())
                if progress is not None:
                    progress(tensor.name, done, len(tensors))
        finally:
            writer.close()


def _typed(key: str, value: Any) -> Typed:
    kinds = gguf.GGUFValueType
    if isinstance(value, Typed):
        return value
    if isinstance(value, list):
        if key == "tokenizer.ggml.token_type":  # the one list that is signed by convention
            return Typed(value, kinds.ARRAY, kinds.INT32)
        return Typed(value, kinds.ARRAY, _typed(key, value[0]).kind)
    # bool before int: a bool is an int to Python
    for python, kind in ((bool, kinds.BOOL), (int, kinds.UINT32), (float, kinds.FLOAT32), (str, kinds.STRING)):
        if isinstance(value, python):
            return Typed(value, kind)
    raise ModelFileError(f"{key}: a value of type {type(value).__name__} has no GGUF type")


def _validate(path: Path, keys: Iterable[str], tensors: list[PlannedTensor]) -> None:
    reader = open_gguf(path)
    found = [
        (tensor.name, tuple(reversed(tensor.shape.tolist())), tensor.tensor_type, tensor.n_bytes)
        for tensor in reader.tensors
    ]
    planned = [(tensor.name, tensor.shape, tensor.kind, tensor.nbytes) for tensor in tensors]
    missing = set(keys) - set(reader.fields)
    if found != planned or missing:
        raise ModelFileError(
            f"{path}: the written file does not read back as planned; the disk or the memory is at fault"
        )


def copied_metadata(source: GgufFile) -> tuple[dict[str, Typed], list[str]]:
    """The key-values of a file with their types, to be written again, and notices of what cannot be."""
    metadata: dict[str, Typed] = {}
    notices: list[str] = []
    for key, entry in source.fields.items():
        if key.startswith("GGUF."):  # the header, as the reader presents it
            continue
        if entry.types[0] == gguf.GGUFValueType.ARRAY and len(entry.types) < 2:
            notices.append(f"the empty list {key} is left out")
            continue
        metadata[key] = Typed(entry.contents(), *entry.types[:2])
    return metadata, notices
