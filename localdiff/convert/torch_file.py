"""Files of torch.save that hold a table of tensors, read without torch and without executing their pickles.

Two containers: since torch 1.6 an uncompressed zip archive (NAME/data.pkl, NAME/data/KEY for each storage), before that
five pickles in a row (magic number, version, system, table, storage keys) and then the storages, each after its count.
Storages stay in the mapped file. Every extent is checked against the file when it is opened, so loading cannot fail.
Not here: TorchScript archives, whole pickled models, tensors whose values overlap, quantised or complex ones (refused).
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .family import FloatArray
from .pickled import MOST_BYTES, Call, Global, Refused, read_pickle
from .tensors import WEIGHT_TYPES, TensorSource, float_values, map_file, refuse_type

_Bytes = npt.NDArray[np.uint8]
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MOST_EXTENT = 1 << 46
_STORAGES = {  # class in torch -> type by the names of safetensors, numpy type
    "DoubleStorage": ("F64", "f8"),
    "FloatStorage": ("F32", "f4"),
    "HalfStorage": ("F16", "f2"),
    "BFloat16Storage": ("BF16", "u2"),
    "LongStorage": ("I64", "i8"),
    "IntStorage": ("I32", "i4"),
    "ShortStorage": ("I16", "i2"),
    "CharStorage": ("I8", "i1"),
    "ByteStorage": ("U8", "u1"),
    "BoolStorage": ("BOOL", "u1"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    kind: str  # numpy type without byte order
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * int(self.kind[1])


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # in values, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> list[TensorSource]:
    """The tensors of a state dict in its order. Raises ModelFileError for everything that is not one."""
    data = map_file(path)
    try:
        read = _read_zip if data[:4].tobytes() == b"PK\x03\x04" else _read_legacy
        table, order, storages = read(data)
        tensors = _state_dict(table)
    except Refused as problem:
        raise ModelFileError(f"{path}: cannot be read as a table of tensors: it {problem}") from None
    sources = []
    for name, tensor in tensors.items():
        load = partial(_load, path, name, tensor, order, storages[tensor.storage.key])
        sources.append(TensorSource(name, tensor.shape, load, tensor.storage.dtype))
    return sources


def _state_dict(table: Any) -> dict[str, _Tensor]:
    if not isinstance(table, dict):
        raise Refused(f"holds a {type(table).__name__.strip('_').lower()}, expected a dictionary of tensors")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            kind = type(tensor).__name__.strip("_").lower()
            raise Refused(f"holds a {kind} under {name!r:.80}, expected names and tensors only")
    return table


# ---- the globals of a table of tensors ----


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise Refused("makes a dictionary from arguments")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> _Tensor:
    """storage, offset, sizes, strides, and what concerns training."""
    storage, offset, sizes, strides = arguments[:4] if len(arguments) >= 4 else (None,) * 4
    counts = all(isinstance(part, tuple) and all(_count(value) for value in part) for part in (sizes, strides))
    if not isinstance(storage, _Storage) or not _count(offset) or not counts or len(sizes) != len(strides):
        raise Refused("rebuilds a tensor from something else than a storage, an offset, sizes and strides")
    elements = prod(sizes)
    if elements > _MOST_EXTENT:
        raise Refused(f"holds a tensor of shape {list(sizes)}, more than 2^46 values")
    if elements:
        reach = 1  # values from the first to the last, over the dimensions so far
        for stride, size in sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1):
            if stride < reach:
                raise Refused(f"holds a tensor of shape {list(sizes)} and strides {list(strides)}, which overlap")
            reach += (size - 1) * stride
        if offset + reach > storage.count:
            raise Refused(
                f"holds a tensor of shape {list(sizes)} that ends at value {offset + reach} of storage "
                f"'{storage.key}', which has {storage.count}"
            )
    return _Tensor(storage, offset, sizes, strides)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_EXTENT


def _parameter(arguments: tuple[Any, ...]) -> _Tensor:
    if not arguments or not isinstance(arguments[0], _Tensor):
        raise Refused("rebuilds a parameter from something else than a tensor")
    return arguments[0]


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], (tuple, list)):
        raise Refused("rebuilds a size from something else than numbers")
    return tuple(arguments[0])


_CALLS: dict[str, Call | None] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    **{f"torch.{name}": None for name in _STORAGES},
}


def _storage(identity: tuple[Any, ...]) -> _Storage:
    """('storage', class, key, device, count)"""
    kind, storage_class, key, _, count = identity if len(identity) == 5 else (None,) * 5
    if kind != "storage" or not isinstance(storage_class, Global):
        raise Refused(f"refers to a {str(kind)[:40]!r} outside of it, expected storages of tensors only")
    name = storage_class.name.removeprefix("torch.")
    # Keys are numbers (of torch, or addresses), never paths.
    if name not in _STORAGES or not isinstance(key, str) or not key.isdecimal() or not key.isascii():
        raise Refused(f"names the storage {str(key)[:40]!r} of type {name}, expected a number and a known type")
    if count is None or not _count(count):
        raise Refused(f"claims {count!s:.40} values for storage '{key}'")
    return _Storage(key, *_STORAGES[name], count)


class _Storages:
    """The storages that a table refers to, each under one description."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def find(self, identity: tuple[Any, ...]) -> _Storage:
        storage = _storage(identity)
        if self.by_key.setdefault(storage.key, storage) != storage:
            raise Refused(f"describes storage '{storage.key}' in two ways")
        return storage

    def find_legacy(self, identity: tuple[Any, ...]) -> _Storage:
        if len(identity) == 6 and identity[5] is not None:
            raise Refused("holds a view of a storage, as only torch before 0.4 wrote")
        return self.find(identity[:5])


