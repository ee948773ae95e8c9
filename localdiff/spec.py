"""DiffusionSpec: the facts that turn an ordinary checkpoint into a diffusion language model.

One frozen record, read from GGUF metadata or from `localdiff.json` beside an HF checkpoint. Every value is checked for
type and range here, whatever its source. Not here: presets, `--diffusion` and which source wins (presets.py); the
engine; reading and writing files.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelFileError, OptionError

RECORD_FILE = "localdiff.json"  # the record beside an HF checkpoint, DiffusionSpec.to_json()
ATTENTION_KINDS = ("full", "causal", "block_causal", "prefix_causal")
PROCESSES = ("absorbing", "uniform")  # unknown positions hold the mask token, or random tokens
_RANGES = {
    "steps": (1, math.inf), "temperature": (0, math.inf), "top_p": (0, 1), "threshold": (0, 1),
    "end_temperature": (0, math.inf), "entropy_bound": (0, math.inf), "repetition_penalty": (0.01, 100),
}  # fmt: skip
_NO_TOKEN = 2**32 - 1  # what some writers store for "none"
KIND_WORDS = {
    "bool": "0 or 1", "int": "a whole number", "float": "a number", "str": "a word", "tuple": "ids joined by +"
}  # fmt: skip


def kind_of(annotation: str) -> str:
    """int, float, bool, str or tuple of an annotation such as `int | None` or `tuple[int, ...]`."""
    return annotation.partition(" ")[0].partition("[")[0]


def _is_kind(value: object, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("| None")
    kind = kind_of(annotation)
    if kind == "tuple":
        return isinstance(value, tuple) and all(_is_kind(token, "int") for token in value)
    if isinstance(value, bool):
        return kind == "bool"
    known: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": ()}
    return isinstance(value, known[kind])


@dataclass(frozen=True)
class DiffusionSpec:
    """What a runtime must know besides the weights.

    mask_token    id written where the token is unknown
    logit_shift   True: logit row i-1 predicts token i (models adapted from autoregressive ones)
    attention     which positions a row sees; one of ATTENTION_KINDS
    block_length  positions per block for block_causal and the default of block decoders; 0 = none
    canvas_max    longest canvas seen in training, in tokens; 0 = the context length
    process       noise process, one of PROCESSES
    decoder, steps, temperature, top_p, threshold, end_temperature, entropy_bound, repetition_penalty   defaults of
                  generation; None = the decoder's own default
    infill_decoder   the decoder of holes, with the temperature and top_p above; None = `decoder`, whatever is filled
    stop_tokens   ids after which text is trimmed
    pad_token, sep_token   ids used in training layouts, None where absent
    expand_token, delete_token   ids that stand for two masks and for none, None where the model has them not
    canvas_length  tokens of an answer that are denoised together, before the next ones; 0 = all that are asked for
    """

    mask_token: int
    logit_shift: bool
    attention: str = "full"
    block_length: int = 0
    canvas_max: int = 0
    process: str = "absorbing"
    decoder: str | None = None
    steps: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    threshold: float | None = None
    stop_tokens: tuple[int, ...] = ()
    pad_token: int | None = None
    sep_token: int | None = None
    expand_token: int | None = None
    delete_token: int | None = None
    canvas_length: int = 0
    end_temperature: float | None = None
    entropy_bound: float | None = None
    repetition_penalty: float | None = None
    infill_decoder: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_kind(value, str(field.type)):
                raise OptionError(f"{field.name} is {value!r:.80}, expected {KIND_WORDS[kind_of(str(field.type))]}")
        if self.mask_token < 0:
            raise OptionError(f"mask_token is {self.mask_token}, expected an id of the vocabulary")
        if self.attention not in ATTENTION_KINDS:
            raise OptionError(f"attention is '{self.attention}', expected one of {', '.join(ATTENTION_KINDS)}")
        if self.process not in PROCESSES:
            raise OptionError(f"process is '{self.process}', expected one of {', '.join(PROCESSES)}")
        if self.block_length < 0:
            raise OptionError(f"block_length is {self.block_length}, expected 0 or more positions")
        if self.attention == "block_causal" and self.block_length == 0:
            raise OptionError("block_length is 0, expected at least 1 for block_causal attention")
        for name in ("canvas_max", "canvas_length"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} is {getattr(self, name)}, expected 0 or more tokens")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise OptionError(f"{name} is {value}, expected {bounds}")

    def check_vocabulary(self, vocab: int) -> None:
        """Raise OptionError where a token id lies outside [0, vocab)."""
        single = ("mask_token", "pad_token", "sep_token", "expand_token", "delete_token")
        named = [(name, getattr(self, name)) for name in single]
        named += [("stop_tokens", token) for token in self.stop_tokens]
        for name, token in named:
            if token is not None and not 0 <= token < vocab:
                raise OptionError(f"{name} is {token}, but the vocabulary has {vocab} tokens (ids 0 to {vocab - 1})")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> DiffusionSpec:
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelFileError(f"the diffusion record is not JSON: {error}") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("mask_token"), int):
            raise ModelFileError("the diffusion record has no mask_token")
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(DiffusionSpec)})
        if unknown:
            raise ModelFileError(f"the diffusion record has unknown fields: {', '.join(unknown)}")
        if not isinstance(fields.get("logit_shift"), bool):
            raise ModelFileError("the diffusion record has no logit_shift, expected true or false")
        if isinstance(fields.get("stop_tokens"), list):
            fields["stop_tokens"] = tuple(fields["stop_tokens"])
        return from_file(fields)

    def to_gguf(self, arch: str) -> dict[str, Any]:
        """The metadata keys of this record; None values are left out. `int` means u32, lists of int arrays of u32."""
        record: dict[str, Any] = {
            f"{arch}.attention.causal": self.attention == "causal",
            "tokenizer.ggml.mask_token_id": self.mask_token,
            "diffusion.shift_logits": self.logit_shift,
        }
        for name, key in _GGUF_KEYS.items():
            value = getattr(self, name)
            if value is not None and value != ():
                record[key] = list(value) if isinstance(value, tuple) else value
        for name, key in _SAMPLER_KEYS.items():
            value = getattr(self, name)
            if self.process == "uniform" and value is not None:
                record[key] = value
        return record

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> DiffusionSpec | None:
        """Read the record of a file; None where the file has no diffusion record (an ordinary model)."""
        fields = fields_of_file(metadata)
        if "mask_token" not in fields or not has_record(metadata):
            return None
        if "logit_shift" not in fields:
            raise ModelFileError(
                "the file has a diffusion record without diffusion.shift_logits; give --diffusion shift=0 or shift=1"
            )
        return from_file(fields)


# field -> GGUF key, for the facts that llama.cpp has no key for
_GGUF_KEYS = {
    "attention": "localdiff.attention",
    "block_length": "localdiff.block_length",
    "canvas_max": "localdiff.canvas_max",
    "process": "localdiff.process",
    "decoder": "localdiff.decoder",
    "steps": "localdiff.steps",
    "temperature": "localdiff.temperature",
    "top_p": "localdiff.top_p",
    "threshold": "localdiff.threshold",
    "repetition_penalty": "localdiff.repetition_penalty",
    "infill_decoder": "localdiff.infill_decoder",
    "stop_tokens": "localdiff.stop_token_ids",
    "pad_token": "localdiff.pad_token_id",
    "sep_token": "localdiff.sep_token_id",
    "expand_token": "localdiff.expand_token_id",
    "delete_token": "localdiff.delete_token_id",
}


# The same of the sampler that llama.cpp has for canvases of random tokens; the keys above win.
_SAMPLER_KEYS = {
    "canvas_length": "diffusion.canvas_length",
    "steps": "diffusion.eb_max_steps",
    "temperature": "diffusion.eb_t_max",
    "end_temperature": "diffusion.eb_t_min",
    "entropy_bound": "diffusion.eb_entropy_bound",
}
# What that sampler takes besides, with the values that are its own here.
_SAMPLER_FIXED = {"diffusion.eb_stability_threshold": 1, "diffusion.eb_confidence_threshold": 0.005}


def has_own_record(metadata: Mapping[str, Any]) -> bool:
    """Whether a file has keys that only localdiff writes; then its record is complete."""
    return any(key in metadata for key in _GGUF_KEYS.values())


def has_record(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says anything about diffusion."""
    return has_own_record(metadata) or any(key.startswith("diffusion.") for key in metadata)


