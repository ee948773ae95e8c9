"""GGUF files: validated, immutable, their metadata and tensors decoded when asked for."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._abi import ffi
from ..errors import ModelFileError, OptionError
from .binding import Closable, Float32, Handle, check, decode_text, library, new_struct, text_of

ACCESS = {"map": 0, "read": 1}  # LD_ACCESS_*


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; shape is numpy's order, slowest first."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    index: int


class Metadata(Mapping[str, Any]):
    """The key-values of a file as str, int, float, bool and lists of them; each is decoded when first touched."""

    def __init__(self, handle: Handle):
        self._handle = handle  # shared with the File, which may be gone or closed
        self._values: dict[str, Any] = {}
        self._index: dict[str, int] = {}
        for i in range(library().ld_gguf_metadata_count(handle.pointer())):
            entry = self._entry(i)
            self._index[decode_text(ffi.buffer(entry.key, entry.key_length)[:])] = i

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            entry = self._entry(self._index[key])
            data = ffi.buffer(entry.data, entry.bytes)[:] if entry.bytes else b""
            self._values[key] = _value(entry.type, entry.element, entry.count, data)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def count(self, key: str) -> int | None:
        """Elements of an array value without decoding it, None for other values."""
        entry = self._entry(self._index[key])
        return int(entry.count) if entry.type == _ARRAY else None

    @property
    def nbytes(self) -> int:
        """Bytes of all values in the file."""
        return sum(int(self._entry(index).bytes) for index in self._index.values())

    def _entry(self, index: int) -> Any:
        entry = new_struct("ld_metadata")
        check(library().ld_gguf_metadata(self._handle.pointer(), index, entry))
        return entry


_STRING, _ARRAY = 8, 9
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}


def _value(kind: int, element: int, count: int, data: bytes) -> Any:
    if kind == _STRING:
        return decode_text(data)
    if kind != _ARRAY:
        return np.frombuffer(data, _SCALARS[kind], 1)[0].item()
    if element != _STRING:
        return np.frombuffer(data, _SCALARS[element], count).tolist()
    strings, at = [], 0
    length_at = struct.Struct("<Q").unpack_from
    for _ in range(count):
        (length,) = length_at(data, at)
        strings.append(decode_text(data[at + 8 : at + 8 + length]))
        at += 8 + length
    return strings


class File(Closable):
    """An open GGUF file: validated, immutable."""

    def __init__(self, path: str | os.PathLike[str], access: str = "map"):
        if access not in ACCESS:
            raise OptionError(f"access is '{access}', expected one of {', '.join(ACCESS)}")
        lib = library()
        out = ffi.new("ld_gguf **")
        check(lib.ld_gguf_open(os.fsencode(path), ACCESS[access], out))
        self._handle = Handle("file", out[0], lib.ld_gguf_free)
        self.path = Path(path)

    @staticmethod
    def open(path: str | os.PathLike[str], access: str = "map") -> File:
        """Open and validate a file. access: "map" starts at once, "read" survives the file being cut while in use.

        Raises ModelFileError naming the field and its byte offset.
        """
        return File(path, access)

    @functools.cached_property
    def metadata(self) -> Metadata:
        return Metadata(self._handle)

    @functools.cached_property
    def tensors(self) -> list[TensorInfo]:
        lib, handle = library(), self._handle.pointer()
        tensors = []
        for index in range(lib.ld_gguf_tensor_count(handle)):
            raw = new_struct("ld_tensor")
            check(lib.ld_gguf_tensor(handle, index, raw))
            name = decode_text(ffi.buffer(raw.name, raw.name_length)[:])
            shape = tuple(reversed([int(raw.dims[d]) for d in range(raw.n_dims)]))
            tensors.append(TensorInfo(name, text_of(raw.type_name), shape, int(raw.bytes), index))
        return tensors

    @functools.cached_property
    def _tensor_by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> TensorInfo:
        """What the file says of a tensor. Raises ModelFileError where it does not exist."""
        if name not in self._tensor_by_name:
            raise ModelFileError(f"{self.path}: there is no tensor '{name}' among its {len(self.tensors)}")
        return self._tensor_by_name[name]

    def decode(self, name: str) -> Float32:
        """The tensor's values as float32 in its shape. Raises ModelFileError where it does not exist."""
        shape = self.tensor(name).shape
        return self.decode_rows(name, 0, int(np.prod(shape[:-1], dtype=np.int64))).reshape(shape)

    def decode_rows(self, name: str, first: int, rows: int) -> Float32:
        """float32 [rows, columns]: rows of a tensor, all its dimensions but the last counted as one."""
        tensor = self.tensor(name)
        out = np.empty((rows, tensor.shape[-1]), np.float32)
        pointer = ffi.cast("float *", out.ctypes.data)
        check(library().ld_gguf_decode(self._handle.pointer(), tensor.index, first, rows, pointer))
        return out