# ---- the containers ----


def _read_zip(data: _Bytes) -> tuple[Any, str, dict[str, _Bytes]]:
    """(table, byte order, bytes of each storage)"""
    records = _zip_records(data)
    scripted = [name for name in ("constants.pkl", "code") if any(part.split("/")[0] == name for part in records)]
    if scripted:
        raise Refused(f"is a TorchScript archive (it holds {scripted[0]}), which is a program; save its state_dict")
    if "data.pkl" not in records:
        raise Refused("is a zip archive without data.pkl, expected one of torch.save")
    order = records.get("byteorder", np.frombuffer(b"little", np.uint8))[:16].tobytes()
    if order not in (b"little", b"big"):
        raise Refused(f"gives the byte order {order!r}, expected little or big")
    found = _Storages()
    table, length = read_pickle(_pickle_bytes(records["data.pkl"]), _CALLS, found.find)
    if length != records["data.pkl"].size:
        raise Refused("has bytes after the end of its pickle")
    storages = {}
    for key, storage in found.by_key.items():
        record = records.get(f"data/{key}")
        if record is None:
            raise Refused(f"lacks storage '{key}', which its table refers to")
        if record.size != storage.nbytes:
            raise Refused(f"has {record.size} bytes for storage '{key}', expected {storage.nbytes}")
        storages[key] = record
    return table, "<" if order == b"little" else ">", storages


def _zip_records(data: _Bytes) -> dict[str, _Bytes]:
    """The stored files of an archive by their names without the common first folder."""
    try:
        # The whole file is mapped: what zipfile reads of it is the directory at its end.
        with zipfile.ZipFile(_Mapped(data)) as archive:
            entries, directory = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, struct.error, OSError) as error:
        raise Refused(f"is no whole zip archive ({error}); is the file complete?") from None
    records: dict[str, _Bytes] = {}
    extents = []
    top = entries[0].orig_filename.split("/")[0] if entries else ""
    for entry in entries:
        folder, _, name = entry.orig_filename.partition("/")
        parts = name.split("/")
        if folder != top or not name or {"", ".", ".."} & {folder, *parts} or "\\" in entry.orig_filename:
            raise Refused(f"holds the record {entry.orig_filename[:80]!r}, expected names below one folder")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise Refused(f"holds the compressed or encrypted record {name[:80]!r}, expected stored ones")
        if name in records:
            raise Refused(f"holds the record {name[:80]!r} twice")
        start = _record_start(data, entry, directory)
        extents.append((entry.header_offset, start + entry.file_size, name))
        records[name] = data[start : start + entry.file_size]
    end = 0
    for first, last, name in sorted(extents):
        if first < end:
            raise Refused(f"has a record {name[:80]!r} that overlaps the one before it")
        end = last
    return records


