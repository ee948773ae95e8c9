"""The diffusion record of a conversion: what the family's preset, the vocabulary, the configuration, the record file
and the user say, in this order of rising authority. What is no diffusion model by its family may be one by its name,
which also tells apart the models of one family that are run in several ways.

The ids of a preset belong to the published vocabulary. Where a checkpoint has another mask token it has another
vocabulary, so the preset's other ids are left out and the configuration's are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..presets import PRESETS, of_preset, recognise, record_in_force
from ..spec import RECORD_FILE, DiffusionSpec
from .checkpoint import read_json
from .family import Config

_MASK_KEY = "tokenizer.ggml.mask_token_id"


def find_record(
    preset: str | None, config: Config, described: Mapping[str, Any], source: Path, diffusion: str | None
) -> tuple[DiffusionSpec | None, tuple[str, ...]]:
    """The record and notices; no record for an ordinary model.

    preset     the row of presets.TABLE that the family names
    described  the metadata of the file so far: name, architecture, vocabulary
    source     the checkpoint's folder, which may hold a record
    diffusion  the text of --diffusion
    """
    metadata = dict(described)
    notices: list[str] = []
    path = source / RECORD_FILE
    if path.is_file():
        try:
            stored = DiffusionSpec.from_json(path.read_text(encoding="utf-8"))
        except (ModelFileError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: {error}") from None
        metadata |= stored.to_gguf(metadata["general.architecture"])
    elif preset is not None:
        chosen = (diffusion or "").split(",")[0].strip()
        row = chosen if chosen in PRESETS else _by_name(preset, metadata, notices)
        published = _published(row, config, metadata, source, notices)
        metadata |= published.to_gguf(metadata["general.architecture"])
    found = record_in_force(metadata, diffusion)
    return found.spec, (*notices, *found.notices)


def _by_name(preset: str, described: Mapping[str, Any], notices: list[str]) -> str:
    """The preset that the name of the model means, where it differs from the family's only in how it is run."""
    named = recognise(described)
    if named is None or named == preset:
        return preset
    same = ("mask_token", "logit_shift")
    if any(getattr(PRESETS[named], field) != getattr(PRESETS[preset], field) for field in same):
        return preset
    notices.append(f"{described['general.name']} is taken for {named} by its name; --diffusion {preset} changes that")
    return named


def _sampler(spec: DiffusionSpec, config: Config, source: Path) -> dict[str, Any]:
    """What config.json and generation_config.json say about canvases of random tokens."""
    path = source / "generation_config.json"
    if spec.process != "uniform":
        return {}
    stated = Config(read_json(path) if path.is_file() else {}, str(path))
    sampler = stated.section("sampler_config") or Config({}, str(path))
    stated.expect("stability_threshold", (1,), 1)
    stated.expect("confidence_threshold", (0.005,), 0.005)
    sampler.expect("_cls_name", ("EntropyBoundSamplerConfig",), "EntropyBoundSamplerConfig")
    return {
        "canvas_length": config.integer("canvas_length", spec.canvas_length),
        "steps": stated.integer("max_denoising_steps", spec.steps),
        "temperature": stated.real("t_max", spec.temperature),
        "end_temperature": stated.real("t_min", spec.end_temperature),
        "entropy_bound": sampler.real("entropy_bound", spec.entropy_bound),
        "stop_tokens": stated.ids("eos_token_id") or spec.stop_tokens,
    }


def _published(
    preset: str, config: Config, described: Mapping[str, Any], source: Path, notices: list[str]
) -> DiffusionSpec:
    """The preset with what the checkpoint itself states."""
    masks = config.ids("mask_token_id") or ((described[_MASK_KEY],) if _MASK_KEY in described else ())
    stated: dict[str, Any] = {"mask_token": masks[0]} if masks else {}
    spec = DiffusionSpec(**of_preset(preset, described, stated, notices))
    changes = dict(stated) | _sampler(spec, config, source)
    if not changes.get("stop_tokens", spec.stop_tokens):
        changes["stop_tokens"] = config.ids("eos_token_id")
    if spec.pad_token is None:
        changes["pad_token"] = next(iter(config.ids("pad_token_id")), None)
    if spec.attention == "block_causal":
        changes["block_length"] = config.integer("block_size", config.integer("bd_size", spec.block_length))
    return dataclasses.replace(spec, **changes)
