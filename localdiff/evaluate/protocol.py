"""What the five ways of measuring share: how they are given a model and asked for items, records and a table.

A protocol's records are JSON objects, one for each item, in order; what is measured of an item depends on the item, its
number and the settings alone, so that a run can be interrupted and its parts put together. A record with "skipped" says
why its item was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..canvas import Hole
from ..errors import OptionError
from ..generation import Generation
from ..model import Model
from ..options import GenerateOptions
from ..page import Page
from ..quantize.gathering import in_turn
from ..text import Tokenizer
from . import reading
from .scorer import ROWS, Scorer, Tick
from .subject import Subject
from .tasks import Task

Record = dict[str, Any]
Row = dict[str, Any]  # of the table: name of the column -> text or number
Asked = tuple[Any, GenerateOptions, int]  # a prompt or parts, its options, the positions of its canvas


@dataclass(frozen=True)
class Setting:
    """stack holds what a protocol opens, until the run is over."""

    subject: Subject
    options: Any  # EvalOptions
    asked: GenerateOptions
    task: Task
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.subject.model.tokenizer

    @property
    def data(self) -> list[Path]:
        return [Path(each) for each in self.options.data]

    @property
    def generation(self) -> GenerateOptions:
        """The settings of generating: the caller's, then the task's."""
        return self.subject.options(self.asked, self.task)

    def seeded(self, options: GenerateOptions, index: int) -> GenerateOptions:
        """The options of item `index`, whose random numbers are its own."""
        return replace(options, seed=(self.options.seed + index) % 2**64)

    def scorer(self, tick: Tick) -> Scorer:
        return Scorer(self.subject, tick)


class Protocol:
    """One way of measuring."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def items(self) -> list[Any]:
        """All items, as many as the limit allows."""
        found = list(islice(self._items(), self.setting.options.limit))
        if not found:
            raise OptionError(f"--data: nothing to measure was found for {self.setting.options.task}")
        return found

    def _items(self) -> Iterator[Any]:
        read: Callable[[Path], Iterator[Any]] = getattr(reading, self.setting.task.reader)
        return in_turn([read(path) for path in self.setting.data])

    def measure(self, first: int, items: Sequence[Any], tick: Tick) -> list[Record]:
        """The records of some items, the first of which has the number `first`. tick: parts done, parts in all."""
        raise NotImplementedError

    def summary(self, records: Sequence[Record]) -> list[Row]:
        """The table of the records that were not skipped, at least one."""
        raise NotImplementedError

    def generate(self, asked: Sequence[Asked], tick: Tick) -> list[Generation]:
        return batched(self.setting.subject.model, asked, tick)


def batched(model: Model, asked: Sequence[Asked], tick: Tick | None = None) -> list[Generation]:
    """Generate all that is asked, in batches of as many canvases as a session is made for."""
    found: list[Generation] = []
    while len(found) < len(asked):
        rest = asked[len(found) :]
        count = max(1, ROWS // max(length for _, _, length in rest))
        found += model.finish([_page(model, prompt, options) for prompt, options, _ in rest[:count]])
        if tick is not None:
            tick(len(found), len(asked))
    return found


def _page(model: Model, prompt: Any, options: GenerateOptions) -> Page:
    holes = not isinstance(prompt, str) and any(isinstance(part, Hole) for part in prompt)
    pages = model.compose_infill(prompt, options, model.propose) if holes else model.compose(prompt, options)
    (page,) = pages
    return page
