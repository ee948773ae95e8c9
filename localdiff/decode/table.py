"""The one table of decoders and caches: names, sources, defaults, options; and how the settings in force are found.

A value comes from the caller, else from the model record, else from the decoder's row. The record's steps, temperature,
top_p and threshold were chosen with its own decoder, so they count only where that one is used (or none is named). An
option that the decoder does not know is refused. The decoders' code is imported when one is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..spec import DiffusionSpec

if TYPE_CHECKING:
    from ..options import GenerateOptions
    from .cache import CachePolicy
    from .decoder import Decoder


@dataclass(frozen=True)
class DecoderRow:
    """source: where the algorithm comes from; defaults: its settings, `steps` None = one token per step."""

    place: str  # module:class
    source: str
    defaults: Mapping[str, Any]


DECODERS: dict[str, DecoderRow] = {
    "random-keep": DecoderRow(
        "random_keep:RandomKeep",
        "DiffuGPT sampler A, arXiv:2410.17891",
        {"steps": 64, "temperature": 0.95, "top_p": 0.9},
    ),
    "topk": DecoderRow("topk:TopK", "DiffuGPT sampler B, arXiv:2410.17891", {"steps": 64, "temperature": 0.9}),
    "llada": DecoderRow(
        "llada:Llada", "LLaDA, arXiv:2502.09992", {"steps": None, "block_length": 32, "order": "confidence"}
    ),
    "threshold": DecoderRow(
        "threshold:Threshold", "Fast-dLLM, arXiv:2505.22618", {"threshold": 0.9, "block_length": 32}
    ),
}
DEFAULT_DECODER = "random-keep"
ORDERS = ("confidence", "random")
CACHES = {"exact": "cache:Exact"}

_SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}  # every decoder takes these
_OWN = ("steps", "threshold", "block_length", "order")  # only where the row has them
_OF_RECORD = ("steps", "threshold", "temperature", "top_p")


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
    steps: int | None = None
    threshold: float | None = None
    block_length: int | None = None
    order: str | None = None
    aligned: bool = False

    def shown(self) -> dict[str, Any]:
        """The settings for people, without those that the decoder has not."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "aligned"}


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
    return Settings(decoder=name, cache=options.cache, aligned=spec.attention == "block_causal", **values)


def make_decoder(settings: Settings, seed: int) -> Decoder:
    decoder: Decoder = _load(DECODERS[settings.decoder].place)(settings, seed)
    return decoder


def make_cache(settings: Settings) -> CachePolicy:
    policy: CachePolicy = _load(CACHES[settings.cache])()
    return policy


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)
