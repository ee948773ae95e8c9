"""EvalOptions: every setting of `localdiff eval` that is not about generating; one field per command line flag.

Checks that need no file live here. Imports nothing heavy: the command line reads the fields at start.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..fields import ONE_UP, ZERO_UP, check_value, flag_name, option
from .tasks import BOUND, PUBLISHED, TASKS

ESTIMATORS = (BOUND, PUBLISHED)
DEFAULT_STEPS = "4,8,16,32,64"
# Options of generating that an evaluation does not take: it has a seed of its own and one text for each item, whose
# every token counts, whatever the time.
NOT_OF_GENERATION = ("seed", "samples", "alternatives", "deadline", "report_drift")


_ONLY_FOR = {
    "shots": "gsm8k",
    "shots_data": "gsm8k",
    "execute_code": "humaneval-infill",
    "texts": "unconditional",
    "over_steps": "unconditional",
    "judge": "unconditional",
    "length": "nll",
    "context": "nll",
}


@dataclass(frozen=True)
class EvalOptions:
    """Settings of one evaluation."""

    task: str = option("what to measure; required", "", choices=tuple(TASKS))
    data: tuple[str, ...] = option(
        "the data set or texts: .txt or .jsonl, also .xz, .gz or .bz2; required but for unconditional", ()
    )
    output: str = option("write the result with every item here, as JSON", "", short="o")
    records: str = option("write every item's record on a line of its own here, such as samples for an evaluator", "")
    resume: bool = option("go on with the items that an interrupted run with this output left out", False)
    limit: int | None = option("items at most", None, range=ONE_UP)
    seed: int = option("of noise and generation; the same seed, the same result", 0, range=(0, 2**63 - 1))
    batch: int = option("items that are worked on together, and written down together", 16, range=ONE_UP)
    attention: str = option(
        "causal: a left-to-right model, exact likelihoods, given what stands before only", "", choices=("causal",)
    )
    draws: int | None = option("noise draws for each likelihood bound (default 8 for nll, else 32)", None, range=ONE_UP)
    estimator: str = option(
        "of multiple choice: the paper's mean over rates, or the bound (default published)", "", choices=ESTIMATORS
    )
    length: int | None = option("nll: tokens of a sequence (default 512, or the canvas)", None, range=(2, math.inf))
    context: int = option("nll: tokens at the start of each sequence that are given, not scored", 1, range=ZERO_UP)
    shots: int = option("gsm8k: solved problems before the question", 0, range=ZERO_UP)
    shots_data: str = option("gsm8k: the file they are taken from", "")
    execute_code: bool = option(
        "humaneval-infill: run the generated code, limited in time and memory but not confined", False
    )
    texts: int = option("unconditional: texts for each number of steps", 16, range=ONE_UP)
    over_steps: str = option("unconditional: numbers of denoise steps, joined by commas", DEFAULT_STEPS)
    judge: str = option("unconditional: autoregressive GGUF file that scores the texts", "")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                check_value(field, value)
        if not self.task:
            raise OptionError(f"--task is missing, expected one of {', '.join(TASKS)}")
        needs_data = self.task != "unconditional"
        if needs_data != bool(self.data):
            found, what = ("missing", "the file to measure on") if needs_data else ("given", "none for this task")
            raise OptionError(f"--data is {found}, expected {what}")
        if self.resume and not self.output:
            raise OptionError("--resume needs the --output of the run that was interrupted")
        for field in dataclasses.fields(self):
            task = _ONLY_FOR.get(field.name, self.task)
            if task != self.task and getattr(self, field.name) != field.default:
                raise OptionError(
                    f"{flag_name(field.name)} has no meaning for {self.task}, only for {task}; leave it out"
                )
        if bool(self.shots) != bool(self.shots_data):
            raise OptionError("--shots and --shots-data go together: how many solved problems, and where they are")
        if self.estimator and TASKS[self.task].place != TASKS["piqa"].place:
            raise OptionError(f"--estimator has no meaning for {self.task}, only for multiple choice; leave it out")
        if self.draws and not TASKS[self.task].draws:
            raise OptionError(f"--draws has no meaning for {self.task}, which looks at no likelihoods; leave it out")

    @property
    def steps_list(self) -> tuple[int, ...]:
        """over_steps as numbers, ascending. Raises OptionError where they are none."""
        try:
            steps = tuple(sorted({int(word) for word in self.over_steps.split(",")}))
        except ValueError:
            steps = ()
        if not steps or steps[0] < 1:
            raise OptionError(
                f"--over-steps is '{self.over_steps}', expected numbers of steps joined by commas, such as 8,16,32"
            )
        return steps

    @property
    def in_force(self) -> dict[str, Any]:
        """The settings that say something about this task, in order; what is empty is left out."""
        own = [name for name in dataclasses.asdict(self) if _ONLY_FOR.get(name, self.task) == self.task]
        return {name: getattr(self, name) for name in own if getattr(self, name) not in (None, "", False, ())}

    @property
    def estimator_draws(self) -> int:
        return TASKS[self.task].draws if self.draws is None else self.draws
