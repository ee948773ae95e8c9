"""Diffusion records by name, for files that do not carry their own; and which record is in force for a file.

A preset is a row: the record as published, the texts by which its mask token is found in a vocabulary, and how its
files are recognised. Sources in rising authority: preset, file, the values of `--diffusion`. A preset's other ids
belong to the published vocabulary; where a file has its mask token elsewhere they are left out. Not here: the record
itself (spec.py), the engine, reading files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError
from .spec import KIND_WORDS, DiffusionSpec, fields_of_file, from_file, has_own_record, has_record, kind_of


@dataclass(frozen=True)
class Preset:
    """One published model, or several that differ only in size.

    spec        the record, with the decoder that was published with the model
    mask_texts  how vocabularies write the mask token
    names       what `general.name` or `general.basename` has at the start of a word: lower case, words with spaces
    archs       architectures whose files are always this model
    """

    spec: DiffusionSpec
    mask_texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()


_DIFFUGPT_S = DiffusionSpec(10541, True, canvas_max=512, decoder="random-keep", steps=64, temperature=0.95, top_p=0.9)
_SDAR = DiffusionSpec(
    151669, False, "block_causal", 4, decoder="sdar", threshold=0.9, stop_tokens=(151643, 151645), pad_token=151643
)
_A2D = dataclasses.replace(_SDAR, attention="full", block_length=0, decoder="llada", threshold=None)
_DREAM = DiffusionSpec(
    151666, True, decoder="dream", steps=512, temperature=0.2, top_p=0.95, stop_tokens=(151643,), pad_token=151643
)
_LLADA_MOE = DiffusionSpec(156895, False, decoder="llada", stop_tokens=(156892,), pad_token=156892)
_LLADA2 = dataclasses.replace(_LLADA_MOE, attention="block_causal", block_length=32, decoder="llada2", threshold=0.95)
_ROBERTA = DiffusionSpec(50264, False, decoder="rdm", temperature=0.0, stop_tokens=(2,), pad_token=1, sep_token=2)
_MODERNBERT = DiffusionSpec(
    50284, False, decoder="rdm", temperature=0.0, stop_tokens=(50282,), pad_token=50283, sep_token=50282
)

# The first row whose name fits is taken, so longer names stand before shorter ones.
TABLE: dict[str, Preset] = {
    # arXiv:2410.17891
    "diffugpt-s": Preset(_DIFFUGPT_S, ("------------",), ("diffugpt s",)),
    "diffugpt-m": Preset(
        dataclasses.replace(_DIFFUGPT_S, mask_token=50257, canvas_max=1024),
        ("[\u00a8M\u00a8]",),
        ("diffugpt m",),
    ),
    "diffullama": Preset(
        dataclasses.replace(
            _DIFFUGPT_S, mask_token=811, canvas_max=2048, temperature=0.9, pad_token=30399, sep_token=4936
        ),
        ("\u0442\u0438",),
        ("diffullama",),
    ),
    # arXiv:2502.09992 and its successors
    "illada": Preset(DiffusionSpec(5, False, decoder="llada"), (), ("illada",)),
    "llada-moe": Preset(_LLADA_MOE, ("<|mask|>",), ("llada moe",), ("llada-moe",)),
    "llada2.1": Preset(
        dataclasses.replace(_LLADA2, decoder="llada2.1"),
        ("<|mask|>",),
        ("llada2.1",),
    ),
    "llada2": Preset(_LLADA2, ("<|mask|>",), ("llada2",), ("llada2",)),
    "llada": Preset(
        DiffusionSpec(126336, False, decoder="llada", stop_tokens=(126081, 126348), pad_token=126081),
        ("<|mdm_mask|>",),
        ("llada",),
        ("llada",),
    ),
    # Dream, Dream-Coder, DiffuCoder
    "dream": Preset(_DREAM, ("<|mask|>",), ("dream v0", "dream coder", "diffucoder"), ("dream",)),
    "dreamon": Preset(
        dataclasses.replace(_DREAM, decoder="dreamon", steps=None, top_p=0.9, expand_token=151667, delete_token=151643),
        ("<|mask|>",),
        ("dreamon",),
    ),
    "rnd1": Preset(
        dataclasses.replace(
            _DREAM, mask_token=151669, decoder="rnd1", steps=256, temperature=0.01, top_p=None, stop_tokens=(151645,)
        ),
        ("<|mask|>",),
        ("rnd1",),
        ("rnd1",),
    ),
    # bodies of Qwen
    "mineru": Preset(
        dataclasses.replace(_SDAR, block_length=32, threshold=0.95, temperature=1.0),
        ("<|MASK|>",),
        ("mineru diffusion",),
    ),
    "sdar": Preset(_SDAR, ("<|MASK|>",), ("sdar", "trado")),
    "wedlm": Preset(
        dataclasses.replace(
            _SDAR, mask_token=151665, attention="causal", block_length=0, decoder="wedlm", threshold=None
        ),
        (),
        ("wedlm",),
    ),
    "fdv2": Preset(
        dataclasses.replace(_SDAR, mask_token=151665, logit_shift=True, block_length=32, decoder="threshold"),
        ("|<MASK>|",),
        ("fast dllm",),
    ),
    "open-dcoder": Preset(
        dataclasses.replace(_DREAM, mask_token=151665, steps=None, decoder="p2"), ("[MASK]",), ("open dcoder",)
    ),
    "a2d-bd3lm": Preset(
        dataclasses.replace(_A2D, attention="block_causal", block_length=32), ("<|mask|>",), ("diffusion bd3lm",)
    ),
    "a2d": Preset(_A2D, ("<|mask|>",), ("diffusion mdlm", "a2d qwen")),
    "stable-diffcoder": Preset(
        DiffusionSpec(5, False, "block_causal", 4, decoder="threshold", threshold=0.9, stop_tokens=(2,)),
        (),
        ("stable diffcoder",),
    ),
    "nemotron-labs": Preset(
        DiffusionSpec(100, False, "block_causal", 32, decoder="threshold", threshold=0.9),
        (),
        ("nemotron labs diffusion",),
    ),
    # canvases of random tokens
    "diffusion-gemma": Preset(
        DiffusionSpec(
            4,
            False,
            "prefix_causal",
            canvas_length=256,
            process="uniform",
            decoder="entropy-bound",
            steps=48,
            temperature=0.8,
            stop_tokens=(1, 106, 50),
            pad_token=0,
            end_temperature=0.4,
            entropy_bound=0.1,
        ),
        ("<mask>",),
        ("diffusiongemma", "diffusion gemma"),
        ("diffusion-gemma",),
    ),
    # masked language models
    "bert": Preset(
        dataclasses.replace(_ROBERTA, mask_token=103, stop_tokens=(102,), pad_token=0, sep_token=102), ("[MASK]",)
    ),
    "roberta": Preset(_ROBERTA, ("<mask>",)),
    "xlmr": Preset(dataclasses.replace(_ROBERTA, mask_token=250001, steps=50), ("<mask>",)),
    "modernbert-chat": Preset(
        dataclasses.replace(_MODERNBERT, decoder="llada", block_length=32),
        ("[MASK]",),
        ("modernbert base chat", "modernbert large chat"),
    ),
    "modernbert": Preset(_MODERNBERT, ("[MASK]",)),
}
PRESETS: dict[str, DiffusionSpec] = {name: row.spec for name, row in TABLE.items()}

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
    "expand": "expand_token",
    "delete": "delete_token",
    "top-p": "top_p",
}


@dataclass(frozen=True)
class Resolved:
    """spec: the record in force, None for an ordinary model; preset: the row it is based on; notices: for the user."""

    spec: DiffusionSpec | None
    preset: str | None = None
    notices: tuple[str, ...] = ()


def parse_override(text: str) -> dict[str, Any]:
    """Parse `--diffusion` text: a preset name or `mask=811,shift=1,attn=full,...`; a preset may come first.

    Returns DiffusionSpec field -> value. Raises OptionError for unknown names and unreadable values.
    """
    name, explicit = _split(text)
    return ({} if name is None else dataclasses.asdict(PRESETS[name])) | explicit


def resolve(metadata: Mapping[str, Any], override: str | None) -> DiffusionSpec | None:
    """The record in force, as record_in_force() finds it, without its notices."""
    return record_in_force(metadata, override).spec


def record_in_force(metadata: Mapping[str, Any], override: str | None) -> Resolved:
    """The record in force: explicit values of `override`, then the file's, then those of a preset.

    The preset is the one that `override` begins with; else, where the file has no record of ours, the one it is
    recognised as. Raises ModelFileError for a damaged record and OptionError for an override that is unreadable or
    leaves out what the file does not say.
    """
    chosen, explicit = (None, {}) if override is None else _split(override)
    seen = None if has_own_record(metadata) else recognise(metadata)
    name = chosen or seen
    if override is None and name is None:
        return Resolved(DiffusionSpec.from_gguf(metadata))
    notices: list[str] = []
    stated = fields_of_file(metadata) | explicit
    fields = ({} if name is None else of_preset(name, metadata, stated, notices)) | stated
    needed = (("mask=ID", "mask_token"), ("shift=0|1", "logit_shift"))
    missing = [option for option, field in needed if field not in fields]
    if missing:
        raise OptionError(f"--diffusion: the file does not say it, so {' and '.join(missing)} must be given too")
    spec = from_file(fields) if override is None else DiffusionSpec(**fields)
    if not has_record(metadata):
        title = str(metadata.get("general.name") or "the file")
        if chosen is None and seen is not None and metadata.get("general.architecture") not in TABLE[seen].archs:
            how = f"mask={spec.mask_token},shift={int(spec.logit_shift)},attn={spec.attention}"
            notices.insert(0, f"{title} is taken for {seen} by its name ({how}); --diffusion changes that")
        elif name is None or name != seen:
            known = "has no diffusion record" if seen is None else f"looks like {seen}"
            notices.append(f"{title} {known}; a model that was not trained for what --diffusion says gives nonsense")
    return Resolved(spec, name, tuple(notices))


def recognise(metadata: Mapping[str, Any]) -> str | None:
    """The preset of a file by its name, else by its architecture; None where neither says so."""
    arch = metadata.get("general.architecture")
    stated = [str(metadata.get(f"general.{key}", "")).lower() for key in ("name", "basename")]
    titles = [" ".join(re.split(r"[-_\s]+", text)) for text in stated]
    starts = {name: [re.compile(rf"\b{re.escape(part)}") for part in row.names] for name, row in TABLE.items()}
    by_name = (name for name in TABLE if any(start.search(title) for start in starts[name] for title in titles))
    by_arch = (name for name, row in TABLE.items() if arch in row.archs)
    return next(by_name, None) or next(by_arch, None)


def of_preset(name: str, metadata: Mapping[str, Any], stated: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    """The fields of a preset for this file: the mask token where its vocabulary has it, the canvas that fits.

    stated    fields that are known to be otherwise; notices are added to `notices`
    """
    row = TABLE[name]
    fields = dataclasses.asdict(row.spec)
    mask = stated.get("mask_token", row.spec.mask_token)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if row.mask_texts and "mask_token" not in stated and isinstance(tokens, list):
        here = tokens[mask] if mask < len(tokens) else None
        if here not in row.mask_texts:
            found = next((tokens.index(text) for text in row.mask_texts if text in tokens), None)
            if found is None:
                notices.append(
                    f"token {mask} of this vocabulary is {here!r}, but {name} has {row.mask_texts[0]!r} there; "
                    "if this is another model, give --diffusion mask=ID"
                )
            else:
                mask = found
    if mask != row.spec.mask_token:  # another vocabulary
        fields |= {"mask_token": mask, "stop_tokens": ()}
        fields |= dict.fromkeys(("pad_token", "sep_token", "expand_token", "delete_token"))
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(context, int) and fields["canvas_max"] > context > 0:
        fields["canvas_max"] = context
    return fields


def _split(text: str) -> tuple[str | None, dict[str, Any]]:
    """The preset that `text` begins with, and the fields it gives by name."""
    preset = None
    explicit: dict[str, Any] = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(DiffusionSpec)}
    for position, part in enumerate(piece.strip() for piece in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            if position or part not in PRESETS:
                raise OptionError(
                    f"--diffusion: '{part}' is not a preset; known: {', '.join(PRESETS)}, or give mask=ID,shift=0|1,..."
                )
            preset = part
            continue
        field = _OPTION_NAMES.get(name, name)
        if field not in types:
            known = ", ".join(sorted(set(_OPTION_NAMES) | set(types)))
            raise OptionError(f"--diffusion: unknown name '{name}'; known: {known}")
        if field in explicit:
            raise OptionError(f"--diffusion: {name} is given twice")
        explicit[field] = _parse_value(name, value, kind_of(types[field]))
    return preset, explicit


def _parse_value(name: str, value: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
        if kind == "tuple":
            return tuple(int(token) for token in value.split("+")) if value else ()
        return {"int": int, "float": float, "str": str}[kind](value)
    except (KeyError, ValueError):
        raise OptionError(f"--diffusion: {name}={value} cannot be read, expected {KIND_WORDS[kind]}") from None
