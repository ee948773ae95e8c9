"""GSM8K: a solution is written, and its number compared with the right one.

The question is put as the model was trained: before the record's separator token, as a message of its chat template, or
as "Question: ... Answer:", after as many solved problems as asked for. Number: after ####, else the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from ..errors import OptionError
from . import reading
from .metrics import final_number, mean_and_error, same_number
from .protocol import Asked, Protocol, Record, Row
from .reading import Problem
from .scorer import Tick

ANSWER_TOKENS = 256


class Answering(Protocol):
    def _items(self) -> Iterator[Problem]:
        _ = self._shots  # a wrong file is told of before the model is asked anything
        return super()._items()

    def measure(self, first: int, items: Sequence[Problem], tick: Tick) -> list[Record]:
        asked = [self._asked(item, first + place) for place, item in enumerate(items)]
        made = iter(self.generate([each for each in asked if each is not None], tick))
        records: list[Record] = []
        for item, each in zip(items, asked, strict=True):
            if each is None:
                records.append({"skipped": "the question leaves no room for an answer on the canvas"})
                continue
            text = next(made).text
            found = final_number(text)
            correct = float(same_number(found, item.answer))
            records.append({"text": text, "found": found, "answer": item.answer, "correct": correct})
        return records

    def summary(self, records: Sequence[Record]) -> list[Row]:
        correct, error = mean_and_error([record["correct"] for record in records])
        return [{"correct": correct, "error": error, "items": len(records)}]

    @cached_property
    def _shots(self) -> str:
        count = self.setting.options.shots
        if not count:
            return ""
        solved = list(islice(reading.problems(Path(self.setting.options.shots_data)), count))
        if len(solved) < count:
            raise OptionError(f"--shots is {count}, but {self.setting.options.shots_data} has {len(solved)} problems")
        return "".join(f"{_question(each)} {each.solution}\n\n" for each in solved)

    def _asked(self, item: Problem, index: int) -> Asked | None:
        model, tokenizer, spec = self.setting.subject.model, self.setting.tokenizer, self.setting.subject.spec
        if self._shots or (spec.sep_token is None and model.chat_template is None):
            given = self.setting.subject.opening(self._shots + _question(item))
        elif spec.sep_token is not None:
            given = [*tokenizer.encode(item.question), spec.sep_token]
        else:
            given = model.chat_tokens([{"role": "user", "content": item.question}])
        options, room = self.setting.generation, model.canvas_limit - len(given)
        count = options.max_new_tokens or min(ANSWER_TOKENS, room)
        if not 1 <= count <= room:
            return None
        return given, self.setting.seeded(replace(options, max_new_tokens=count), index), len(given) + count


def _question(item: Problem) -> str:
    return f"Question: {item.question}\nAnswer:"
