"""evaluate(): a task on a model, from the data to the table and the result on disk.

Items are measured in batches; each batch's records are kept (ledger.py) before the next begins. The result is written
atomically when all are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..arithmetic import fingerprint
from ..atomic import atomic_file, check_target
from ..errors import OptionError
from ..options import GenerateOptions
from .ledger import Ledger, ledger_path
from .metrics import check_metrics
from .options import NOT_OF_GENERATION, EvalOptions
from .protocol import Record, Row, Setting
from .subject import Subject, open_subject
from .tasks import EXACT, TASKS, load

Progress = Callable[[str, int, int], None]  # what is measured, parts done, parts in all
_PARTS = 1000  # of an item, as far as progress goes
# What a run may be gone on with although it is another value: nothing in a record depends on it.
_FREE = frozenset({"output", "records", "resume", "limit", "batch", "data", "judge", "shots_data"})


@dataclass(frozen=True)
class EvalResult:
    """What was measured.

    rows       the table: one dict per line, column -> text or number
    records    of every item, in order
    skipped    how many of them were left out, which their record explains
    settings   every setting in force
    """

    task: str
    model: str
    file: str
    source: str
    rows: list[Row]
    records: list[Record]
    skipped: int
    settings: dict[str, Any]
    notices: tuple[str, ...] = ()

    def as_dict(self, records: bool = True) -> dict[str, Any]:
        """One JSON object; without records, what is worth printing."""
        found = {"localdiff": __version__, **dataclasses.asdict(self)}
        del found["notices"]
        if not records:
            del found["records"]
        plain: dict[str, Any] = _without_nan(found)
        return plain


def evaluate(
    model: str | os.PathLike[str] | None = None,
    options: EvalOptions | None = None,
    generation: GenerateOptions | None = None,
    *,
    diffusion: str | None = None,
    progress: Progress | None = None,
    loading: Mapping[str, Any] | None = None,
    **named: Any,
) -> EvalResult:
    """Measure a GGUF file on one task.

    model        None: the embedded model
    options      EvalOptions; `named` are its fields, which win
    generation   settings of generating; what is None is the task's published setting where that fits the model, else
                 the model's own
    diffusion    a preset or `mask=ID,shift=0|1,...`: the record, or changes to it
    loading      threads, isa, math, lora as in localdiff.load
    raises       OptionError, ModelFileError, EngineError; KeyboardInterrupt after Ctrl-C. With an output the finished
                 items are then kept, and resume=True goes on with the others
    """
    options = dataclasses.replace(options, **named) if options is not None else EvalOptions(**named)
    asked = generation or GenerateOptions()
    for name in NOT_OF_GENERATION:
        if getattr(asked, name) not in (None, False):
            raise OptionError(f"an evaluation does not take {name} among the options of generating; leave it out")
    for target in filter(None, (options.output, options.records)):
        check_target(Path(target))
    task = TASKS[options.task]
    check_metrics(task.metrics)
    with ExitStack() as stack:
        subject = stack.enter_context(
            open_subject(model, options.attention == "causal", diffusion, **dict(loading or {}))
        )
        _check_asked(subject, options, asked)
        protocol = load(task.place)(Setting(subject, options, asked, task, stack))
        items = protocol.items()
        header = _header(subject, options, asked, diffusion, loading or {})
        ledger = Ledger(ledger_path(options.output), header, options.resume)
        while len(ledger.records) < len(items):
            first = len(ledger.records)
            batch = items[first : first + options.batch]
            ledger.add(protocol.measure(first, batch, _tick(progress, options.task, first, len(batch), len(items))))
        records = ledger.records[: len(items)]
        measured = [record for record in records if "skipped" not in record]
        if not measured:
            ledger.remove()  # there is nothing in it to go on with
            raise OptionError(f"no item could be measured, the first for this reason: {records[0]['skipped']}")
        result = EvalResult(
            options.task,
            subject.model.name,
            subject.model.path.name,
            EXACT if subject.exact and task is TASKS["nll"] else task.source,
            protocol.summary(measured),
            records,
            len(records) - len(measured),
            _settings(subject, options, protocol.setting),
            subject.notices,
        )
    _write(options.output, json.dumps(result.as_dict(), ensure_ascii=False, indent=1) + "\n")
    lines = (json.dumps(_without_nan(each), ensure_ascii=False) + "\n" for each in result.records)
    _write(options.records, "".join(lines))
    ledger.remove()
    return result


def _check_asked(subject: Subject, options: EvalOptions, asked: GenerateOptions) -> None:
    """Raise OptionError for an option that would have no effect on this model or task."""
    given = [name for name, value in dataclasses.asdict(asked).items() if value is not None]
    if TASKS[options.task].draws:
        what, why = [f"--{name.replace('_', '-')}" for name in given], f"{options.task} generates nothing"
        if subject.exact and not what:
            what = [f"--{name}" for name in ("draws", "estimator") if getattr(options, name)]
            why = "the likelihoods of a left-to-right model are exact"
    else:
        what = ["--steps"] if options.task == "unconditional" and asked.steps and not subject.exact else []
        why = "--over-steps says how many steps are taken"
    if what:
        raise OptionError(f"{what[0]} has no effect: {why}; leave it out")


def _write(path: str, text: str) -> None:
    if path:
        with atomic_file(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _tick(progress: Progress | None, task: str, first: int, count: int, total: int) -> Callable[[int, int], None]:
    def tick(done: int, parts: int) -> None:
        if progress is not None:
            progress(task, first * _PARTS + count * _PARTS * done // parts, total * _PARTS)

    return tick


def _header(
    subject: Subject, options: EvalOptions, asked: GenerateOptions, diffusion: str | None, loading: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that records depend on; files by their content."""
    own = {name: value for name, value in dataclasses.asdict(options).items() if name not in _FREE}
    given = {name: value for name, value in dataclasses.asdict(asked).items() if value is not None}
    files = [*options.data, *(name for name in (options.shots_data, options.judge) if name)]
    return {
        "localdiff": __version__,
        "model": fingerprint([(subject.model.path, 1.0)]),
        "files": [_digest(Path(name)) for name in files],
        **own,
        "generation": given,
        "diffusion": diffusion,
        "lora": [str(each) for each in loading.get("lora") or ()],
        "math": subject.model.arithmetic.math,
    }


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _settings(subject: Subject, options: EvalOptions, setting: Setting) -> dict[str, Any]:
    given = {name: value for name, value in dataclasses.asdict(setting.generation).items() if value is not None}
    spec = {name: value for name, value in dataclasses.asdict(subject.spec).items() if value not in (None, ())}
    return {
        **options.in_force,
        **({"draws": options.estimator_draws} if options.estimator_draws and not subject.exact else {}),
        "left_to_right": subject.exact,
        "record": spec,
        "generation": given,
        "math": subject.model.arithmetic.math,
        "isa": subject.model.info.isa,
    }


def _without_nan(value: Any) -> Any:
    """The same with None for what is not a number, which JSON has not: the error of a single item."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def columns(rows: Sequence[Row]) -> list[str]:
    """The table as lines of text: a head and one line per row, numbers right-aligned."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
