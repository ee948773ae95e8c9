"""Importance matrices: how much an error in each column of a matrix costs, gathered while a model ran on texts.

Read and written in llama.cpp's GGUF form: for each matrix NAME two tensors, NAME.in_sum2 with the sums of squared
inputs by column and NAME.counts with how many there were, both with one row per expert. The importance of a column is
their quotient, the mean square of its input. Not here: gathering (gathering.py), and the older form without GGUF, which
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ..convert.writing import PlannedTensor, write_gguf
from ..engine import File
from ..errors import ModelFileError

Importance = npt.NDArray[np.float32]  # [matrices, columns]
_SUMS, _COUNTS = ".in_sum2", ".counts"
_OPTIONAL = ("token_embd.weight", "per_layer_token_embd.weight")  # looked up, not multiplied: entries of the head's


@dataclass(frozen=True)
class Sums:
    """What the matrices of one tensor read."""

    squares: npt.NDArray[np.float64]  # [matrices, columns] sums of the squares of their inputs
    rows: npt.NDArray[np.uint64]  # [matrices] how many inputs were added up


@dataclass(frozen=True)
class ImportanceMatrix:
    path: Path
    entries: dict[str, Importance]
    dataset: str  # name of the text it was gathered on, "" where the file does not say
    chunks: int  # of that text, 0 where the file does not say

    def of(self, name: str, shape: tuple[int, ...]) -> Importance | None:
        """The importance of a tensor's columns, one row per matrix; None where the file has no entry for it.

        Raises ModelFileError where the entry has another size.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        matrices = int(np.prod(shape[:-2], dtype=np.int64))
        if entry.shape == (matrices, shape[-1]):
            return entry
        if name in _OPTIONAL:
            return None
        expected = [matrices, shape[-1]]
        raise ModelFileError(
            f"{self.path}: the entry of {name} has shape {list(entry.shape)}, expected {expected}; "
            "it was gathered on another model"
        )


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of llama-imatrix or of localdiff. Raises ModelFileError for anything else."""
    with path.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise ModelFileError(
                f"{path}: is not a GGUF file, expected an importance matrix in GGUF form; an older one becomes it with "
                "llama-imatrix --in-file OLD --output-format gguf -o NEW.gguf"
            )
    with File.open(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise ModelFileError(
                f"{path}: general.type is '{file.metadata.get('general.type', '')}', expected 'imatrix'; "
                "name an importance matrix"
            )
        names = [tensor.name for tensor in file.tensors]
        entries = {}
        for name in names:
            if name.endswith(_SUMS):
                plain = name.removesuffix(_SUMS)
                if plain + _COUNTS not in names:
                    raise ModelFileError(f"{path}: {plain} has sums but no counts; the file is incomplete")
                entries[plain] = _quotient(path, plain, file.decode(name), file.decode(plain + _COUNTS))
        if not entries:
            raise ModelFileError(f"{path}: holds no entries, expected tensors named NAME{_SUMS} and NAME{_COUNTS}")
        datasets = file.metadata.get("imatrix.datasets", [])
        dataset = str(datasets[0]) if isinstance(datasets, list) and datasets else ""
        return ImportanceMatrix(path, entries, dataset, int(file.metadata.get("imatrix.chunk_count", 0)))


def _quotient(path: Path, name: str, sums: Importance, counts: Importance) -> Importance:
    sums = sums.reshape(-1, sums.shape[-1])
    counts = counts.reshape(-1, 1)
    if len(counts) != len(sums):
        raise ModelFileError(f"{path}: {name} has {len(sums)} rows of sums, but {len(counts)} counts")
    if not (np.isfinite(sums).all() and np.isfinite(counts).all() and sums.min() >= 0 and counts.min() >= 0):
        raise ModelFileError(f"{path}: {name} holds values that are negative or not finite; gather it again")
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = sums / counts
    # An expert that never ran: all its columns alike.
    return np.where(counts > 0, quotient, np.float32(1)).astype(np.float32)


def write_imatrix(
    path: Path, arch: str, sums: Mapping[str, Sums], datasets: Sequence[str], chunks: int, length: int
) -> None:
    """Write sums by tensor name, atomically.

    arch      architecture of the model, for people
    datasets  names of the texts
    chunks    pieces of text that were run, of `length` tokens each
    """
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(datasets),
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": length,
    }
    arrays = {}
    for name, each in sorted(sums.items()):
        arrays[name + _SUMS] = each.squares.astype(np.float32)
        arrays[name + _COUNTS] = each.rows.reshape(-1, 1).astype(np.float32)
    f32 = gguf.GGMLQuantizationType.F32
    tensors = [
        PlannedTensor(name, array.shape, f32, array.nbytes, partial(np.asarray, array))
        for name, array in arrays.items()
    ]
    write_gguf(path, arch, metadata, tensors)
