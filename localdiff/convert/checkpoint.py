"""Reading of checkpoints: where the tensors are, under which names, and their values as float32 on demand.

An HF folder holds config.json and either safetensors (one file, or shards listed by an index) or pytorch_model.bin. The
safetensors files are mapped and decoded here, because their numpy front end has no bfloat16; the .bin files need torch.
Wrapper prefixes are cut off, so that the families see one spelling. Not here: what the tensors mean.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError
from .family import FloatArray
from .llama2c import read_llama2c

# Prefixes of wrappers: distributed training, DiffuGPT and DiffuLLaMA, HF's task classes. Cut off in any order.
_PREFIXES = ("module.", "denoise_model.", "transformer.", "model.")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a checkpoint; `load` reads it as a float32 array of its own."""

    name: str  # in the file
    shape: tuple[int, ...]
    load: Callable[[], FloatArray]


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    origin: str  # for messages about the configuration
    tensors: dict[str, TensorSource]  # by name without wrapper prefixes
    files: tuple[Path, ...]  # what was read


def read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ModelFileError(f"{path}: holds a {type(fields).__name__}, expected a JSON object")
    return fields


def open_llama2c(path: Path) -> Checkpoint:
    config, arrays = read_llama2c(path)
    sources = [TensorSource(name, array.shape, _holding(array)) for name, array in arrays.items()]
    return Checkpoint(config, str(path), _plain_names(sources, path), (path,))


def open_folder(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelFileError(f"{folder}: holds a LoRA adapter, not a model; merge it into its base first")
    if not config_path.is_file():
        raise ModelFileError(f"{folder}: has no config.json, expected the folder of an HF checkpoint")
    config = read_json(config_path)
    for stem, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_torch)):
        files = _weight_files(folder, stem)
        if files:
            sources = [source for file in files for source in read(file)]
            return Checkpoint(config, str(config_path), _plain_names(sources, folder), (config_path, *files))
    raise ModelFileError(f"{folder}: has no weights, expected model.safetensors, its shards or pytorch_model.bin")


def _weight_files(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.index.json"
    if not index.is_file():
        single = folder / stem
        return [single] if single.is_file() else []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelFileError(f"{index}: has no weight_map, expected tensor names and their files")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelFileError(f"{index}: names the shard '{name}', which is not in the folder")
    return [folder / name for name in names]


def _plain_names(sources: list[TensorSource], origin: Path) -> dict[str, TensorSource]:
    tensors: dict[str, TensorSource] = {}
    for source in sources:
        name = source.name
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
            name = name[len(prefix) :]
        if name in tensors:
            raise ModelFileError(f"{origin}: {tensors[name].name} and {source.name} are the same tensor, expected one")
        tensors[name] = source
    return tensors


def _holding(array: FloatArray) -> Callable[[], FloatArray]:
    return lambda: array


def _read_safetensors(path: Path) -> list[TensorSource]:
    try:
        with safe_open(path, framework="numpy"):  # validates the header and that the data fill the file
            pass
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: is not a whole safetensors file: {error}") from None
    data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header: Mapping[str, Any] = json.loads(data[8:start].tobytes())
    sources = []
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            shape = tuple(entry["shape"])
            load = _decoding(path, name, entry["dtype"], shape, data[start + first : start + last])
            sources.append(TensorSource(name, shape, load))
    return sources


def _decoding(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], data: npt.NDArray[np.uint8]
) -> Callable[[], FloatArray]:
    def load() -> FloatArray:
        if dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise ModelFileError(f"{path}: {name} has type {dtype}, which is not supported; supported: {known}")
        values = data.view(_DTYPES[dtype]).reshape(shape)
        if dtype == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    return load


def _read_torch(path: Path) -> list[TensorSource]:
    try:
        import torch
    except ImportError:
        raise ModelFileError(
            f"{path}: needs torch to be read; install localdiff[train] or save it as safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = str(error).strip().split("\n")[0]
        raise ModelFileError(f"{path}: cannot be read safely (weights only): {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ModelFileError(f"{path}: is not a plain dictionary of tensors")

    def holding(tensor: torch.Tensor) -> Callable[[], FloatArray]:
        return lambda: tensor.detach().to(torch.float32).numpy()

    return [TensorSource(str(name), tuple(tensor.shape), holding(tensor)) for name, tensor in state.items()]
