"""LoRA adapters in the layout of PEFT, merged into the weights of their base: W + scaling * B A, in float32.

A folder holds adapter_config.json and adapter_model.safetensors or .bin: for each adapted matrix lora_A [r, in] and
lora_B [out, r] (lora_embedding_A [r, vocab] and _B [dim, r] for embeddings), and whole tensors of modules that were
trained beside them. The scaling is alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732). Refused by name is what
changes the arithmetic in other ways: DoRA, residual initialisations, biases of lora_B, other kinds of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import ModelFileError
from .checkpoint import read_json
from .family import Config, Family, FloatArray
from .matching import plain_name
from .safetensors_file import read_safetensors
from .tensors import TensorSource
from .torch_file import read_torch

CONFIG_FILE = "adapter_config.json"
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
)
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations whose base is not the original
_REFUSED = ("layer_replication", "target_parameters", "lora_bias", "alora_invocation_tokens", "trainable_token_indices")


@dataclass(frozen=True)
class Merged:
    tensors: dict[str, TensorSource]
    files: tuple[Path, ...]
    notice: str


def merge(base: Mapping[str, TensorSource], folder: Path, family: Family, tied: bool) -> Merged:
    """The tensors of `base` (by plain name) with the adapter in `folder` merged into them when they are loaded.

    tied      the base's head is its token embedding. PEFT trains a copy of the embedding: the head keeps the values of
              the original, unless the adapter says otherwise
    raises    ModelFileError where the adapter is damaged, of another kind, or of another base
    """
    config = _read_config(folder)
    weights = next((path for name in ("adapter_model.safetensors", "adapter_model.bin")
                    if (path := folder / name).is_file()), None)  # fmt: skip
    if weights is None:
        raise ModelFileError(f"{folder}: has no adapter_model.safetensors or adapter_model.bin")
    sources = read_safetensors(weights) if weights.suffix == ".safetensors" else read_torch(weights)
    pairs: dict[str, dict[str, TensorSource]] = {}
    whole: dict[str, TensorSource] = {}
    for source in sources:
        factor = _FACTOR.fullmatch(source.name)
        if factor is None and ".lora_" in source.name:
            raise ModelFileError(
                f"{weights}: holds {source.name}, which is not supported; supported: lora_A and lora_B"
            )
        if factor is None:
            _put(whole, plain_name(family, _WRAPPED.sub("", source.name)), source, weights)
        else:
            side = (factor["embedding"] or "") + factor["side"]
            _put(pairs.setdefault(factor["module"], {}), side, source, weights)
    merged = dict(base)
    for name, tensor in whole.items():
        if name not in base:
            raise _foreign(weights, tensor.name, name)
        merged[name] = tensor
    for module, sides in pairs.items():
        name = plain_name(family, _WRAPPED.sub("", f"{module}.weight"))
        if name not in base:
            raise _foreign(weights, module, name)
        merged[name] = _adapted(merged[name], module, sides, config, weights)
    changed = [name for name in family.embedding if merged.get(name) is not base.get(name)]
    if changed and tied and not merged.keys() & set(family.heads) and not config.flag("ensure_weight_tying", False):
        merged[family.heads[0]] = base[changed[0]]
    if not pairs:
        raise ModelFileError(f"{weights}: holds no lora_A and lora_B, expected a LoRA adapter")
    notice = f"merged {len(pairs)} LoRA matrices and {len(whole)} whole tensors of {folder}"
    return Merged(merged, (folder / CONFIG_FILE, weights), notice)


def _put(table: dict[str, TensorSource], key: str, source: TensorSource, path: Path) -> None:
    if key in table:
        raise ModelFileError(f"{path}: {table[key].name} and {source.name} are the same tensor, expected one")
    table[key] = source


def _foreign(path: Path, found: str, name: str) -> ModelFileError:
    return ModelFileError(f"{path}: {found} is for {name}, which the base lacks; is it the adapter of another model?")


def _read_config(folder: Path) -> Config:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelFileError(f"{folder}: has no {CONFIG_FILE}, expected the folder of a PEFT adapter")
    fields = read_json(path)
    config = Config(fields, str(path))
    config.expect("peft_type", ("LORA",), "absent")
    for name, value in fields.items():
        if value and (name in _REFUSED or (name.startswith("use_") and name != "use_rslora")):
            raise config.refuse(f"{name} is {value!r:.60}, which is not supported by the merge")
    start = config.value("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise config.refuse(
            f"init_lora_weights is '{start:.60}', whose base differs from the original; convert it to plain LoRA"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.value(name, {})
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in patterns):
            raise config.refuse(f"{name} is {patterns!r:.60}, expected an object of plain module names")
    return config


def _value_for(config: Config, module: str, name: str, pattern: str) -> float:
    """The value of `name` for a module: a pattern is the module's name or its end."""
    own = Config(config.value(pattern, {}), f"{pattern} of the adapter")
    for key in config.value(pattern, {}):
        if f".{module}".endswith(f".{key}"):
            return own.real(key)
    return config.real(name)


def _adapted(
    tensor: TensorSource, module: str, sides: Mapping[str, TensorSource], config: Config, path: Path
) -> TensorSource:
    embedding = set(sides) == {"embedding_A", "embedding_B"}
    if not embedding and set(sides) != {"A", "B"}:
        found = ", ".join(f"lora_{side}" for side in sides)
        raise ModelFileError(f"{path}: {module} has {found}, expected lora_A and lora_B")
    a, b = (sides[side] for side in sorted(sides))
    transposed = embedding or config.flag("fan_in_fan_out", False)
    shape = (*b.shape[:1], *a.shape[1:])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ModelFileError(
            f"{path}: {module} has factors of shape {list(b.shape)} and {list(a.shape)}, not a product"
        )
    if tensor.shape != (shape[::-1] if transposed else shape):
        raise ModelFileError(
            f"{path}: {module} adapts a matrix of shape {list(shape[::-1] if transposed else shape)}, "
            f"but the base has {list(tensor.shape)}; is it the adapter of another model?"
        )
    rank = _value_for(config, module, "r", "rank_pattern")
    if rank != a.shape[0]:
        raise ModelFileError(f"{path}: {module} has rank {a.shape[0]}, but {CONFIG_FILE} says {rank:g}")
    alpha = _value_for(config, module, "lora_alpha", "alpha_pattern")
    scaling = alpha / (rank**0.5 if config.flag("use_rslora", False) else rank)
    return TensorSource(tensor.name, tensor.shape, partial(_sum, tensor, a, b, scaling, transposed))


def _sum(tensor: TensorSource, a: TensorSource, b: TensorSource, scaling: float, transposed: bool) -> FloatArray:
    change = np.float32(scaling) * (b.load() @ a.load())
    merged: FloatArray = tensor.load() + (change.T if transposed else change)
    return merged
