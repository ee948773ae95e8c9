"""The one table of decoders: names, sources, defaults, options; and how the settings in force are found.

A value comes from the caller, else from the model record, else from the decoder's row. The record's steps, threshold
and sampling were chosen with its own decoder, so they count only where that one is used (or none is named). An option
that the decoder does not know is refused, and so is what combines badly (refusals.py). The decoders' code is imported
when one is made. Caches have a table of their own (cache/table.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..cache.table import cache_settings
from ..errors import OptionError
from ..spec import DiffusionSpec
from .refusals import Combination, check

if TYPE_CHECKING:
    from ..options import GenerateOptions
    from .decoder import Decoder, Facts


@dataclass(frozen=True)
class DecoderRow:
    """One decoder.

    place     module:class
    source    where the algorithm comes from
    defaults  its settings; `steps` None = one token per step, other None = off
    choices   for options that are words: those it knows
    traits    blocks: denoises block after block and writes nowhere else
              rewrites: committed tokens can change or become masked again anywhere
              revises: committed tokens of the current block can
              resizes: the canvas can grow and shrink
              reorders: the model reads known tokens first
              noise: unknown positions hold random tokens
              background: looks at Facts.background
              wide: wants longer blocks than a record names for its own decoder, unless the model sees blocks
    begins    how many masks an answer begins with where the decoder lengthens it; 0 = all that it may have
    """

    place: str
    source: str
    defaults: Mapping[str, Any]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()
    begins: int = 0


_BLOCKS, _REWRITES, _REVISES = frozenset({"blocks"}), frozenset({"rewrites"}), frozenset({"blocks", "revises"})
_SCORES = ("confidence", "margin", "entropy")
_LLADA = {"steps": None, "block_length": 32, "order": "confidence", "end_token": "free"}
_LLADA_WORDS = {"order": ("confidence", "random"), "end_token": ("free", "last", "never")}
_SDAR = {"block_length": 4, "steps_per_block": None, "threshold": 0.9, "entropy_bound": 0.35, "temperature": 1.0}
_LLADA2 = {"block_length": 32, "threshold": 0.95}

DECODERS: dict[str, DecoderRow] = {
    "random-keep": DecoderRow(
        "random_keep:RandomKeep",
        "DiffuGPT sampler A, arXiv:2410.17891",
        {"steps": 64, "temperature": 0.95, "top_p": 0.9},
    ),
    "topk": DecoderRow("topk:TopK", "DiffuGPT sampler B, arXiv:2410.17891", {"steps": 64, "temperature": 0.9}),
    "rdm": DecoderRow(
        "rdm:Rdm",
        "reparameterised routing, arXiv:2302.05737 and 2308.12219",
        {"steps": 50, "schedule": "cosine", "remask": "uncond", "order_temperature": 0.0, "length_beam": 1},
        {"schedule": ("linear", "cosine"), "remask": ("uncond", "cond")},
        _REWRITES,
    ),
    "llada": DecoderRow("llada:Llada", "LLaDA, arXiv:2502.09992", _LLADA, _LLADA_WORDS, _BLOCKS),
    "dream": DecoderRow(
        "dream:Dream",
        "Dream, arXiv:2508.15487",
        {"steps": 512, "order": "entropy", "order_temperature": 0.0, "temperature": 0.2, "top_p": 0.95},
        {"order": (*_SCORES, "random")},
    ),
    "threshold": DecoderRow(
        "threshold:Threshold",
        "Fast-dLLM, arXiv:2505.22618",
        {"threshold": 0.9, "block_length": 32},
        traits=_BLOCKS,
    ),
    "factor": DecoderRow(
        "threshold:Factor", "Fast-dLLM, arXiv:2505.22618", {"factor": 1.0, "block_length": 32}, traits=_BLOCKS
    ),
    "sdar": DecoderRow(
        "sdar:Sdar",
        "SDAR, arXiv:2510.06303",
        {**_SDAR, "order": "dynamic"},
        {"order": ("dynamic", "static", "sequential", "entropy")},
        _BLOCKS,
    ),
    "llada2": DecoderRow("llada2:Llada2", "LLaDA2.0, arXiv:2512.15745", _LLADA2, traits=_BLOCKS),
    "llada2.1": DecoderRow(
        "llada2:Llada2",
        "LLaDA2.1, arXiv:2602.08676",
        {**_LLADA2, "edit_threshold": 0.9, "edit_steps": 16},
        traits=_REVISES,
    ),
    "entropy-bound": DecoderRow(
        "entropy_bound:EntropyBound",
        "DiffusionGemma, arXiv:2505.24857",
        {"steps": 48, "temperature": 0.8, "end_temperature": 0.4, "entropy_bound": 0.1},
        traits=frozenset({"rewrites", "noise"}),
    ),
    "dreamon": DecoderRow(
        "dreamon:DreamOn",
        "DreamOn, github.com/DreamLM/DreamOn",
        {"order": "entropy", "expansions": 64, "temperature": 0.2, "top_p": 0.9},
        {"order": _SCORES},
        frozenset({"resizes"}),
    ),
    "rnd1": DecoderRow(
        "rnd1:Rnd1",
        "RND1, Radical Numerics",
        {"steps": 256, "entropy_bound": None, "temperature": 0.01},
    ),
    "wedlm": DecoderRow(
        "wedlm:WeDlm",
        "WeDLM, arXiv:2512.22737",
        {"block_length": 16, "entropy_bound": 0.6, "distance_penalty": 0.02},
        traits=frozenset({"reorders"}),
    ),
    "p2": DecoderRow("p2:P2", "P2, arXiv:2502.03540", {"steps": None}, traits=_REWRITES),
    "mdlm": DecoderRow("mdlm:Mdlm", "MDLM ddpm-cache, arXiv:2406.07524", {"steps": None, "temperature": 1.0}),
    "remdm": DecoderRow(
        "remdm:ReMdm",
        "ReMDM, arXiv:2503.00307",
        {"steps": None, "remask": "cap", "remask_rate": 0.02, "temperature": 1.0, "top_p": 0.9},
        {"remask": ("cap", "rescale", "confidence", "loop")},
        _REWRITES,
    ),
    "eb-sampler": DecoderRow(
        "eb_sampler:EbSampler",
        "EB-Sampler, arXiv:2505.24857",
        {"order": "entropy", "entropy_bound": 0.1},
        {"order": _SCORES},
    ),
    "klass": DecoderRow(
        "klass:Klass",
        "KLASS, arXiv:2511.05664",
        {"block_length": 64, "threshold": 0.6, "divergence": 0.01},
        traits=_BLOCKS,
    ),
    "localleap": DecoderRow(
        "localleap:LocalLeap",
        "LocalLeap, arXiv:2510.07081",
        {"block_length": 32, "threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4},
        traits=_BLOCKS,
    ),
    "hierarchical": DecoderRow(
        "hierarchical:Hierarchical",
        "dInfer, arXiv:2510.08666",
        {"block_length": 32, "threshold": 0.9, "relaxed_threshold": 0.4},
        traits=_BLOCKS,
    ),
    "credit": DecoderRow(
        "credit:Credit", "CreditDecoding, arXiv:2510.06133", {"block_length": 32, "threshold": 0.9}, traits=_BLOCKS
    ),
    "adablock": DecoderRow(
        "adablock:AdaBlock",
        "AdaBlock, arXiv:2509.26432",
        {"block_length": 32, "threshold": 0.9, "delimiter_threshold": 0.3},
    ),
    "daedal": DecoderRow(
        "daedal:Daedal",
        "DAEDAL, arXiv:2508.00819",
        {"block_length": 32, "threshold": 0.9, "relaxed_threshold": 0.1, "expansions": 256},
        traits=frozenset({"resizes"}),
        begins=64,
    ),
    "wino": DecoderRow(
        "wino:Wino",
        "WINO, arXiv:2507.18578",
        {"block_length": 128, "threshold": 0.6, "verify_threshold": 0.9},
        traits=_REVISES,
    ),
    "slowfast": DecoderRow(
        "slowfast:SlowFast",
        "SlowFast, arXiv:2506.10848",
        {"block_length": 128, "threshold": 0.9, "relaxed_threshold": 0.3},
        traits=_BLOCKS,
    ),
    "pc-sampler": DecoderRow(
        "pc_sampler:PcSampler",
        "PC-Sampler, arXiv:2508.13021",
        {"steps": None, "block_length": 256, "position_decay": 0.25},
        traits=frozenset({"blocks", "background"}),
    ),
    "spread": DecoderRow(
        "spread:Spread",
        "own",
        {"block_length": 64, "pace": 4.2, "threshold": 0.9},
        traits=frozenset({"blocks", "wide"}),
    ),
    "prophet": DecoderRow("prophet:Prophet", "Prophet, arXiv:2508.19982", _LLADA, _LLADA_WORDS),
}
DEFAULT_DECODER = "random-keep"

CONSTRAINTS = ("json_schema", "json_object", "regex", "grammar")  # options of which one at most is given
_SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}  # every decoder takes these
_OF_RECORD = (
    "steps", "threshold", "temperature", "top_p", "repetition_penalty", "end_temperature", "entropy_bound"
)  # fmt: skip


def words(option: str) -> tuple[str, ...]:
    """The words that any decoder knows for an option."""
    return tuple(dict.fromkeys(word for row in DECODERS.values() for word in row.choices.get(option, ())))


@dataclass(frozen=True)
class Settings:
    """What is in force for one canvas; None = the decoder has no such setting.

    constraint   the option that says what the text has to match
    aligned      blocks start at multiples of block_length (block-causal attention), not where the holes start
    """

    decoder: str
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    cache: str
    cache_window: int | None = None
    cache_refresh: int | None = None
    report_drift: bool = False
    grow: int | None = None
    steps: int | None = None
    threshold: float | None = None
    block_length: int | None = None
    order: str | None = None
    order_temperature: float | None = None
    factor: float | None = None
    schedule: str | None = None
    remask: str | None = None
    remask_rate: float | None = None
    length_beam: int | None = None
    steps_per_block: int | None = None
    edit_threshold: float | None = None
    edit_steps: int | None = None
    entropy_bound: float | None = None
    end_temperature: float | None = None
    distance_penalty: float | None = None
    expansions: int | None = None
    divergence: float | None = None
    relaxed_threshold: float | None = None
    verify_threshold: float | None = None
    radius: int | None = None
    delimiter_threshold: float | None = None
    position_decay: float | None = None
    pace: float | None = None
    end_token: str | None = None
    constraint: str | None = None
    aligned: bool = False

    def shown(self) -> dict[str, Any]:
        """The settings for people, without those that the decoder has not, nor a penalty that is off."""
        hidden = ("aligned", "report_drift", *(["repetition_penalty"] if self.repetition_penalty == 1 else []))
        return {name: value for name, value in asdict(self).items() if value is not None and name not in hidden}


# options that every decoder goes with, but for refusals.py: see controls.py
CONTROLS = ("stop", "logit_bias", "ban", "avoid", "only", "guidance", "negative_prompt", "alternatives", "deadline")

_EVERY = (
    "decoder", "cache", "cache_window", "cache_refresh", "report_drift", "constraint", "grow", "aligned", *_SAMPLING,
)  # fmt: skip
# taken only where the decoder's row has them
OF_DECODER = tuple(each.name for each in fields(Settings) if each.name not in _EVERY)


# how papers call what has a name here: what users may type for `order`
ALIASES = {"origin": "random", "maskgit_plus": "confidence", "topk_margin": "margin", "entropy_bounded": "entropy"}


def default_decoder(spec: DiffusionSpec) -> str:
    """For records that name none."""
    if spec.process == "uniform":
        return "entropy-bound"
    return "threshold" if spec.attention == "block_causal" else DEFAULT_DECODER


def decoder_name(options: GenerateOptions, spec: DiffusionSpec) -> str:
    """The decoder in force; a record may name one that does not exist."""
    return options.decoder or spec.decoder or default_decoder(spec)


def settings_for(options: GenerateOptions, spec: DiffusionSpec, masked: int) -> Settings:
    """The settings in force for a canvas with `masked` positions to fill; OptionError for what cannot be honoured."""
    name = decoder_name(options, spec)
    row = DECODERS.get(name)
    if row is None:
        raise OptionError(f"the model record asks for the decoder '{name}', expected one of {', '.join(DECODERS)}")
    refused = [option for option in OF_DECODER if getattr(options, option) is not None and option not in row.defaults]
    if refused:
        takes = ", ".join(option for option in OF_DECODER if option in row.defaults)
        others = ", ".join(other for other, each in DECODERS.items() if refused[0] in each.defaults)
        raise OptionError(
            f"the decoder {name} has no option {refused[0]}; it takes {takes}; decoders with {refused[0]}: {others}"
        )

    values = {**_SAMPLING, **row.defaults}
    if spec.decoder in (None, name):
        values.update({n: getattr(spec, n) for n in _OF_RECORD if n in values and getattr(spec, n) is not None})
    own_blocks = spec.attention == "block_causal" or "wide" not in row.traits
    if spec.block_length and "block_length" in values and own_blocks:
        values["block_length"] = spec.block_length
    if "steps" in values:  # a default never asks for more passes than there are tokens
        values["steps"] = max(1, min(values["steps"] or masked, masked))
    asked = {n: getattr(options, n) for n in values if getattr(options, n) is not None}
    if "order" in asked:
        asked["order"] = ALIASES.get(asked["order"], asked["order"])
    values.update(asked)
    for option, known in row.choices.items():
        if values[option] not in known:
            raise OptionError(f"the decoder {name} knows no {option} {values[option]}, expected {', '.join(known)}")
    values.update(cache_settings(options, spec.attention, name, row.traits, values))
    constraint = next((each for each in (*CONSTRAINTS, "avoid") if getattr(options, each) not in (None, False)), None)
    values.update(constraint=constraint, grow=options.grow)
    settings = Settings(decoder=name, aligned=spec.attention == "block_causal", **values)
    in_blocks = tuple(other for other in DECODERS if "blocks" in DECODERS[other].traits)
    wished = {name for name in CONTROLS if getattr(options, name) is not None}
    check(Combination(settings, row.traits, spec, frozenset({*asked, *wished}), in_blocks))
    return settings


def make_decoder(settings: Settings, seed: int, facts: Facts) -> Decoder:
    decoder: Decoder = _load(DECODERS[settings.decoder].place)(settings, seed, facts)
    return decoder


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)
