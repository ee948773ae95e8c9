"""GenerateOptions: what a caller may ask of one generation.

The fields are the flags of the command line: the name with dashes, `short` where there is a one-letter flag, `help` as
shown. None means the model record's default, else the decoder's. A misspelt name is a TypeError, a value that cannot be
honoured an OptionError. Whether the chosen decoder takes an option is checked in decode/table.py. No numpy here, so
that help stays fast.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import wishes
from .cache.table import CACHES
from .decode.table import ALIASES, CONSTRAINTS, DECODERS, words
from .errors import OptionError
from .profiles import PRESETS, TUNED

MATH = ("auto", "exact", "fast")  # of loading, see arithmetic.py


def _option(
    help: str,
    *,
    default: Any = None,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    range: tuple[float, float] | None = None,
    form: Callable[[str, object], Any] | None = None,
    many: str | None = None,
    file: bool = False,
) -> Any:
    """form: makes the one form that is kept of what was given; many: what is shown for a flag that may be repeated;
    file: the flag takes the name of a file."""
    metadata = {"help": help, "short": short, "choices": choices, "range": range, "form": form, "many": many}
    return dataclasses.field(default=default, metadata={**metadata, "file": file})


@dataclass(frozen=True)
class GenerateOptions:
    """The options of generate, stream and infill."""

    max_new_tokens: int | None = _option(
        "tokens to make at most (default 64, or less where the canvas ends)", short="n", range=(1, math.inf)
    )
    grow: int | None = _option(
        "masks at a time: the text gets as many more until it ends or has max_new_tokens (default: all at once)",
        range=(1, 2**31 - 1),
    )
    steps: int | None = _option("denoise steps, a forward pass each; with grow, of each stretch", range=(1, 2**31 - 1))
    preset: str | None = _option(
        f"speed against quality; {'; '.join(f'{name}: {row.cost}' for name, row in PRESETS.items())}; {TUNED}: what "
        "localdiff tune found; other options win",
        choices=(*PRESETS, TUNED),
    )
    decoder: str | None = _option("what is committed at each step", choices=tuple(DECODERS))
    threshold: float | None = _option("commit every token at least this probable", range=(0, 1))
    block_length: int | None = _option("positions denoised before the next ones begin", range=(1, math.inf))
    order: str | None = _option(
        "what is committed first, by decoder", choices=tuple(dict.fromkeys((*words("order"), *ALIASES)))
    )
    order_temperature: float | None = _option("randomness of the order, 0 = none", range=(0, 1e6))
    factor: float | None = _option("how unsure tokens committed together may be (factor)", range=(0, 1e6))
    schedule: str | None = _option("how the number of masks falls (rdm)", choices=words("schedule"))
    remask: str | None = _option("which tokens are masked again (rdm, remdm)", choices=words("remask"))
    remask_rate: float | None = _option("how many tokens are masked again (remdm)", range=(0, 1))
    length_beam: int | None = _option(
        "lengths to try side by side; the surest text is kept (rdm; of a prompt by a length head)", range=(1, 64)
    )
    steps_per_block: int | None = _option("denoise steps of a block at most (sdar)", range=(1, math.inf))
    edit_threshold: float | None = _option("replace a token by one at least this probable (llada2.1)", range=(0, 1))
    edit_steps: int | None = _option("passes over a full block to edit it (llada2.1)", range=(0, math.inf))
    entropy_bound: float | None = _option("joint entropy of tokens committed together, in nats", range=(0, math.inf))
    end_temperature: float | None = _option("temperature of the last step (entropy-bound)", range=(0, 1e6))
    distance_penalty: float | None = _option("entropy added per position ahead (wedlm)", range=(0, 1e6))
    expansions: int | None = _option("how often the text may grow (dreamon, daedal)", range=(0, 2**31 - 1))
    divergence: float | None = _option("commit where a distribution moved less, in nats (klass)", range=(0, math.inf))
    relaxed_threshold: float | None = _option("second, lower threshold", range=(0, 1))
    radius: int | None = _option("how far a sure token reaches (localleap)", range=(0, 2**31 - 1))
    delimiter_threshold: float | None = _option("end a block at a line end this probable (adablock)", range=(0, 1))
    position_decay: float | None = _option("how strongly the left comes first (pc-sampler)", range=(0, 1e6))
    end_token: str | None = _option("when the text may end: any time, last, never (llada)", choices=words("end_token"))
    temperature: float | None = _option("randomness of the tokens, 0 = the likeliest", range=(0, 1e6))
    top_k: int | None = _option("draw from the k likeliest tokens only, 0 = off", range=(0, 2**31 - 1))
    top_p: float | None = _option("draw from the likeliest tokens of this total probability, 1 = all", range=(1e-6, 1))
    seed: int | None = _option("same seed, same text (default: a new one each time)", range=(0, 2**64 - 1))
    cache: str | None = _option(
        "which rows are recomputed (default: all, or with block-causal attention those that can have changed)",
        choices=tuple(CACHES),
    )
    cache_window: int | None = _option(
        "positions that are besides: around the block, the surest or the most changed", range=(1, math.inf)
    )
    cache_refresh: int | None = _option("steps until all rows are, 0 = never", range=(0, 2**31 - 1))
    report_drift: bool | None = _option("compute everything exactly too and say how far the cache is off")
    samples: int | None = _option("texts for each prompt, with the seeds seed, seed + 1, ...", range=(1, 1024))
    stop: tuple[str, ...] | None = _option(
        "end the text before this text; may be repeated", form=wishes.strings, many="TEXT"
    )
    logit_bias: Mapping[str | int, float] | None = _option(
        "added to the logit of a token, by text or id; -inf bans it", form=wishes.biases, many="TOKEN=NUMBER"
    )
    ban: tuple[str | int, ...] | None = _option(
        "a token that is never written, with its space: ' cat'", form=wishes.tokens, many="TEXT"
    )
    only: tuple[str | int, ...] | None = _option(
        "a token that may be written; no others are", form=wishes.tokens, many="TEXT"
    )
    repetition_penalty: float | None = _option(
        "make tokens that are in the text, prompt included, less likely, 1 = off", range=(0.01, 100)
    )
    guidance: float | None = _option("follow the prompt more closely, 0 = off (two canvases a step)", range=(0, 100))
    negative_prompt: str | tuple[int, ...] | None = _option(
        "what guidance leads away from (default: no prompt)", form=wishes.prompt
    )
    alternatives: int | None = _option("report as many of the likeliest tokens for each token", range=(0, 64))
    deadline: float | None = _option("seconds until the text is full, as good as they allow", range=(0, 1e9))
    json_schema: Mapping[str, Any] | bool | Path | None = _option(
        "write JSON that matches the schema in this file", form=wishes.json_schema, file=True
    )
    json_object: bool | None = _option("write one JSON object")
    regex: str | None = _option("write a text that matches as a whole", form=wishes.text)
    grammar: str | Path | None = _option(
        "write a text of the Lark grammar in this file", form=wishes.grammar, file=True
    )

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


def check_value(field: dataclasses.Field[Any], value: object) -> None:
    """Raise OptionError unless a value is what the metadata of its field ask for."""
    choices, bounds = field.metadata["choices"], field.metadata["range"]
    if choices is not None:
        if value not in choices:
            raise OptionError(f"{field.name} is {value!r}, expected one of {', '.join(choices)}")
        return
    if str(field.type).startswith("bool"):
        if not isinstance(value, bool):
            raise OptionError(f"{field.name} is {value!r}, expected True or False")
        return
    whole = str(field.type).startswith("int")
    kind: type = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise OptionError(f"{field.name} is {value!r}, expected a {'whole number' if whole else 'number'}")
    low, high = bounds
    if not low <= value <= high:
        expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise OptionError(f"{field.name} is {value}, expected {expected}")


def merge(options: GenerateOptions | None, named: dict[str, Any]) -> GenerateOptions:
    """`options` with the values of `named` in place of its own; TypeError for a name that is no option."""
    return dataclasses.replace(options or GenerateOptions(), **named)
