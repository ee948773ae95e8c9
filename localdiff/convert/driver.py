"""`convert`: one source, one GGUF file. The families say what goes where; this file does it and reports.

Order of work: read names and shapes, match them against the family's table, refuse with everything that is wrong, build
the metadata, then stream the tensors into a temporary file that is validated and renamed. Not here: K-quants, sharded
output.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, OptionError
from ..spec import RECORD_FILE, DiffusionSpec, resolve
from .checkpoint import Checkpoint, open_folder, open_llama2c
from .families import find_family
from .family import Config, Description, Family, Row, Sizes, transpose
from .storage import StorageType, choose_type, encode, find_type, stored_bytes
from .tensors import TensorSource
from .vocabulary import load_tokenizer, vocabulary_metadata
from .writing import PlannedTensor, Progress, Typed, open_gguf, write_gguf


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    path: Path
    arch: str
    name: str
    types: dict[str, int]  # type -> number of tensors
    parameters: int
    file_bytes: int
    spec: DiffusionSpec | None
    notices: tuple[str, ...]  # sentences a user should see


@dataclass(frozen=True)
class _Plan:
    """A file before it is written."""

    arch: str
    name: str
    metadata: dict[str, Any]
    tensors: list[PlannedTensor]
    spec: DiffusionSpec | None
    notices: list[str]
    sources: tuple[Path, ...]  # must not be overwritten
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT


def convert(
    source: Path,
    out: Path,
    *,
    type: str | None = None,
    diffusion: str | None = None,
    tokenizer: Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> ConvertReport:
    """Write `source` as the GGUF file `out`, atomically.

    source     an HF folder (what `adapt` writes, GPT-2, Llama, Qwen2, DiffuGPT), a llama2.c checkpoint, or a .gguf
               file, whose tensors are copied untouched
    type       f32, f16, bf16, q8_0, q4_0 or q4_1; None = f16, and the types as they are for a .gguf file
    diffusion  the text of --diffusion; replaces fields of the source's record, or is the record where it has none
    tokenizer  an HF folder, a tokenizer.json or a llama2.c tokenizer; None = the one in the source's folder
    name       general.name; None = the source's own
    progress   called after each tensor with its name, the tensors done and the tensors in all
    overwrite  False refuses an existing `out`; a file that is read is never overwritten
    raises     ModelFileError, OptionError; `out` is then as it was before
    """
    source, out = Path(source), Path(out)
    plan = _plan(source, type, diffusion, tokenizer, name)
    for path in plan.sources:
        if out.exists() and path.exists() and out.samefile(path):
            raise OptionError(f"{out}: is read by this conversion, so it cannot be its result; choose another name")
    write_gguf(
        out, plan.arch, plan.metadata, plan.tensors, alignment=plan.alignment, progress=progress, overwrite=overwrite
    )
    return ConvertReport(
        path=out,
        arch=plan.arch,
        name=plan.name,
        types=dict(Counter(tensor.kind.name.lower() for tensor in plan.tensors)),
        parameters=sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in plan.tensors),
        file_bytes=out.stat().st_size,
        spec=plan.spec,
        notices=tuple(plan.notices),
    )


def _plan(source: Path, type: str | None, diffusion: str | None, tokenizer: Path | None, name: str | None) -> _Plan:
    if not source.exists():
        raise ModelFileError(f"{source}: no such file or folder")
    if source.is_dir():
        return _plan_checkpoint(open_folder(source), source, find_type(type or "f16"), diffusion, tokenizer, name)
    with source.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        for option, value in (("type", type), ("tokenizer", tokenizer)):
            if value is not None:
                raise OptionError(
                    f"{source}: a GGUF file is copied as it is, so --{option} cannot be honoured; leave it out"
                )
        return _plan_copy(source, diffusion, name)
    if source.suffix == ".safetensors" or start[:2] in (b"PK", b"\x80\x02"):
        raise OptionError(f"{source}: a weight file alone is not enough; name the folder that holds its config.json")
    if tokenizer is None:
        raise OptionError(
            f"{source}: is not a GGUF file; if it is a llama2.c checkpoint, name its tokenizer with --tokenizer"
        )
    return _plan_checkpoint(open_llama2c(source), source, find_type(type or "f16"), diffusion, tokenizer, name)


def _plan_copy(source: Path, diffusion: str | None, name: str | None) -> _Plan:
    """A GGUF file with its record added or changed; metadata and tensors are carried over as they are."""
    reader = open_gguf(source)
    metadata: dict[str, Any] = {}
    notices: list[str] = []
    for key, entry in reader.fields.items():
        if key.startswith("GGUF."):  # the header, as the reader presents it
            continue
        if entry.types[0] == gguf.GGUFValueType.ARRAY and len(entry.types) < 2:
            notices.append(f"the empty list {key} is left out")
            continue
        metadata[key] = Typed(entry.contents(), *entry.types[:2])
    arch = metadata.pop("general.architecture", Typed(None, gguf.GGUFValueType.STRING)).value
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if not isinstance(arch, str) or embedding is None:
        absent = "token_embd.weight" if isinstance(arch, str) else "general.architecture"
        raise ModelFileError(f"{source}: has no {absent}, expected the GGUF file of a language model")
    plain = {key: typed.value for key, typed in metadata.items()} | {"general.architecture": arch}
    if diffusion is None:
        found = "no diffusion record" if DiffusionSpec.from_gguf(plain) is None else "a diffusion record already"
        raise OptionError(f"{source}: has {found}; give --diffusion to write one, else a copy would change nothing")
    spec = resolve(plain, diffusion)
    if spec is not None:
        spec.check_vocabulary(int(embedding.shape[1]))
        for key in dataclasses.replace(spec, stop_tokens=(0,)).to_gguf(arch):  # an emptied list has no key
            metadata.pop(key, None)
        metadata.update(spec.to_gguf(arch))
    name = name or str(plain.get("general.name", source.stem))
    metadata["general.name"] = name
    tensors = [
        PlannedTensor(
            tensor.name,
            tuple(reversed(tensor.shape.tolist())),
            tensor.tensor_type,
            int(tensor.n_bytes),
            partial(_same, tensor.data),
        )
        for tensor in reader.tensors
    ]
    return _Plan(arch, name, metadata, tensors, spec, notices, (source,), reader.alignment)


def _plan_checkpoint(
    checkpoint: Checkpoint,
    source: Path,
    wanted: StorageType,
    diffusion: str | None,
    tokenizer: Path | None,
    name: str | None,
) -> _Plan:
    family = find_family(checkpoint.config.get("model_type"), checkpoint.origin)
    shapes = {plain: tensor.shape for plain, tensor in checkpoint.tensors.items()}
    description = family.describe(Config(checkpoint.config, checkpoint.origin), shapes)
    matched, notices = _match(family, description, checkpoint.tensors, source)
    rows = matched[0].shape[0]
    files = load_tokenizer(tokenizer or source)
    vocabulary, more_notices = vocabulary_metadata(files, checkpoint.config, rows)
    spec = _record({**vocabulary, "general.architecture": family.arch}, source / RECORD_FILE, diffusion)
    if spec is None:
        notices.append(
            "written without a diffusion record; a diffusion model needs --diffusion PRESET or mask=ID,shift=0|1"
        )
    else:
        spec.check_vocabulary(rows)
    name = name or (source.resolve().name if source.is_dir() else source.stem)
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(wanted.file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"{family.arch}.{key}": value for key, value in description.keys.items()},
        f"{family.arch}.vocab_size": rows,
        **vocabulary,
        **(spec.to_gguf(family.arch) if spec else {}),
    }
    planned: list[PlannedTensor] = []
    widened: list[str] = []
    for tensor in matched:
        storage = choose_type(tensor.name, tensor.shape, wanted)
        if storage.name == "f16" and wanted.name != "f16":
            widened.append(tensor.name)
        load = partial(_encoded, tensor, storage)
        planned.append(
            PlannedTensor(tensor.name, tensor.shape, storage.kind, stored_bytes(tensor.shape, storage), load)
        )
    if widened:
        notices.append(f"rows not divisible by 32, stored as f16 instead of {wanted.name}: {', '.join(widened)}")
    if wanted.head is not None:
        notices.append(f"the token embedding and the head are stored as {wanted.head} where their rows allow it")
    sources = (*checkpoint.files, *files.files)
    return _Plan(family.arch, name, metadata, planned, spec, notices + more_notices, sources)


def _record(metadata: dict[str, Any], path: Path, diffusion: str | None) -> DiffusionSpec | None:
    """The record in force: `diffusion` over the file `path` over the tokenizer's mask token."""
    if path.is_file():
        try:
            stored = DiffusionSpec.from_json(path.read_text(encoding="utf-8"))
        except (ModelFileError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: {error}") from None
        metadata |= stored.to_gguf(metadata["general.architecture"])
    return resolve(metadata, diffusion)


def _encoded(tensor: TensorSource, storage: StorageType) -> npt.NDArray[np.generic]:
    return encode(tensor.name, tensor.load(), storage)


def _match(
    family: Family, description: Description, tensors: Mapping[str, TensorSource], source: Path
) -> tuple[list[TensorSource], list[str]]:
    """The tensors of the file in its names and layout, token embedding first, and notices.

    Raises ModelFileError with every tensor that is missing, unused or of another shape.
    """
    sizes = dict(description.sizes)
    left = {name: tensor for name, tensor in tensors.items() if not any(re.fullmatch(p, name) for p in family.dropped)}
    missing: list[str] = []
    wrong: list[str] = []
    notices: list[str] = []

    def take(row: Row, name: str) -> TensorSource | None:
        tensor = left.pop(name, None)
        if tensor is None:
            if not row.optional:
                missing.append(name)
            return None
        expected = tuple(sizes[extent] for extent in row.shape)
        if tensor.shape != expected:
            wrong.append(f"{tensor.name}: shape {list(tensor.shape)}, expected {list(expected)}")
        return tensor

    embedding, head = _embedding_and_head(family, description.tied, left, missing, notices)
    found: list[TensorSource] = []
    for tensor, target in ((embedding, "token_embd.weight"), (head, "output.weight")):
        if tensor is not None:
            sizes.setdefault("vocab", tensor.shape[0])
            if tensor.shape != (sizes["vocab"], sizes["dim"]):
                expected = [sizes["vocab"], sizes["dim"]]
                wrong.append(f"{tensor.name}: shape {list(tensor.shape)}, expected {expected}")
            found.append(_renamed(tensor, target))
    layered = [(row, layer) for layer in range(sizes["layers"]) for row in family.layer_rows]
    for row, layer in [(row, None) for row in family.rows] + layered:
        tensor = take(row, row.source.format(i=layer))
        if tensor is not None:
            found.append(_changed(tensor, row, row.target.format(i=layer), sizes))
    found += [TensorSource(name, array.shape, partial(_same, array)) for name, array in description.extra.items()]

    problems = []
    if missing:
        problems.append(f"expected and missing ({len(missing)}): {', '.join(missing)}")
    if left:
        problems.append(f"present and unused ({len(left)}): {', '.join(tensor.name for tensor in left.values())}")
    if wrong:
        problems.append(f"of another shape ({len(wrong)}): {'; '.join(wrong)}")
    if problems:
        lines = "\n  ".join(problems)
        raise ModelFileError(f"{source}: its tensors are not those of architecture '{family.arch}'\n  {lines}")
    return found, notices


def _embedding_and_head(
    family: Family, tied: bool, left: dict[str, TensorSource], missing: list[str], notices: list[str]
) -> tuple[TensorSource | None, TensorSource | None]:
    """Token embedding, and the head where it differs from it.

    Wrappers store the same tensor under several names or only under the head's; the values decide.
    """
    embeddings = [tensor for name in family.embedding if (tensor := left.pop(name, None)) is not None]
    head = left.pop("lm_head.weight", None)
    if not embeddings and head is not None and tied:
        return head, None
    if not embeddings:
        missing.append(family.embedding[0])
    if head is None and not tied:
        missing.append("lm_head.weight")
    for other in embeddings[1:]:
        if not _equal(embeddings[0], other):
            raise ModelFileError(f"{embeddings[0].name} and {other.name} differ, expected one token embedding")
    embedding = embeddings[0] if embeddings else None
    if head is not None and embedding is not None:
        if _equal(embedding, head):
            return embedding, None
        if tied:
            notices.append(
                f"{head.name} differs from the embedding although the configuration ties them; both are kept"
            )
    return embedding, head


def _equal(a: TensorSource, b: TensorSource) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.load(), b.load()))


def _renamed(tensor: TensorSource, target: str) -> TensorSource:
    return TensorSource(target, tensor.shape, tensor.load)


def _changed(tensor: TensorSource, row: Row, target: str, sizes: Sizes) -> TensorSource:
    change = row.change
    if change is None:
        return _renamed(tensor, target)
    shape = tensor.shape[::-1] if change is transpose else tensor.shape  # the others only reorder rows
    return TensorSource(target, shape, lambda: change(tensor.load(), sizes))


def _same(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array
