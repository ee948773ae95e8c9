"""DiffusionSpec: the facts that turn an ordinary checkpoint into a diffusion language model.

One frozen record, four sources: the GGUF metadata, `localdiff.json` beside an HF checkpoint, a preset by name, and
`--diffusion key=value,...`. Explicit values win over metadata, metadata wins over presets. Nothing here touches the
engine; reading and writing files is the caller's job.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelFileError, OptionError

RECORD_FILE = "localdiff.json"  # the record beside an HF checkpoint, DiffusionSpec.to_json()
ATTENTION_KINDS = ("full", "causal", "block_causal", "prefix_causal")
PROCESSES = ("absorbing",)


@dataclass(frozen=True)
class DiffusionSpec:
    """What a runtime must know besides the weights.

    mask_token    id written where the token is unknown
    logit_shift   True: logit row i-1 predicts token i (models adapted from autoregressive ones)
    attention     which positions a row sees; one of ATTENTION_KINDS
    block_length  positions per block for block_causal and the default of block decoders; 0 = none
    canvas_max    longest canvas seen in training, in tokens; 0 = the context length
    process       noise process, one of PROCESSES
    decoder, steps, temperature, top_p, threshold   defaults of generation; None = the decoder's own default
    stop_tokens   ids after which text is trimmed
    pad_token, sep_token   ids used in training layouts, None where absent
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

    def __post_init__(self) -> None:
        if self.mask_token < 0:
            raise OptionError(f"mask_token is {self.mask_token}, expected an id of the vocabulary")
        if self.attention not in ATTENTION_KINDS:
            raise OptionError(f"attention is '{self.attention}', expected one of {', '.join(ATTENTION_KINDS)}")
        if self.process not in PROCESSES:
            raise OptionError(f"process is '{self.process}', expected one of {', '.join(PROCESSES)}")
        if self.block_length < 0 or (self.attention == "block_causal" and self.block_length == 0):
            raise OptionError(f"block_length is {self.block_length}, expected at least 1 for block_causal attention")
        if self.canvas_max < 0:
            raise OptionError(f"canvas_max is {self.canvas_max}, expected 0 or more tokens")

    def check_vocabulary(self, vocab: int) -> None:
        """Raise OptionError where a token id lies outside [0, vocab)."""
        named = [("mask_token", self.mask_token), ("pad_token", self.pad_token), ("sep_token", self.sep_token)]
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
        fields["stop_tokens"] = tuple(fields.get("stop_tokens", ()))
        return DiffusionSpec(**fields)

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
        return record

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> DiffusionSpec | None:
        """Read the record of a file; None where the file has no diffusion record (an ordinary model)."""
        arch = metadata.get("general.architecture", "")
        mask = metadata.get("tokenizer.ggml.mask_token_id")
        marked = [key for key in metadata if key.startswith("diffusion.") or key in _GGUF_KEYS.values()]
        if mask is None or not marked:
            return None
        shift = metadata.get("diffusion.shift_logits", _SHIFT_BY_ARCH.get(arch))
        if shift is None:
            raise ModelFileError(
                "the file has a diffusion record without diffusion.shift_logits; give --diffusion shift=0 or shift=1"
            )
        fields = {name: metadata[key] for name, key in _GGUF_KEYS.items() if key in metadata}
        if "stop_tokens" in fields:
            fields["stop_tokens"] = tuple(int(token) for token in fields["stop_tokens"])
        if "attention" not in fields and metadata.get(f"{arch}.attention.causal"):
            fields["attention"] = "causal"
        return DiffusionSpec(mask_token=int(mask), logit_shift=bool(shift), **fields)


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
    "stop_tokens": "localdiff.stop_token_ids",
    "pad_token": "localdiff.pad_token_id",
    "sep_token": "localdiff.sep_token_id",
}

# architectures whose published files leave diffusion.shift_logits out
_SHIFT_BY_ARCH = {"dream": True, "rnd1": True, "llada": False, "llada-moe": False}

PRESETS: dict[str, DiffusionSpec] = {
    "diffugpt-s": DiffusionSpec(10541, True, canvas_max=512, decoder="random-keep", steps=64, temperature=0.95, top_p=0.9),
    "diffugpt-m": DiffusionSpec(50257, True, canvas_max=1024, decoder="random-keep", steps=64, temperature=0.95, top_p=0.9),
    "diffullama": DiffusionSpec(
        811, True, canvas_max=2048, decoder="random-keep", steps=64, temperature=0.9, top_p=0.9, pad_token=30399, sep_token=4936
    ),
}

# what users type in --diffusion -> field
_OPTION_NAMES = {
    "mask": "mask_token",
    "shift": "logit_shift",
    "attn": "attention",
    "block": "block_length",
    "canvas": "canvas_max",
    "stop": "stop_tokens",
    "pad": "pad_token",
    "sep": "sep_token",
    "top-p": "top_p",
}


def parse_override(text: str) -> dict[str, Any]:
    """Parse `--diffusion` text: a preset name or `mask=811,shift=1,attn=full,...`; a preset may come first.

    Returns DiffusionSpec field -> value. Raises OptionError for unknown names and unreadable values.
    """
    fields: dict[str, Any] = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(DiffusionSpec)}
    for position, part in enumerate(piece.strip() for piece in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            if position or part not in PRESETS:
                raise OptionError(
                    f"--diffusion: '{part}' is not a preset; known: {', '.join(PRESETS)}, or give mask=ID,shift=0|1,..."
                )
            fields.update(dataclasses.asdict(PRESETS[part]))
            continue
        field = _OPTION_NAMES.get(name, name)
        if field not in types:
            known = ", ".join(sorted(set(_OPTION_NAMES) | set(types)))
            raise OptionError(f"--diffusion: unknown name '{name}'; known: {known}")
        fields[field] = _parse_value(name, value, types[field])
    return fields


def _parse_value(name: str, value: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
        if kind.startswith("tuple"):
            return tuple(int(token) for token in value.split("+"))
        if kind.startswith("int"):
            return int(value)
        if kind.startswith("float"):
            return float(value)
    except (KeyError, ValueError):
        raise OptionError(f"--diffusion: {name}={value} cannot be read as {kind.split(' ')[0]}") from None
    return value


def resolve(metadata: Mapping[str, Any], override: str | None) -> DiffusionSpec | None:
    """The record in force: the file's, with the fields of `override` replaced; None when neither names a mask."""
    spec = None if override and "shift" in override and "mask" in override else DiffusionSpec.from_gguf(metadata)
    if not override:
        return spec
    fields = parse_override(override)
    if spec is not None:
        return dataclasses.replace(spec, **fields)
    missing = [short for short, field in (("mask=ID", "mask_token"), ("shift=0|1", "logit_shift")) if field not in fields]
    if missing:
        raise OptionError(f"--diffusion: the file has no diffusion record, so {' and '.join(missing)} must be given too")
    return DiffusionSpec(**fields)
