"""The diffusion record of a conversion: what the family's preset, the configuration, the tokenizer, the record file and
the user say, in this order of rising authority.

The ids of a preset belong to the published vocabulary. Where a checkpoint has another mask token it has another
vocabulary, so the preset's other ids are left out and the configuration's are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..presets import PRESETS, resolve
from ..spec import RECORD_FILE, DiffusionSpec
from .family import Config

_MASK_KEY = "tokenizer.ggml.mask_token_id"


def find_record(
    preset: str | None, config: Config, vocabulary: Mapping[str, Any], arch: str, source: Path, diffusion: str | None
) -> DiffusionSpec | None:
    """None for an ordinary model without a record file beside it and without `diffusion`, the text of --diffusion."""
    metadata: dict[str, Any] = {**vocabulary, "general.architecture": arch}
    if preset is not None:
        metadata |= _published(PRESETS[preset], config, vocabulary.get(_MASK_KEY)).to_gguf(arch)
    path = source / RECORD_FILE
    if path.is_file():
        try:
            stored = DiffusionSpec.from_json(path.read_text(encoding="utf-8"))
        except (ModelFileError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: {error}") from None
        metadata |= stored.to_gguf(arch)
    if preset is None and not path.is_file() and diffusion is None:
        return None  # an ordinary model
    return resolve(metadata, diffusion)


def _published(preset: DiffusionSpec, config: Config, named_mask: int | None) -> DiffusionSpec:
    """The preset with what the checkpoint itself states. `named_mask` is the mask token of its tokenizer."""
    stated = config.ids("mask_token_id")
    mask = stated[0] if stated else preset.mask_token if named_mask is None else named_mask
    spec = preset
    if mask != preset.mask_token:
        spec = dataclasses.replace(preset, mask_token=mask, stop_tokens=(), pad_token=None, sep_token=None)
    changes: dict[str, Any] = {}
    if not spec.stop_tokens:
        changes["stop_tokens"] = config.ids("eos_token_id")
    if spec.pad_token is None:
        changes["pad_token"] = next(iter(config.ids("pad_token_id")), None)
    if spec.attention == "block_causal":
        changes["block_length"] = config.integer("block_size", config.integer("bd_size", spec.block_length))
    return dataclasses.replace(spec, **changes)
