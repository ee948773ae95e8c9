"""`convert`: one source, one GGUF file. The families say what goes where; this file does it and reports.

Order of work: read names and shapes, match them against the family's table (matching.py), refuse with everything that
is wrong, build the metadata, then stream the tensors into a temporary file that is validated and renamed. Not here:
sharded output.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, OptionError
from ..presets import resolve
from ..quantize.encoding import encode, stored_bytes
from ..quantize.mixtures import Candidate, Mixture, T, choose_types, facts_of, find_mixture, substitutes
from ..spec import DiffusionSpec, has_record
from .checkpoint import Checkpoint, open_folder, open_llama2c
from .families import find_family, refuse_quantised
from .family import Config
from .gguf_file import open_gguf
from .length_head import FILE as LENGTH_HEAD
from .length_head import length_head
from .lora import merge
from .matching import FileTensor, match, plain_names
from .record import find_record
from .vocabulary import load_tokenizer, vocabulary_metadata
from .writing import PlannedTensor, Progress, Typed, copied_metadata, write_gguf


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
    lora: Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> ConvertReport:
    """Write `source` as the GGUF file `out`, atomically.

    source     an HF folder of a family of families.py, which `adapt` writes too, a llama2.c checkpoint, or a .gguf
               file (the first part of a split one), whose tensors are copied untouched
    type       a name of quantize.mixtures.MIXTURES, in any case; None = f16, and the types as they are for a .gguf file
    diffusion  the text of --diffusion; replaces fields of the source's record, or is the record where it has none
    tokenizer  an HF folder, a tokenizer.json, vocab.txt or llama2.c tokenizer; None = the one in the source's folder
    lora       the folder of a PEFT adapter, merged into the weights
    name       general.name; None = the source's own
    progress   called after each tensor with its name, the tensors done and the tensors in all
    overwrite  False refuses an existing `out`; a file that is read is never overwritten
    raises     ModelFileError, OptionError; `out` is then as it was before
    """
    source, out = Path(source), Path(out)
    plan = _plan(source, type, diffusion, tokenizer, lora, name)
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


def _plan(
    source: Path,
    type: str | None,
    diffusion: str | None,
    tokenizer: Path | None,
    lora: Path | None,
    name: str | None,
) -> _Plan:
    if not source.exists():
        raise ModelFileError(f"{source}: no such file or folder")
    if source.is_dir():
        refuse_quantised(source)
        wanted = find_mixture(type or "f16")
        return _plan_checkpoint(open_folder(source), source, wanted, diffusion, tokenizer, lora, name)
    with source.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        for option, value in (("type", type), ("tokenizer", tokenizer), ("lora", lora)):
            if value is not None:
                instead = "use localdiff quantize" if option == "type" else "leave it out"
                raise OptionError(
                    f"{source}: a GGUF file is copied as it is, so --{option} cannot be honoured; {instead}"
                )
        return _plan_copy(source, diffusion, name)
    if source.suffix == ".safetensors" or start[:2] in (b"PK", b"\x80\x02"):
        raise OptionError(f"{source}: a weight file alone is not enough; name the folder that holds its config.json")
    if tokenizer is None:
        raise OptionError(
            f"{source}: is not a GGUF file; if it is a llama2.c checkpoint, name its tokenizer with --tokenizer"
        )
    return _plan_checkpoint(open_llama2c(source), source, find_mixture(type or "f16"), diffusion, tokenizer, lora, name)


def _plan_copy(source: Path, diffusion: str | None, name: str | None) -> _Plan:
    """A GGUF file with its record added or changed; metadata and tensors are carried over as they are."""
    reader = open_gguf(source)
    typed, notices = copied_metadata(reader)
    metadata: dict[str, Any] = dict(typed)
    arch = metadata.pop("general.architecture", Typed(None, gguf.GGUFValueType.STRING)).value
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if not isinstance(arch, str) or embedding is None:
        absent = "token_embd.weight" if isinstance(arch, str) else "general.architecture"
        raise ModelFileError(f"{source}: has no {absent}, expected the GGUF file of a language model")
    plain = {key: typed.value for key, typed in metadata.items()} | {"general.architecture": arch}
    if diffusion is None:
        found = "a diffusion record already" if has_record(plain) else "no diffusion record"
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
    return _Plan(arch, name, metadata, tensors, spec, notices, reader.files, reader.alignment)


def _plan_checkpoint(
    checkpoint: Checkpoint,
    source: Path,
    wanted: Mixture,
    diffusion: str | None,
    tokenizer: Path | None,
    lora: Path | None,
    name: str | None,
) -> _Plan:
    family, preset = find_family(checkpoint.config, checkpoint.origin, checkpoint.tensors)
    section = (checkpoint.config.get(family.section) if family.section else None) or {}
    if not isinstance(section, dict):
        raise ModelFileError(f"{checkpoint.origin}: {family.section} is {section!r:.80}, expected an object")
    fields = checkpoint.config | section
    config = Config(fields, checkpoint.origin)
    tensors = plain_names(family, checkpoint.tensors, source)
    description = family.describe(config, {plain: tensor.shape for plain, tensor in tensors.items()})
    merged = merge(tensors, lora, family, description.tied) if lora else None
    if merged is not None:
        tensors = merged.tensors
    matched, notices = match(family, description, tensors, source)
    if merged is not None:
        notices.append(merged.notice)
    head = length_head(source, description)
    matched += head
    rows = matched[0].shape[0]
    files = load_tokenizer(tokenizer or source)
    vocabulary, more_notices = vocabulary_metadata(files, fields, rows)
    name = name or (source.resolve().name if source.is_dir() else source.stem)
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(wanted.file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"{family.arch}.{key}": value for key, value in description.keys.items()},
        f"{family.arch}.vocab_size": rows,
        **description.facts,
        **vocabulary,
    }
    described = metadata | {"general.architecture": family.arch}
    spec, record_notices = find_record(description.preset or preset, config, described, source, diffusion)
    notices += record_notices
    if spec is None:
        notices.append(
            "written without a diffusion record; a diffusion model needs --diffusion PRESET or mask=ID,shift=0|1"
        )
    else:
        spec.check_vocabulary(rows)
        metadata |= spec.to_gguf(family.arch)
    candidates = [Candidate(tensor.name, tensor.shape, T.F32) for tensor in matched if not tensor.exact]
    chosen = choose_types(candidates, wanted, facts_of(metadata | {"general.architecture": family.arch}))
    notices += substitutes(chosen)
    planned: list[PlannedTensor] = []
    for tensor in matched:
        kind = T.F32 if tensor.exact else chosen[tensor.name].kind
        nbytes = stored_bytes(tensor.shape, kind)
        planned.append(PlannedTensor(tensor.name, tensor.shape, kind, nbytes, partial(_encoded, tensor, kind)))
    beside = (source / LENGTH_HEAD,) if head else ()
    sources = (*checkpoint.files, *files.files, *(merged.files if merged else ()), *beside)
    return _Plan(family.arch, name, metadata, planned, spec, notices + more_notices, sources)


def _encoded(tensor: FileTensor, kind: T) -> npt.NDArray[np.generic]:
    """The stored bytes; of a tensor in parts no more than one is held as float32 at a time."""
    if len(tensor.parts) == 1:
        return encode(tensor.name, tensor.parts[0](), kind)
    whole = np.empty((len(tensor.parts), stored_bytes(tensor.shape[1:], kind)), np.uint8)
    for index, load in enumerate(tensor.parts):
        whole[index] = encode(tensor.name, load(), kind)
    return whole


def _same(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array
