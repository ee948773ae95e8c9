"""nll: nats per token of texts, cut into sequences; a bound for diffusion models, exact for left-to-right ones.

Both score the same tokens of the same sequences, all but the `context` first, so the two numbers can be compared. With
half a sequence as context the exact number is what llama.cpp's perplexity tool measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..canvas import Int32
from ..errors import OptionError
from ..quantize.gathering import canvases
from .metrics import mean_and_error
from .protocol import Protocol, Record, Row
from .scorer import Passage, Tick

LENGTH = 512  # of a sequence, where the canvas is that long


class Likelihood(Protocol):
    def _items(self) -> Iterator[Int32]:
        setting = self.setting
        context, limit = setting.options.context, setting.subject.model.canvas_limit
        length = setting.options.length or min(LENGTH, limit)
        if not length <= limit:
            raise OptionError(f"--length is {length}, but the canvas of the model holds {limit} tokens")
        least = setting.scorer(lambda done, total: None).first
        if not least <= context < length:
            raise OptionError(
                f"--context is {context}, expected {least} to {length - 1}: the model predicts nothing before token "
                f"{least}, and something must be left to score"
            )
        return canvases(setting.data, setting.tokenizer, length)

    def measure(self, first: int, items: Sequence[Int32], tick: Tick) -> list[Record]:
        options = self.setting.options
        passages = [Passage(tokens, options.context, first + place) for place, tokens in enumerate(items)]
        found = self.setting.scorer(tick).likelihoods(passages, options.estimator_draws, options.seed)
        return [{"nats": each.nats, "tokens": each.tokens, "noise_error": each.error} for each in found]

    def summary(self, records: Sequence[Record]) -> list[Row]:
        tokens = sum(record["tokens"] for record in records)
        mean = sum(record["nats"] for record in records) / tokens
        _, error = mean_and_error([record["nats"] / record["tokens"] for record in records])
        if len(records) == 1:
            error = records[0]["noise_error"] / tokens
        return [
            {
                "likelihood": "exact" if self.setting.subject.exact else "bound",
                "nats_per_token": mean,
                "error": error,
                "perplexity": math.exp(min(mean, 700.0)),
                "sequences": len(records),
                "tokens": tokens,
            }
        ]