def _record_start(data: _Bytes, entry: zipfile.ZipInfo, directory: int) -> int:
    """Where the bytes of a record start: after its local header, which must agree with the directory."""
    at = entry.header_offset
    header = data[max(at, 0) : at + 30].tobytes() if 0 <= at <= directory - 30 else b""
    if header[:4] != b"PK\x03\x04":
        raise Refused(f"has no record {entry.orig_filename[:80]!r} at byte {at}, where its directory says")
    name_length, extra_length = struct.unpack("<2H", header[26:30])
    start = at + 30 + int(name_length) + int(extra_length)
    name = data[at + 30 : at + 30 + int(name_length)].tobytes()
    if name != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise Refused(f"names the record at byte {at} {name[:80]!r}, and {entry.orig_filename[:80]!r} in its directory")
    if start + entry.file_size > directory:
        raise Refused(f"has a record {entry.orig_filename[:80]!r} that ends outside of the archive")
    return start


class _Mapped(io.RawIOBase):
    """Mapped bytes as a file that can be read and sought."""

    def __init__(self, data: _Bytes) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: int(self._data.size)}[whence]
        if start + offset < 0:
            raise OSError("a position before the start of the file")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._data.size if size is None or size < 0 else self._at + size
        part = self._data[self._at : end].tobytes()
        self._at += len(part)
        return part


def _pickle_bytes(data: _Bytes, at: int = 0) -> bytes:
    return data[at : at + MOST_BYTES].tobytes()


def _read_legacy(data: _Bytes) -> tuple[Any, str, dict[str, _Bytes]]:
    """(table, byte order, bytes of each storage)"""
    at = 0
    found = _Storages()

    def take(calls: dict[str, Call | None], persistent: Call | None = None) -> Any:
        nonlocal at
        value, length = read_pickle(_pickle_bytes(data, at), calls, persistent)
        at += length
        return value

    if data[:1].tobytes() != b"\x80" or take({}) != _MAGIC:
        raise Refused("is neither a zip archive nor a file of torch.save; is it an empty placeholder of a download?")
    version = take({})
    if version != _VERSION:
        raise Refused(f"has version {version!s:.40} of its format, expected {_VERSION}")
    take({})  # the writer's byte order and sizes of integers: the storages are little-endian all the same
    table, keys = take(_CALLS, found.find_legacy), take({})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(found.by_key):
        raise Refused("lists other storages than its table refers to")
    storages = {}
    for key in keys:
        storage = found.by_key[key]
        count = int.from_bytes(data[at : at + 8].tobytes(), "little")
        at += 8
        if count != storage.count:
            raise Refused(f"has {count} values for storage '{key}', expected {storage.count}")
        if storage.nbytes > data.size - at:
            raise Refused(f"ends within storage '{key}'; is the file complete?")
        storages[key] = data[at : at + storage.nbytes]
        at += storage.nbytes
    if at != data.size:
        raise Refused(f"has {data.size - at} bytes after its last storage")
    return table, "<", storages


def _load(path: Path, name: str, tensor: _Tensor, order: str, data: _Bytes) -> FloatArray:
    dtype = tensor.storage.dtype
    if dtype not in WEIGHT_TYPES:
        raise refuse_type(path, name, dtype)
    values = data.view(order + tensor.storage.kind)[tensor.offset :]
    strides = [stride * values.itemsize for stride in tensor.strides]
    viewed = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
    return float_values(viewed, dtype)
