"""GGUF files as sources: one file, or the parts of a split model (NAME-00001-of-00003.gguf and so on) as one.

The parts say which they are (split.no, split.count) and how many tensors all of them have (split.tensors.count); the
metadata of the first speak for the model, without those keys. Read with the `gguf` package, tensors mapped. Not here:
the engine's own reader (csrc/gguf_parser.cpp, csrc/gguf_shards.cpp), which follows the same rules.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from ..errors import ModelFileError

_MOST_PARTS = 65535
_KEYS = ("split.no", "split.count", "split.tensors.count")  # number from 0, parts in all, tensors in all


@dataclass(frozen=True)
class GgufFile:
    """`fields` and `tensors` are those of gguf.GGUFReader."""

    fields: dict[str, Any]
    tensors: list[Any]
    alignment: int  # of the first part
    files: tuple[Path, ...]


def open_gguf(path: Path) -> GgufFile:
    """Open a file and, where it is the first part of several, all of them. Raises ModelFileError."""
    first = _open_part(path)
    number, count, total = _split(first, path)
    if count <= 1:
        return GgufFile(dict(first.fields), list(first.tensors), first.alignment, (path,))
    if count > _MOST_PARTS or number >= count:
        raise ModelFileError(f"{path}: is part {number + 1} of {count}, expected at most 65535 and one of them")
    suffix = f"-{number + 1:05}-of-{count:05}.gguf"
    if not path.name.endswith(suffix):
        raise ModelFileError(
            f"{path}: is part {number + 1} of {count}, but its name does not end in {suffix}; "
            "give the parts their names back to find the others"
        )
    parts = [path.with_name(f"{path.name[: -len(suffix)]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if number != 0:
        raise ModelFileError(f"{path}: is part {number + 1} of {count}; open the first, {parts[0]}")
    tensors = list(first.tensors)
    for i, part in enumerate(parts[1:], start=1):
        reader = _open_part(part)
        for key, found, expected in zip(_KEYS, _split(reader, part), (i, count, total), strict=True):
            _expect(part, key, found, expected)
        tensors += reader.tensors
    _expect(path, _KEYS[2], total, len(tensors))
    name, times = Counter(tensor.name for tensor in tensors).most_common(1)[0] if tensors else ("", 0)
    if times > 1:
        raise ModelFileError(f"{path}: tensor '{name}' is in two of its parts")
    fields = {key: field for key, field in first.fields.items() if key not in _KEYS}
    return GgufFile(fields, tensors, first.alignment, tuple(parts))


def _open_part(path: Path) -> gguf.GGUFReader:
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelFileError(f"{path}: is not a whole GGUF file: {error}") from None
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise ModelFileError(f"{path}: is a big-endian GGUF file, only little-endian ones are read")
    return reader


def _split(reader: gguf.GGUFReader, path: Path) -> tuple[int, int, int]:
    """The values of _KEYS."""
    values: list[int | None] = []
    for key in _KEYS:
        field = reader.get_field(key)
        value = None if field is None else field.contents()
        if value is not None and (type(value) is not int or value < 0):
            raise ModelFileError(f"{path}: metadata '{key}' is {value!r:.40}, expected a whole number")
        values.append(value)
    number, count, total = values
    if count is not None and count > 1 and total is None:
        raise ModelFileError(f"{path}: metadata '{_KEYS[2]}' is missing; the parts of a split model need it")
    return number or 0, 1 if count is None else count, total or 0


def _expect(path: Path, key: str, found: int, expected: int) -> None:
    if found != expected:
        raise ModelFileError(
            f"{path}: metadata '{key}' is {found}, expected {expected}; are all parts of the same model?"
        )
