"""`quantize`: one GGUF file becomes another whose matrices take fewer bits. Everything else is carried over.

Order of work: read what the source holds, choose all types, refuse with the first thing that is wrong, then stream the
tensors into a temporary file that is validated and renamed. A tensor is decoded some rows at a time, so besides its
encoded form no more than these rows are in memory. Not here: adding a diffusion record (convert), output in parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..convert.gguf_file import open_gguf
from ..convert.writing import PlannedTensor, Typed, copied_metadata, write_gguf
from ..engine import File
from ..errors import ModelFileError, OptionError
from .encoding import encode, stored_bytes
from .imatrix import Importance, ImportanceMatrix, read_imatrix
from .mixtures import Candidate, Chosen, Mixture, T, choose_types, facts_of, find_mixture, is_matrix, substitutes

Progress = Callable[[str, int, int], None]  # the tensor being written, source bytes done, source bytes in all
_CHUNK = 1 << 23  # values decoded at a time


@dataclass(frozen=True)
class QuantizeReport:
    """What was written."""

    path: Path
    type: str
    types: dict[str, int]  # type -> number of tensors
    parameters: int
    source_bytes: int
    file_bytes: int
    tensor_bytes: int  # of them
    notices: tuple[str, ...]  # sentences a user should see


def quantize(
    source: Path,
    out: Path,
    *,
    type: str,
    imatrix: Path | None = None,
    threads: int | None = None,
    allow_requantize: bool = False,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> QuantizeReport:
    """Write the GGUF file `source` (of a model in parts the first) as `out` with the types of a mixture, atomically.

    type              a name of MIXTURES, in any case: q4_k_m, q8_0, f16, ...
    imatrix           an importance matrix: errors in columns whose inputs are large count more
    threads           None = all that the process may use
    allow_requantize  also take matrices whose bits were reduced before, which loses more than the unreduced file would
    progress          called while the tensors are written
    overwrite         False refuses an existing `out`
    raises            ModelFileError, OptionError; `out` is then as it was before
    """
    source, out = Path(source), Path(out)
    mixture = find_mixture(type)
    if not source.is_file():
        raise ModelFileError(f"{source}: no such file")
    matrix = read_imatrix(Path(imatrix)) if imatrix is not None else None
    with File.open(source) as file:
        reader = open_gguf(source)
        if out.exists() and any(out.samefile(path) for path in reader.files):
            raise OptionError(f"{out}: is the source, so it cannot be the result; choose another name")
        metadata, notices = copied_metadata(reader)
        plain = {key: typed.value for key, typed in metadata.items()}
        arch = metadata.pop("general.architecture").value if "general.architecture" in metadata else None
        if not isinstance(arch, str):
            raise ModelFileError(f"{source}: has no general.architecture, expected the GGUF file of a model")
        shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
        candidates = [Candidate(each.name, shapes[each.name], each.tensor_type) for each in reader.tensors]
        chosen = choose_types(candidates, mixture, facts_of(plain), matrix is not None)
        if not allow_requantize:
            _refuse_requantizing(source, candidates, chosen)
        weights = _weights(candidates, chosen, matrix, source, notices)
        notices += substitutes(chosen)
        metadata |= _record(mixture, matrix)

        meter = _Meter(progress, sum(int(each.n_bytes) for each in reader.tensors))
        tensors = []
        for each in reader.tensors:
            kind = chosen[each.name].kind
            work = _Work(file, each, shapes[each.name], kind, weights.get(each.name), threads, meter)
            planned = PlannedTensor(each.name, work.shape, kind, stored_bytes(work.shape, kind), work.load)
            tensors.append(planned)
        write_gguf(out, arch, metadata, tensors, alignment=reader.alignment, overwrite=overwrite)
    return QuantizeReport(
        path=out,
        type=mixture.name,
        types=dict(Counter(tensor.kind.name.lower() for tensor in tensors)),
        parameters=sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()),
        source_bytes=sum(path.stat().st_size for path in reader.files),
        file_bytes=out.stat().st_size,
        tensor_bytes=sum(tensor.nbytes for tensor in tensors),
        notices=tuple(notices),
    )


def _refuse_requantizing(source: Path, candidates: list[Candidate], chosen: dict[str, Chosen]) -> None:
    for each in candidates:
        if chosen[each.name].kind != each.kept and gguf.GGML_QUANT_SIZES[each.kept][0] > 1:
            raise OptionError(
                f"{source}: {each.name} is stored as {each.kept.name.lower()} already, and reducing it again loses "
                "more than the unreduced file would; quantize that one, or give --allow-requantize"
            )


def _weights(
    candidates: list[Candidate],
    chosen: dict[str, Chosen],
    matrix: ImportanceMatrix | None,
    source: Path,
    notices: list[str],
) -> dict[str, Importance]:
    """The importance of each matrix that is quantised."""
    if matrix is None:
        return {}
    wanted = [each for each in candidates if is_matrix(each) and chosen[each.name].kind != each.kept]
    found = {each.name: matrix.of(each.name, each.shape) for each in wanted}
    weights = {name: entry for name, entry in found.items() if entry is not None}
    if wanted and not weights:
        raise ModelFileError(
            f"{matrix.path}: has no entry for any matrix of {source}; it was gathered on another model"
        )
    without = [name for name in found if name not in weights]
    if without:
        shown = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        notices.append(f"the importance matrix has no entry for {shown}; their columns count alike")
    return weights


def _record(mixture: Mixture, matrix: ImportanceMatrix | None) -> dict[str, Any]:
    """The keys by which other programs know what was done."""
    u32 = gguf.GGUFValueType.UINT32
    record: dict[str, Any] = {
        "general.file_type": Typed(int(mixture.file_type), u32),
        "general.quantization_version": Typed(int(gguf.GGML_QUANT_VERSION), u32),
    }
    if matrix is not None:
        record["quantize.imatrix.file"] = matrix.path.name
        record["quantize.imatrix.dataset"] = matrix.dataset
        record["quantize.imatrix.entries_count"] = len(matrix.entries)
        record["quantize.imatrix.chunks_count"] = matrix.chunks
    return record


class _Meter:
    """Counts the bytes of the source that have been dealt with."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0.0

    def add(self, name: str, amount: float) -> None:
        self._done += amount
        if self._progress is not None:
            self._progress(name, round(self._done), self._total)


@dataclass(frozen=True)
class _Work:
    """One tensor on its way from the source to the result."""

    file: File
    source: gguf.ReaderTensor
    shape: tuple[int, ...]
    kind: T
    importance: Importance | None  # [matrices, columns]
    threads: int | None
    meter: _Meter

    def load(self) -> npt.NDArray[np.generic]:
        name, size = self.source.name, int(self.source.n_bytes)
        if self.kind == self.source.tensor_type:
            self.meter.add(name, size)
            data: npt.NDArray[np.generic] = self.source.data
            return data
        columns = self.shape[-1]
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        matrices = len(self.importance) if self.importance is not None else 1
        out = np.empty((rows, stored_bytes((columns,), self.kind)), np.uint8)
        step = max(1, _CHUNK // columns)
        for index in range(matrices):  # each has an importance of its own
            begin, end = index * rows // matrices, (index + 1) * rows // matrices
            weights = self.importance[index] if self.importance is not None else None
            for first in range(begin, end, step):
                values = self.file.decode_rows(name, first, min(step, end - first))
                where = f"{name}, rows from {first} on" if first else name
                encoded = encode(where, values, self.kind, weights, self.threads)
                out[first : first + len(values)] = encoded.reshape(len(values), -1)
                self.meter.add(name, size * len(values) / rows)
        return out
