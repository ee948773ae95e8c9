"""The table of model families that `convert` reads, by the model_type of config.json and, where one model_type stands
for two bodies, by the class it names. What is refused for a reason has a row with that reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from . import (
    bailingmoe2,
    bert,
    diffusion_gemma,
    distilbert,
    dream,
    gpt2,
    llada,
    llada_moe,
    llama,
    mineru,
    ministral3,
    modernbert,
    nemotron,
    qwen2,
    qwen3,
    qwen3moe,
    rnd1,
    roberta,
    xlm_roberta_xl,
)
from .checkpoint import read_json
from .family import Family

_FAMILIES = tuple(
    module.FAMILY
    for module in (
        gpt2, llama, llada, dream, qwen2, qwen3, mineru, llada_moe, qwen3moe, rnd1, bailingmoe2, ministral3, nemotron,
        bert, roberta, xlm_roberta_xl, distilbert, modernbert, diffusion_gemma,
    )
)  # fmt: skip
FAMILIES: dict[str, Family] = {model_type: family for family in _FAMILIES for model_type in family.model_types}
_BY_CLASS = {name: family for family in _FAMILIES for name in family.architectures}
_REFUSED = {
    "albert": "its layers share one set of weights and its embedding is factorised, which GGUF has no architecture for",
}


def find_family(config: Mapping[str, Any], origin: str, names: Iterable[str]) -> tuple[Family, str | None]:
    """The family, and the preset that its checkpoints start from. `names` are those of the tensors.

    Raises ModelFileError for what cannot be converted, with the reason where there is one to give.
    """
    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    model_type = config.get("model_type", _told_by_tensors(names))
    if isinstance(model_type, str) and model_type in _REFUSED:
        raise ModelFileError(f"{origin}: model_type '{model_type}' cannot be converted: {_REFUSED[model_type]}")
    if isinstance(named, str) and named in _BY_CLASS:
        return _BY_CLASS[named], _BY_CLASS[named].architectures[named]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        found = "absent" if model_type is None else repr(model_type)
        raise ModelFileError(
            f"{origin}: model_type is {found}, which is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type], FAMILIES[model_type].model_types[model_type]


def _told_by_tensors(names: Iterable[str]) -> str | None:
    """The model_type of the oldest checkpoints, which do not state it: BERT's and DistilBERT's tensors have a prefix
    of their own."""
    first = {name.partition(".")[0] for name in names}
    return next((model_type for model_type in ("bert", "distilbert") if model_type in first), None)


def refuse_quantised(folder: Path) -> None:
    """Refuse a folder whose config.json says that its weights are packed; before they are opened, for the sentence
    can name what to convert instead."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    quantised = config.get("quantization_config")
    if quantised is None:
        return
    method = quantised.get("quant_method", "bitsandbytes") if isinstance(quantised, dict) else quantised
    raise ModelFileError(
        f"{path}: the weights are packed by {method}, which loses what a GGUF type could keep; "
        f"convert the bf16 original, {_original(config, folder)}, instead"
    )


def _original(config: Mapping[str, Any], folder: Path) -> str:
    """The name of the checkpoint that a quantised one was made from, as far as it is told."""
    told = config.get("_name_or_path")
    for name in (folder.resolve().name, told if isinstance(told, str) else ""):
        # quantised copies are called OWNER_-_MODEL-4bits, or MODEL-bnb-4bit
        if "_-_" in name:
            return re.sub(r"[-_](bnb[-_])?[48][-_]?bits?.*$", "", name.split("/")[-1].replace("_-_", "/"))
    return told if isinstance(told, str) and told else "the checkpoint it was made from"
