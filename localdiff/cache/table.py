"""The one table of caches: what they are, which attention and which decoders they go with, their parameters.

A combination that is not there is refused with its reason. Without a choice of the caller, models whose attention
allows it get the cache that changes nothing, the others none. The code of a policy is imported when one is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..decode.table import Settings
    from ..options import GenerateOptions
    from .state import CachePolicy

PARAMETERS = ("cache_window", "cache_refresh")


@dataclass(frozen=True)
class CacheRow:
    """attention: the kinds it goes with; needs: what the decoder must do, keys of _NEEDS; defaults: its parameters."""

    place: str  # module:class
    source: str
    attention: tuple[str, ...]
    needs: tuple[str, ...]
    defaults: Mapping[str, int]


_EVERY = ("full", "causal", "block_causal", "prefix_causal")
_STOPS = ("block_causal", "prefix_causal")  # some states do not depend on the answer
_BOTH_WAYS = ("full", "prefix_causal")  # some states depend on everything, so keeping them is an approximation

CACHES: dict[str, CacheRow] = {
    "exact": CacheRow("exact:Exact", "no cache", _EVERY, (), {}),
    "block": CacheRow("block:Block", "SDAR, arXiv:2510.06303", _STOPS, ("order",), {}),
    "prefix": CacheRow("around:Prefix", "Fast-dLLM, arXiv:2505.22618", _BOTH_WAYS, ("places", "blocks"), {}),
    "dual": CacheRow("around:Vicinity", "Fast-dLLM, arXiv:2505.22618", _BOTH_WAYS, ("places", "blocks"), {}),
    "vicinity": CacheRow(
        "around:Vicinity", "dInfer, arXiv:2510.08666", _BOTH_WAYS, ("places", "blocks"), {"cache_window": 16}
    ),
    "dkv": CacheRow(
        "delayed:Delayed", "dKV-Cache, arXiv:2505.15781", _BOTH_WAYS, ("places", "masked"), {"cache_refresh": 8}
    ),
    "dllm": CacheRow(
        "drifting:Drifting",
        "dLLM-Cache, arXiv:2506.06295",
        _BOTH_WAYS,
        ("places", "masked"),
        {"cache_window": 32, "cache_refresh": 8},
    ),
    "active": CacheRow(
        "active:Active",
        "own",
        _BOTH_WAYS,
        ("places", "masked", "confidence", "fresh"),
        {"cache_window": 16, "cache_refresh": 8},
    ),
}

Lacks = Callable[[str, frozenset[str], Mapping[str, Any]], bool]  # decoder, its traits (DecoderRow), its settings

# what a cache needs of the decoder -> (whether it is missing, why that matters)
_NEEDS: dict[str, tuple[Lacks, str]] = {
    "order": (
        lambda decoder, traits, takes: "reorders" in traits,
        "reads the tokens in another order at every step, so that nothing kept at a place stays right",
    ),
    "places": (
        lambda decoder, traits, takes: bool(traits & {"reorders", "resizes"}),
        "moves tokens to other places, so that nothing kept at a place stays right",
    ),
    "blocks": (
        lambda decoder, traits, takes: "blocks" not in traits,
        "denoises no block at a time, so there is no block whose surroundings could be kept",
    ),
    "masked": (
        lambda decoder, traits, takes: decoder == "topk" or "rewrites" in traits,
        "looks at written positions again, so every row would be computed all the same",
    ),
    "confidence": (
        lambda decoder, traits, takes: decoder in ("random-keep", "mdlm") or takes.get("order") == "random",
        "writes positions whatever their confidence, so none is likelier to be next",
    ),
    "fresh": (
        lambda decoder, traits, takes: decoder in ("klass", "credit", "slowfast"),
        "compares the proposals of one pass with those of the next, and kept ones would look sure and steady",
    ),
}
_WHY_NOT = {
    "block": "every state depends on the whole text there, so nothing could be kept exactly",
    "": "the cache block keeps whatever can be kept there and changes no token",
}


def cache_settings(
    options: GenerateOptions, attention: str, decoder: str, traits: frozenset[str], takes: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of Settings about the cache; OptionError for a combination that is not in the table.

    traits, takes   of the decoder: see DecoderRow; its settings
    """
    name = options.cache or ("block" if attention in _STOPS and "reorders" not in traits else "exact")
    row = CACHES[name]
    if attention not in row.attention:
        raise OptionError(
            f"the cache {name} does not go with {attention} attention: {_WHY_NOT.get(name, _WHY_NOT[''])}; "
            f"use {' or '.join(other for other, each in CACHES.items() if attention in each.attention)}"
        )
    for need in row.needs:
        lacks, why = _NEEDS[need]
        if lacks(decoder, traits, takes):
            raise OptionError(f"the cache {name} does not go with the decoder {decoder}: it {why}")
    refused = [each for each in PARAMETERS if getattr(options, each) is not None and each not in row.defaults]
    if refused:
        raise OptionError(
            f"the cache {name} has no option {refused[0]}; it takes {', '.join(row.defaults) or 'no options'}"
        )
    if options.report_drift and "reorders" in traits:
        raise OptionError(f"the decoder {decoder} goes with the cache exact only, which has no drift to report")
    values = {each: getattr(options, each) for each in row.defaults if getattr(options, each) is not None}
    return {"cache": name, "report_drift": bool(options.report_drift), **row.defaults, **values}


def make_cache(settings: Settings) -> CachePolicy:
    module, _, name = CACHES[settings.cache].place.partition(":")
    policy: CachePolicy = getattr(importlib.import_module(f"{__package__}.{module}"), name)(settings)
    return policy