def fields_of_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says about diffusion, as DiffusionSpec fields; not yet checked."""
    arch = metadata.get("general.architecture")
    keys = (_SAMPLER_KEYS, _GGUF_KEYS)
    fields = {field: metadata[key] for each in keys for field, key in each.items() if key in metadata}
    for key, only in _SAMPLER_FIXED.items():
        stated = metadata.get(key, only)
        if not isinstance(stated, (int, float)) or not math.isclose(stated, only, rel_tol=1e-6):
            raise ModelFileError(f"{key} is {stated!r:.80}, which is not supported; supported: {only:g}")
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
        elif isinstance(value, float):
            fields[name] = float(f"{value:.7g}")  # files hold float32: 0.95, not 0.949999988079071
    mask = metadata.get("tokenizer.ggml.mask_token_id", _NO_TOKEN)
    if mask != _NO_TOKEN:
        fields["mask_token"] = mask
    if "diffusion.shift_logits" in metadata:
        fields["logit_shift"] = metadata["diffusion.shift_logits"]
    if metadata.get(f"{arch}.attention.causal") is True:
        fields.setdefault("attention", "causal")
    return fields


def from_file(fields: Mapping[str, Any]) -> DiffusionSpec:
    """The record of these fields; ModelFileError where the file that gave them is wrong."""
    try:
        return DiffusionSpec(**fields)
    except OptionError as error:
        raise ModelFileError(f"the diffusion record of the model: {error}") from None
