"""DiffusionSpec: the facts that turn an ordinary checkpoint into a diffusion language model.

One frozen record, four sources: the GGUF metadata, `localdiff.json` beside an HF checkpoint, a preset by name, and
`--diffusion key=value,...`. Explicit values win over the file's, the file's win over a preset's. Every value is checked
for type and range here, whatever its source. Nothing here touches the engine; reading and writing files is the caller's
job.
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
PROCESSES = ("absorbing",)
_RANGES = {"steps": (1, math.inf), "temperature": (0, math.inf), "top_p": (0, 1), "threshold": (0, 1)}
_NO_TOKEN = 2**32 - 1  # what some writers store for "none"
_KIND_WORDS = {
    "bool": "0 or 1", "int": "a whole number", "float": "a number", "str": "a word", "tuple": "ids joined by +"
}  # fmt: skip


def _kind(annotation: str) -> str:
    """int, float, bool, str or tuple of an annotation such as `int | None` or `tuple[int, ...]`."""
    return annotation.partition(" ")[0].partition("[")[0]


def _is_kind(value: object, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("| None")
    kind = _kind(annotation)
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_kind(value, str(field.type)):
                raise OptionError(f"{field.name} is {value!r}, expected {_KIND_WORDS[_kind(str(field.type))]}")
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
        if self.canvas_max < 0:
            raise OptionError(f"canvas_max is {self.canvas_max}, expected 0 or more tokens")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise OptionError(f"{name} is {value}, expected {bounds}")

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
        if not isinstance(fields.get("logit_shift"), bool):
            raise ModelFileError("the diffusion record has no logit_shift, expected true or false")
        if isinstance(fields.get("stop_tokens"), list):
            fields["stop_tokens"] = tuple(fields["stop_tokens"])
        return _from_file(fields)

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
        fields = _fields_of_file(metadata)
        arch = metadata.get("general.architecture")
        marked = arch in _SHIFT_BY_ARCH or any(
            name.startswith("diffusion.") or name in _GGUF_KEYS.values() for name in metadata
        )
        if "mask_token" not in fields or not marked:
            return None
        if "logit_shift" not in fields:
            raise ModelFileError(
                "the file has a diffusion record without diffusion.shift_logits; give --diffusion shift=0 or shift=1"
            )
        return _from_file(fields)


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

_DIFFUGPT_S = DiffusionSpec(10541, True, canvas_max=512, decoder="random-keep", steps=64, temperature=0.95, top_p=0.9)
_SDAR = DiffusionSpec(
    151669, False, "block_causal", 4, decoder="threshold", threshold=0.9, stop_tokens=(151643, 151645), pad_token=151643
)
# Decoders are the nearest of decode/table.py to those of the papers.
PRESETS: dict[str, DiffusionSpec] = {
    "diffugpt-s": _DIFFUGPT_S,
    "diffugpt-m": dataclasses.replace(_DIFFUGPT_S, mask_token=50257, canvas_max=1024),
    "diffullama": dataclasses.replace(
        _DIFFUGPT_S, mask_token=811, canvas_max=2048, temperature=0.9, pad_token=30399, sep_token=4936
    ),
    "llada": DiffusionSpec(126336, False, decoder="llada", stop_tokens=(126081, 126348), pad_token=126081),
    "illada": DiffusionSpec(5, False, decoder="llada"),
    "llada-moe": DiffusionSpec(156895, False, decoder="llada", stop_tokens=(156892,), pad_token=156892),
    "llada2": DiffusionSpec(
        156895, False, "block_causal", 32, decoder="threshold", threshold=0.95, stop_tokens=(156892,), pad_token=156892
    ),
    "dream": DiffusionSpec(151666, True, decoder="topk", steps=512, stop_tokens=(151643,), pad_token=151643),
    "rnd1": DiffusionSpec(151669, True, decoder="topk", steps=256, stop_tokens=(151645,), pad_token=151643),
    "sdar": _SDAR,
    "mineru": dataclasses.replace(_SDAR, block_length=32, threshold=0.95),
    "fdv2": dataclasses.replace(_SDAR, mask_token=151665, logit_shift=True, block_length=32),
    "a2d": dataclasses.replace(_SDAR, attention="full", block_length=0, decoder="llada", threshold=None),
    "stable-diffcoder": DiffusionSpec(5, False, "block_causal", 4, decoder="threshold", stop_tokens=(2,)),
    "nemotron-labs": DiffusionSpec(100, False, "block_causal", 32, decoder="threshold", threshold=0.9),
    "bert": DiffusionSpec(103, False, decoder="topk", stop_tokens=(102,), pad_token=0, sep_token=102),
    "roberta": DiffusionSpec(50264, False, decoder="topk", stop_tokens=(2,), pad_token=1, sep_token=2),
    "xlmr": DiffusionSpec(250001, False, decoder="topk", steps=50, stop_tokens=(2,), pad_token=1, sep_token=2),
    "modernbert": DiffusionSpec(50284, False, decoder="topk", stop_tokens=(50282,), pad_token=50283, sep_token=50282),
    "modernbert-chat": DiffusionSpec(
        50284, False, block_length=32, decoder="llada", stop_tokens=(50282,), pad_token=50283, sep_token=50282
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
    preset, explicit = _split_override(text)
    return preset | explicit


def resolve(metadata: Mapping[str, Any], override: str | None) -> DiffusionSpec | None:
    """The record in force: explicit values of `override`, then the file's, then those of a preset in `override`.

    Returns None for an ordinary model without override. Raises ModelFileError for a damaged record and OptionError for
    an override that is unreadable or leaves out what the file does not say.
    """
    if override is None:
        return DiffusionSpec.from_gguf(metadata)
    preset, explicit = _split_override(override)
    fields = preset | _fields_of_file(metadata) | explicit
    missing = [short for short, name in (("mask=ID", "mask_token"), ("shift=0|1", "logit_shift")) if name not in fields]
    if missing:
        raise OptionError(f"--diffusion: the file does not say it, so {' and '.join(missing)} must be given too")
    return DiffusionSpec(**fields)


def _split_override(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the preset that `text` begins with, and those it gives by name."""
    preset: dict[str, Any] = {}
    explicit: dict[str, Any] = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(DiffusionSpec)}
    for position, part in enumerate(piece.strip() for piece in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            if position or part not in PRESETS:
                raise OptionError(
                    f"--diffusion: '{part}' is not a preset; known: {', '.join(PRESETS)}, or give mask=ID,shift=0|1,..."
                )
            preset = dataclasses.asdict(PRESETS[part])
            continue
        field = _OPTION_NAMES.get(name, name)
        if field not in types:
            known = ", ".join(sorted(set(_OPTION_NAMES) | set(types)))
            raise OptionError(f"--diffusion: unknown name '{name}'; known: {known}")
        if field in explicit:
            raise OptionError(f"--diffusion: {name} is given twice")
        explicit[field] = _parse_value(name, value, _kind(types[field]))
    return preset, explicit


def _parse_value(name: str, value: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
        if kind == "tuple":
            return tuple(int(token) for token in value.split("+")) if value else ()
        return {"int": int, "float": float, "str": str}[kind](value)
    except (KeyError, ValueError):
        raise OptionError(f"--diffusion: {name}={value} cannot be read, expected {_KIND_WORDS[kind]}") from None


def _fields_of_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says about diffusion, as DiffusionSpec fields; not yet checked."""
    arch = metadata.get("general.architecture")
    fields = {field: metadata[key] for field, key in _GGUF_KEYS.items() if key in metadata}
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
        elif isinstance(value, float):
            fields[name] = float(f"{value:.7g}")  # files hold float32: 0.95, not 0.949999988079071
    mask = metadata.get("tokenizer.ggml.mask_token_id", _NO_TOKEN)
    if mask != _NO_TOKEN:
        fields["mask_token"] = mask
    shift = metadata.get("diffusion.shift_logits", _SHIFT_BY_ARCH.get(arch) if isinstance(arch, str) else None)
    if shift is not None:
        fields["logit_shift"] = shift
    if metadata.get(f"{arch}.attention.causal") is True:
        fields.setdefault("attention", "causal")
    return fields


def _from_file(fields: Mapping[str, Any]) -> DiffusionSpec:
    try:
        return DiffusionSpec(**fields)
    except OptionError as error:
        raise ModelFileError(f"the diffusion record of the model: {error}") from None
