"""The one table of decoders: names, sources, defaults, options; and how the settings in force are found.

A value comes from the caller, else from the model record, else from the decoder's row. The record's steps, temperature,
top_p and threshold were chosen with its own decoder, so they count only where that one is used (or none is named). An
option that the decoder does not know is refused, and so is what combines badly (REFUSALS). The decoders' code is
imported when one is made. Caches have a table of their own (cache/table.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..cache.table import cache_settings
from ..errors import OptionError
from ..spec import DiffusionSpec

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
    traits    blocks: denoises block after block; rewrites: committed tokens can change or become masked again anywhere;
              resizes: the canvas can grow and shrink; reorders: the model reads known tokens first
    """

    place: str
    source: str
    defaults: Mapping[str, Any]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()


_BLOCKS = frozenset({"blocks"})


DECODERS: dict[str, DecoderRow] = {
    "random-keep": DecoderRow(
        "random_keep:RandomKeep",
        "DiffuGPT sampler A, arXiv:2410.17891",
        {"steps": 64, "temperature": 0.95, "top_p": 0.9},
    ),
    "topk": DecoderRow("topk:TopK", "DiffuGPT sampler B, arXiv:2410.17891", {"steps": 64, "temperature": 0.9}),
    "llada": DecoderRow(
        "llada:Llada",
        "LLaDA, arXiv:2502.09992",
        {"steps": None, "block_length": 32, "order": "confidence"},
        {"order": ("confidence", "random")},
        _BLOCKS,
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
}
DEFAULT_DECODER = "random-keep"

_SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}  # every decoder takes these
_OF_RECORD = ("steps", "threshold", "temperature", "top_p")


def words(option: str) -> tuple[str, ...]:
    """The words that any decoder knows for an option."""
    return tuple(dict.fromkeys(word for row in DECODERS.values() for word in row.choices.get(option, ())))


@dataclass(frozen=True)
class Settings:
    """What is in force for one canvas; None = the decoder has no such setting.

    aligned   blocks start at multiples of block_length (block-causal attention), not where the holes start
    """

    decoder: str
    temperature: float
    top_k: int
    top_p: float
    cache: str
    cache_window: int | None = None
    cache_refresh: int | None = None
    report_drift: bool = False
    steps: int | None = None
    threshold: float | None = None
    block_length: int | None = None
    order: str | None = None
    factor: float | None = None
    aligned: bool = False

    def shown(self) -> dict[str, Any]:
        """The settings for people, without those that the decoder has not."""
        hidden = ("aligned", "report_drift")
        return {name: value for name, value in asdict(self).items() if value is not None and name not in hidden}


_EVERY = ("decoder", "cache", "cache_window", "cache_refresh", "report_drift", "aligned", *_SAMPLING)
_OWN = tuple(each.name for each in fields(Settings) if each.name not in _EVERY)  # only where the decoder's row has them


@dataclass(frozen=True)
class Refusal:
    """A combination that works badly, and why; the reason is a format of `decoder` and `cache`."""

    when: Callable[[Settings, frozenset[str], DiffusionSpec], bool]  # settings, the decoder's traits, record
    reason: str


REFUSALS = (
    Refusal(
        lambda settings, traits, spec: spec.attention == "block_causal" and "blocks" not in traits,
        "the decoder {decoder} writes anywhere in the text, but this model was trained to finish each block before the "
        "next (block_causal attention); choose one that works in blocks, {block_decoders}",
    ),
)


def settings_for(options: GenerateOptions, spec: DiffusionSpec, masked: int) -> Settings:
    """The settings in force for a canvas with `masked` positions to fill; OptionError for what cannot be honoured."""
    name = options.decoder or spec.decoder or DEFAULT_DECODER
    row = DECODERS.get(name)
    if row is None:
        raise OptionError(f"the model record asks for the decoder '{name}', expected one of {', '.join(DECODERS)}")
    refused = [option for option in _OWN if getattr(options, option) is not None and option not in row.defaults]
    if refused:
        takes = ", ".join(option for option in _OWN if option in row.defaults)
        raise OptionError(f"the decoder {name} has no option {refused[0]}; it takes {takes}")

    values = {**_SAMPLING, **row.defaults}
    if spec.decoder in (None, name):
        values.update({n: getattr(spec, n) for n in _OF_RECORD if n in values and getattr(spec, n) is not None})
    if spec.block_length and "block_length" in values:
        values["block_length"] = spec.block_length
    if "steps" in values:  # a default never asks for more passes than there are tokens
        values["steps"] = max(1, min(values["steps"] or masked, masked))
    values.update({n: getattr(options, n) for n in values if getattr(options, n) is not None})
    for option, known in row.choices.items():
        if values[option] not in known:
            raise OptionError(f"the decoder {name} knows no {option} {values[option]}, expected {', '.join(known)}")
    values.update(cache_settings(options, spec.attention, name, row.traits, values))
    settings = Settings(decoder=name, aligned=spec.attention == "block_causal", **values)
    for refusal in REFUSALS:
        if refusal.when(settings, row.traits, spec):
            in_blocks = ", ".join(other for other in DECODERS if "blocks" in DECODERS[other].traits)
            raise OptionError(refusal.reason.format(decoder=name, cache=settings.cache, block_decoders=in_blocks))
    return settings


def make_decoder(settings: Settings, seed: int, facts: Facts) -> Decoder:
    decoder: Decoder = _load(DECODERS[settings.decoder].place)(settings, seed, facts)
    return decoder


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)
