"""GenerateOptions: what a caller may ask of one generation.

The fields are the flags of the command line, the name with dashes; see fields.py. None means the model record's
default, else the decoder's. A misspelt name is a TypeError, a value that cannot be honoured an OptionError. Whether
the chosen decoder takes an option is checked in decode/table.py. No numpy here, so that help stays fast.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import wishes
from .cache.table import CACHES
from .decode.table import ALIASES, CONSTRAINTS, DECODERS, words
from .errors import OptionError
from .fields import ONE_UP, ZERO_UP, check_value, option
from .profiles import PRESETS, TUNED

MATH = ("auto", "exact", "fast")  # of loading, see arithmetic.py
_OF_A_TEXT = (
    "max_new_tokens", "grow", "temperature", "top_k", "top_p", "seed", "samples", "stop", "repetition_penalty",
    "logit_bias", "ban", "avoid", "only", "guidance", "negative_prompt", "alternatives",
)  # fmt: skip
_OF_A_CACHE = ("cache", "cache_window", "cache_refresh", "report_drift")
_OF_DECODING = ("preset", "steps", "deadline", "decoder", "threshold", "block_length")


@dataclass(frozen=True)
class GenerateOptions:
    """The options of generate, stream and infill."""

    max_new_tokens: int | None = option(
        "tokens to make at most (default 64, or less where the canvas ends)", short="n", range=(1, math.inf)
    )
    grow: int | None = option(
        "masks at a time: the text gets as many more until it ends or has max_new_tokens (default: all at once)",
        range=ONE_UP,
    )
    steps: int | None = option("denoise steps, a forward pass each; with grow, of each stretch", range=ONE_UP)
    preset: str | None = option(
        f"speed against quality; {'; '.join(f'{name}: {row.cost}' for name, row in PRESETS.items())}; {TUNED}: what "
        "localdiff tune found; other options win",
        choices=(*PRESETS, TUNED),
    )
    decoder: str | None = option("what is committed at each step", choices=tuple(DECODERS))
    threshold: float | None = option("commit every token at least this probable", range=(0, 1))
    block_length: int | None = option("positions denoised before the next ones begin", range=(1, math.inf))
    order: str | None = option(
        "what is committed first (llada, dream, sdar, dreamon, eb-sampler, prophet)",
        choices=tuple(dict.fromkeys((*words("order"), *ALIASES))),
    )
    order_temperature: float | None = option("randomness of the order, 0 = none (rdm, dream)", range=(0, 1e6))
    factor: float | None = option("how unsure tokens committed together may be (factor)", range=(0, 1e6))
    schedule: str | None = option("how the number of masks falls (rdm)", choices=words("schedule"))
    remask: str | None = option("which tokens are masked again (rdm, remdm)", choices=words("remask"))
    remask_rate: float | None = option("how many tokens are masked again (remdm)", range=(0, 1))
    length_beam: int | None = option(
        "lengths to try side by side; the surest text is kept (rdm; of a prompt by a length head)", range=(1, 64)
    )
    steps_per_block: int | None = option("denoise steps of a block at most (sdar)", range=(1, math.inf))
    edit_threshold: float | None = option("replace a token by one at least this probable (llada2.1)", range=(0, 1))
    edit_steps: int | None = option("passes over a full block to edit it (llada2.1)", range=(0, math.inf))
    entropy_bound: float | None = option(
        "joint entropy of tokens committed together, in nats (entropy-bound, sdar, rnd1, wedlm, eb-sampler)",
        range=(0, math.inf),
    )
    end_temperature: float | None = option("temperature of the last step (entropy-bound)", range=(0, 1e6))
    distance_penalty: float | None = option("entropy added per position ahead (wedlm)", range=(0, 1e6))
    expansions: int | None = option("how often the text may grow (dreamon, daedal)", range=ZERO_UP)
    divergence: float | None = option("commit where a distribution moved less, in nats (klass)", range=(0, math.inf))
    relaxed_threshold: float | None = option(
        "second, lower threshold (localleap, hierarchical, daedal, slowfast)", range=(0, 1)
    )
    verify_threshold: float | None = option("mask tokens again that are less probable unseen (wino)", range=(0, 1))
    radius: int | None = option("how far a sure token reaches (localleap)", range=ZERO_UP)
    delimiter_threshold: float | None = option("end a block at a line end this probable (adablock)", range=(0, 1))
    position_decay: float | None = option("how strongly the left comes first (pc-sampler)", range=(0, 1e6))
    pace: float | None = option("tokens of a block written at a step, on average (spread)", range=(1, 1e6))
    end_token: str | None = option(
        "when the text may end: any time, last, never (llada, prophet)", choices=words("end_token")
    )
    temperature: float | None = option("randomness of the tokens, 0 = the likeliest", range=(0, 1e6))
    top_k: int | None = option("draw from the k likeliest tokens only, 0 = off", range=ZERO_UP)
    top_p: float | None = option("draw from the likeliest tokens of this total probability, 1 = all", range=(1e-6, 1))
    seed: int | None = option("same seed, same text (default: a new one each time)", range=(0, 2**64 - 1))
    cache: str | None = option(
        "which rows are recomputed (default: all, or with block-causal attention those that can have changed)",
        choices=tuple(CACHES),
    )
    cache_window: int | None = option(
        "positions recomputed besides: around the block, the surest or the most changed, as the cache has it",
        range=(1, math.inf),
    )
    cache_refresh: int | None = option("steps until all rows are recomputed, 0 = never", range=ZERO_UP)
    report_drift: bool | None = option("compute everything exactly too and say how far the cache is off")
    samples: int | None = option("texts for each prompt, with the seeds seed, seed + 1, ...", range=(1, 1024))
    stop: tuple[str, ...] | None = option(
        "end the text before this text; may be repeated", form=wishes.strings, many="TEXT"
    )
    logit_bias: Mapping[str | int, float] | None = option(
        "added to the logit of a token, by text or id; -inf bans it", form=wishes.biases, many="TOKEN=NUMBER"
    )
    ban: tuple[str | int, ...] | None = option(
        "a token that is never written, with its space: ' cat'", form=wishes.tokens, many="TEXT"
    )
    avoid: tuple[str, ...] | None = option(
        "a text that is never written, however many tokens it has", form=wishes.strings, many="TEXT"
    )
    only: tuple[str | int, ...] | None = option(
        "a token that may be written; no others are", form=wishes.tokens, many="TEXT"
    )
    repetition_penalty: float | None = option(
        "make tokens that are in the text, prompt included, less likely, 1 = off", range=(0.01, 100)
    )
    guidance: float | None = option("follow the prompt more closely, 0 = off (two canvases a step)", range=(0, 100))
    negative_prompt: str | tuple[int, ...] | None = option(
        "what guidance leads away from (default: no prompt)", form=wishes.prompt
    )
    alternatives: int | None = option("report as many of the likeliest tokens for each token", range=(0, 64))
    deadline: float | None = option("seconds until the text is full, as good as they allow", range=(0, 1e9))
    json_schema: Mapping[str, Any] | bool | Path | None = option(
        "write JSON that matches the schema in this file", form=wishes.json_schema, file=True
    )
    json_object: bool | None = option("write one JSON object")
    regex: str | None = option("write a text that matches as a whole", form=wishes.text)
    grammar: str | Path | None = option("write a text of the Lark grammar in this file", form=wishes.grammar, file=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            form = field.metadata["form"]
            if form is not None and value is not None:
                object.__setattr__(self, field.name, form(field.name, value))
            elif value is not None or field.default is not None:
                check_value(field, value)
        asked = [name for name in CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(asked) > 1:
            raise OptionError(f"{asked[0]} and {asked[1]} exclude each other; give one of them")

    @classmethod
    def groups(cls) -> dict[str, tuple[str, ...]]:
        """The fields under the headings that help has for them."""
        known = {*_OF_A_TEXT, *CONSTRAINTS, *_OF_DECODING, *_OF_A_CACHE}
        others = tuple(field.name for field in dataclasses.fields(cls) if field.name not in known)
        return {
            "Text": _OF_A_TEXT,
            "Form of the text": CONSTRAINTS,
            "Decoding": _OF_DECODING,
            "Decoding, for single decoders": others,
            "Cache": _OF_A_CACHE,
        }


def merge(options: GenerateOptions | None, named: dict[str, Any]) -> GenerateOptions:
    """`options` with the values of `named` in place of its own; TypeError for a name that is no option."""
    return dataclasses.replace(options or GenerateOptions(), **named)
