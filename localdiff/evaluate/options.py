"""EvalOptions: every setting of `localdiff eval` that is not about generating; one field per command line flag.

The metadata of a field are `help` as shown, `short`, `choices` and the inclusive `range` of numbers. Checks that need
no file live here. Imports nothing heavy: the command line reads the fields at start.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..options import check_value
from .tasks import BOUND, PUBLISHED, TASKS

ESTIMATORS = (BOUND, PUBLISHED)
DEFAULT_STEPS = "4,8,16,32,64"
# Options of generating that an evaluation does not take: it has a seed of its own and one text for each item, whose
# every token counts, whatever the time.
NOT_OF_GENERATION = ("seed", "samples", "alternatives", "deadline", "report_drift")


def _flag(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    range: tuple[float, float] | None = None,
) -> Any:
    metadata = {"help": help, "short": short, "choices": choices, "range": range}
    return dataclasses.field(default=default, metadata=metadata)


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
_ONE_UP = (1, math.inf)
_ZERO_UP = (0, math.inf)


@dataclass(frozen=True)
class EvalOptions:
    """Settings of one evaluation."""

    task: str = _flag("", "what to measure", choices=tuple(TASKS))
    data: tuple[str, ...] = _flag((), "the data set or texts: .txt or .jsonl, also .xz, .gz or .bz2")
    output: str = _flag("", "write the result with every item here, as JSON", short="o")
    records: str = _flag("", "write every item's record on a line of its own here, such as samples for an evaluator")
    resume: bool = _flag(False, "go on with the items that an interrupted run with this output left out")
    limit: int | None = _flag(None, "items at most", range=_ONE_UP)
    seed: int = _flag(0, "of noise and generation; the same seed, the same result", range=(0, 2**63 - 1))
    batch: int = _flag(16, "items that are worked on together, and written down together", range=_ONE_UP)
    attention: str = _flag(
        "", "causal: a left-to-right model, exact likelihoods, given what stands before only", choices=("causal",)
    )
    draws: int | None = _flag(None, "noise draws for each likelihood bound (default 8 for nll, else 32)", range=_ONE_UP)
    estimator: str = _flag(
        "", "of multiple choice: the paper's mean over rates, or the bound (default published)", choices=ESTIMATORS
    )
    length: int | None = _flag(None, "nll: tokens of a sequence (default 512, or the canvas)", range=(2, math.inf))
    context: int = _flag(1, "nll: tokens at the start of each sequence that are given, not scored", range=_ZERO_UP)
    shots: int = _flag(0, "gsm8k: solved problems before the question", range=_ZERO_UP)
    shots_data: str = _flag("", "gsm8k: the file they are taken from")
    execute_code: bool = _flag(
        False, "humaneval-infill: run the generated code, limited in time and memory but not confined"
    )
    texts: int = _flag(16, "unconditional: texts for each number of steps", range=_ONE_UP)
    over_steps: str = _flag(DEFAULT_STEPS, "unconditional: numbers of denoise steps, joined by commas")
    judge: str = _flag("", "unconditional: autoregressive GGUF file that scores the texts")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and (field.metadata["choices"] or field.metadata["range"]):
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
                flag = field.name.replace("_", "-")
                raise OptionError(f"--{flag} has no meaning for {self.task}, only for {task}; leave it out")
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
