"""Texts from nothing: what another model thinks of them, and how varied they are, against the number of denoise steps.

Generative perplexity is exp of the judge's nats per token of the texts, tokenised anew by the judge (arXiv:2410.17891,
figure 3); it is low for dull texts too, which the entropy of the tokens within a text shows. A left-to-right model
takes one pass for each token, so it has one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import OptionError
from ..generation import Generation
from .metrics import mean_and_error, token_entropy
from .protocol import Asked, Protocol, Record, Row
from .scorer import Passage, Scorer, Tick
from .subject import Subject, open_subject

TEXT_TOKENS = 256


@dataclass(frozen=True)
class Draft:
    """A text to be written: with how many steps (None: one for each token), and the how-manieth of them."""

    steps: int | None
    sample: int


class Writing(Protocol):
    def _items(self) -> Iterator[Draft]:
        options = self.setting.options
        _ = self._judge  # a wrong file is told of before anything is written
        for steps in (None,) if self.setting.subject.exact else options.steps_list:
            for sample in range(options.texts):
                yield Draft(steps, sample)

    def measure(self, first: int, items: Sequence[Draft], tick: Tick) -> list[Record]:
        made = self.generate([self._asked(item) for item in items], tick)
        judged = self._judged([each.text for each in made])
        return [
            {**_record(item, each), **verdict} for item, each, verdict in zip(items, made, judged, strict=True)
        ]

    def summary(self, records: Sequence[Record]) -> list[Row]:
        rows = []
        for steps in dict.fromkeys(record["steps"] for record in records):
            group = [record for record in records if record["steps"] == steps]
            row: Row = {
                "steps": "one per token" if steps is None else steps,
                "passes": mean_and_error([record["nfe"] for record in group])[0],
                "tokens": mean_and_error([len(record["tokens"]) for record in group])[0],
                "entropy": mean_and_error([record["entropy"] for record in group])[0],
            }
            scored = [record for record in group if record.get("judge_tokens")]
            if scored:
                nats = sum(r["judge_nats"] for r in scored) / sum(r["judge_tokens"] for r in scored)
                row["judge_nats_per_token"] = nats
                row["error"] = mean_and_error([r["judge_nats"] / r["judge_tokens"] for r in scored])[1]
                row["perplexity"] = math.exp(min(nats, 700.0))
            rows.append({**row, "texts": len(group)})
        return rows

    def _asked(self, item: Draft) -> Asked:
        room = self.setting.subject.model.canvas_limit - 1
        options = self.setting.generation
        count = options.max_new_tokens or min(TEXT_TOKENS, room)
        steps = options.steps if item.steps is None else item.steps
        options = self.setting.seeded(replace(options, steps=steps, max_new_tokens=count), item.sample)
        return "", options, count + 1

    @cached_property
    def _judge(self) -> Subject | None:
        options = self.setting.options
        if not options.judge:
            return None
        judge = self.setting.stack.enter_context(open_subject(options.judge))
        if not judge.exact:
            raise OptionError(f"--judge {options.judge} is a diffusion model, expected an autoregressive GGUF file")
        return judge

    def _judged(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        if self._judge is None:
            return [{} for _ in texts]
        model = self._judge.model
        start = self._judge.opening("")
        tokens = [start + model.tokenizer.encode(text, add_bos=False)[: model.canvas_limit - 1] for text in texts]
        asked = [Passage(np.array(each, np.int32), 1, 0) for each in tokens if len(each) > 1]
        found = iter(Scorer(self._judge).likelihoods(asked, 1, 0) if asked else [])
        verdicts = []
        for each in tokens:
            estimate = next(found) if len(each) > 1 else None
            verdicts.append(
                {"judge_nats": estimate.nats if estimate else 0.0, "judge_tokens": estimate.tokens if estimate else 0}
            )
        return verdicts


def _record(item: Draft, made: Generation) -> Record:
    return {
        "steps": item.steps,
        "sample": item.sample,
        "nfe": made.nfe,
        "tokens": made.tokens,
        "text": made.text,
        "entropy": token_entropy(made.tokens) if made.tokens else 0.0,
    }
