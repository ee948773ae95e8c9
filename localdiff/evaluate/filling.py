"""Filling a hole of known length: a sentence of a story, the last word of a passage, a line of code.

The model is told how many tokens were there (the oracle length of arXiv:2410.17891). A left-to-right model is given
what stands before the hole only, as the paper's autoregressive baselines are. Items that do not fit the canvas are
skipped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..canvas import Hole
from ..options import GenerateOptions
from .execution import run_program
from .metrics import METRICS, mean_and_error
from .protocol import Asked, Protocol, Record, Row
from .reading import Blank
from .scorer import Tick

PASSED = "passed"  # the one metric that needs the code to be run


class Filling(Protocol):
    def measure(self, first: int, items: Sequence[Blank], tick: Tick) -> list[Record]:
        asked = [self._asked(item, first + place) for place, item in enumerate(items)]
        limit = self.setting.subject.model.canvas_limit
        fits = [1 < each[2] <= limit for each in asked]
        made = iter(self.generate([each for each, fit in zip(asked, fits, strict=True) if fit], tick))
        records = []
        for item, (_, _, length), fit in zip(items, asked, fits, strict=True):
            if fit:
                records.append(self._record(item, next(made).holes[0]))
            else:
                records.append({"skipped": f"{length} tokens, the canvas holds {limit}", **_named(item)})
        return records

    def _asked(self, item: Blank, index: int) -> Asked:
        after = "" if self.setting.subject.exact else item.after
        tokenizer = self.setting.tokenizer
        hole = len(tokenizer.encode_parts(["", item.target], add_bos=False))
        around = len(tokenizer.encode(item.before)) + len(tokenizer.encode(after, add_bos=False))
        parts = [part for part in (item.before, Hole(max(1, hole)), after) if part != ""]
        return parts, self.setting.seeded(self._options(hole), index), around + hole + 1  # a first token may be added

    def _options(self, hole: int) -> GenerateOptions:
        options, task = self.setting.generation, self.setting.task
        published = options.decoder == task.settings.get("decoder")
        return replace(options, steps=max(1, hole)) if task.word_steps and published and not options.steps else options

    def _record(self, item: Blank, made: str) -> Record:
        record: Record = {**_named(item), "target": item.target, "completion": made}
        for name in self.setting.task.metrics:
            if name != PASSED:
                record[name] = METRICS[name](made, item.target)
            elif self.setting.options.execute_code:
                known = item.known
                program = f"{item.before}{made}{item.after}\n{known['test']}\ncheck({known['entry_point']})\n"
                record["result"] = run_program(program)
                record[PASSED] = float(record["result"] == PASSED)
        return record

    def summary(self, records: Sequence[Record]) -> list[Row]:
        row: Row = {}
        for name in self.setting.task.metrics:
            if name in records[0]:
                row[name], error = mean_and_error([record[name] for record in records])
                row.setdefault("error", error)
        return [{**row, "items": len(records)}]


def _named(item: Blank) -> dict[str, Any]:
    return {"task_id": item.known["task_id"]} if "task_id" in item.known else {}
