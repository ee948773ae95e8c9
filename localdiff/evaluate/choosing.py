"""Multiple choice: the ending that the model finds likeliest after the context, per token.

Diffusion models score endings as arXiv:2410.17891 does (noise.at_rates), or by the bound; models in blocks by the
bound; left-to-right models exactly. A context that is too long loses its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import mean_and_error
from .noise import Estimate
from .protocol import Protocol, Record, Row
from .reading import Choice
from .scorer import Passage, Scorer, Tick
from .subject import Subject
from .tasks import BOUND, PUBLISHED


class Choosing(Protocol):
    def measure(self, first: int, items: Sequence[Choice], tick: Tick) -> list[Record]:
        options, scorer = self.setting.options, self.setting.scorer(tick)
        passages = [
            passage_of(self.setting.subject, item.context, ending, first + place)
            for place, item in enumerate(items)
            for ending in item.endings
        ]
        asked = [each for each in passages if each is not None]
        found = iter(scorer.likelihoods(asked, options.estimator_draws, options.seed, self.estimator(scorer)))
        estimates = iter([None if each is None else next(found) for each in passages])
        return [self._record(item, [next(estimates) for _ in item.endings]) for item in items]

    def estimator(self, scorer: Scorer) -> str:
        if self.setting.options.estimator:
            return str(self.setting.options.estimator)
        return BOUND if scorer.in_blocks or self.setting.subject.exact else PUBLISHED

    def _record(self, item: Choice, estimates: Sequence[Estimate | None]) -> Record:
        found = [each for each in estimates if each is not None]
        if len(found) < len(estimates):
            return {"skipped": "an ending is empty or longer than the canvas", "label": item.label}
        return {
            "label": item.label,
            "chosen": int(np.argmin([each.nats / each.tokens for each in found])),
            "chosen_by_total": int(np.argmin([each.nats for each in found])),
            "nats": [each.nats for each in found],
            "tokens": [each.tokens for each in found],
        }

    def summary(self, records: Sequence[Record]) -> list[Row]:
        accuracy, error = mean_and_error([float(record["chosen"] == record["label"]) for record in records])
        by_total, _ = mean_and_error([float(record["chosen_by_total"] == record["label"]) for record in records])
        return [
            {"accuracy": accuracy, "error": error, "accuracy_by_total": by_total, "items": len(records)},
        ]


def passage_of(subject: Subject, context: str, ending: str, key: int) -> Passage | None:
    """The ending after its context; None where the ending is empty or does not fit the canvas."""
    tokenizer, room = subject.model.tokenizer, subject.model.canvas_limit
    scored = tokenizer.encode_parts(["", ending], add_bos=False)
    start = subject.opening(context)
    head = start[:1] if start[0] == tokenizer.bos else []
    if not scored or len(scored) + max(1, len(head)) > room:
        return None
    if len(start) + len(scored) > room:
        start = head + start[len(start) + len(head) + len(scored) - room :]
    return Passage(np.array(start + scored, np.int32), len(start), key)
