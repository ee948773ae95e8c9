"""Reading of checkpoints: which files of a folder hold the tensors, and under which names.

An HF folder holds config.json and either safetensors or pytorch_model.bin, each one file or shards listed by an index,
which must agree with what the shards hold. Not here: the files themselves (safetensors_file.py, torch_file.py,
llama2c.py), what the tensors mean (matching.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from .family import FloatArray
from .llama2c import read_llama2c
from .safetensors_file import read_safetensors
from .tensors import TensorSource
from .torch_file import read_torch

# What bitsandbytes stores beside its packed weights, at 4 and at 8 bits.
_PACKED = (".absmax", ".quant_map", ".SCB", ".weight_format")

Read = Callable[[Path], list[TensorSource]]


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    origin: str  # for messages about the configuration
    tensors: dict[str, TensorSource]  # by name in the files
    files: tuple[Path, ...]  # what was read


def read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ModelFileError(f"{path}: holds a {type(fields).__name__}, expected a JSON object")
    return fields


def open_llama2c(path: Path) -> Checkpoint:
    config, arrays = read_llama2c(path)
    sources = [TensorSource(name, array.shape, _holding(array)) for name, array in arrays.items()]
    return Checkpoint(config, str(path), _by_name(sources, path), (path,))


def open_folder(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelFileError(f"{folder}: holds a LoRA adapter, not a model; convert its base with --lora {folder}")
    if not config_path.is_file():
        raise ModelFileError(f"{folder}: has no config.json, expected the folder of an HF checkpoint")
    config = read_json(config_path)
    for stem, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch)):
        found = _read_weights(folder, stem, read)
        if found is not None:
            sources, files = found
            _refuse_packed(sources, folder)
            return Checkpoint(config, str(config_path), _by_name(sources, folder), (config_path, *files))
    raise ModelFileError(f"{folder}: has no weights, expected model.safetensors, its shards or pytorch_model.bin")


def _read_weights(folder: Path, stem: str, read: Read) -> tuple[list[TensorSource], list[Path]] | None:
    """The tensors of `stem` or its shards, and the files read; None where there are none."""
    single, index = folder / stem, folder / f"{stem}.index.json"
    name, suffix = stem.rsplit(".", 1)
    shards = sorted(path.name for path in folder.glob(f"{name}-?????-of-?????.{suffix}"))
    if single.is_file():
        if index.is_file():
            raise ModelFileError(f"{folder}: holds both {stem} and {index.name}; remove the one that is out of date")
        return read(single), [single]
    if not index.is_file():
        if shards:
            raise ModelFileError(f"{folder}: holds the shard {shards[0]} but no {index.name}, which lists the shards")
        return None
    expected = read_json(index).get("weight_map")
    if not isinstance(expected, dict) or not expected:
        raise ModelFileError(f"{index}: has no weight_map, expected tensor names and their files")
    names = sorted({str(name) for name in expected.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelFileError(f"{index}: names the shard '{name}', which is not in the folder")
    unlisted = [name for name in shards if name not in names]
    if unlisted:
        raise ModelFileError(f"{folder}: holds the shard {unlisted[0]}, which {index.name} does not list")
    sources = []
    for name in names:
        found = read(folder / name)
        listed = {tensor for tensor, shard in expected.items() if shard == name}
        differing = sorted(listed ^ {source.name for source in found})
        if differing:
            who = "is listed for it but missing" if differing[0] in listed else "is in it but not listed for it"
            raise ModelFileError(f"{folder / name}: tensor {differing[0]} {who} in {index.name}")
        sources += found
    return sources, [index, *(folder / name for name in names)]


def _refuse_packed(sources: list[TensorSource], folder: Path) -> None:
    for source in sources:
        if source.name.endswith(_PACKED) or ".quant_state." in source.name:
            raise ModelFileError(
                f"{folder}: its weights are packed by bitsandbytes ({source.name}); convert the original checkpoint "
                "in bf16 or f16 that it was made from, and choose a small --type"
            )


def _by_name(sources: list[TensorSource], origin: Path) -> dict[str, TensorSource]:
    tensors: dict[str, TensorSource] = {}
    for source in sources:
        if source.name in tensors:
            raise ModelFileError(f"{origin}: {source.name} is in two of its shards, expected one")
        tensors[source.name] = source
    return tensors


def _holding(array: FloatArray) -> Callable[[], FloatArray]:
    return lambda: array
