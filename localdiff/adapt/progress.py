"""What a training run tells: a live bar or plain lines on stderr, a JSON line per step, and the loss curve.

Progress is a protocol, so that other programs can listen; TerminalProgress is the one of the command line. rich and
matplotlib are imported on first use.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ..atomic import atomic_file

LOG_FILE = "train_log.jsonl"
CURVE_FILE = "loss.png"
WIDE = 90  # columns; narrower terminals get the figures without bar and time spent
PLAIN_EVERY_S = 10.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class StepReport:
    """One optimiser step. Losses in nats per scored token."""

    step: int  # 1-based: steps done
    loss: float  # the weighted loss that was minimised
    plain_loss: float  # its unweighted mean
    lr: float
    grad_norm: float
    open_fraction: float
    tokens_per_second: float  # of all processes
    tflops: float  # done by each device, forward and backward; what is computed twice counts once
    utilisation: float | None  # share of the device's peak (MFU); None where the peak is not known
    length_loss: float | None = None  # of the length head, nats per sequence


class Progress(Protocol):
    def begin(self, done: int, total: int) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self) -> None: ...  # after the first Ctrl-C, from its signal handler
    def end(self) -> None: ...


class SilentProgress:
    def begin(self, done: int, total: int) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self) -> None: ...
    def end(self) -> None: ...


class TerminalProgress:
    """A rich bar where stderr is a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._total = 0
        self._done_at_start = 0
        self._started = 0.0
        self._last_line = 0.0

    def begin(self, done: int, total: int) -> None:
        self._total = total
        self._done_at_start = done
        self._started = time.monotonic()
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        figures = (MofNCompleteColumn(), TextColumn("{task.description}"))
        left = (TextColumn("left"), TimeRemainingColumn())
        wide = console.width >= WIDE
        columns = (BarColumn(), *figures, TimeElapsedColumn(), *left) if wide else (*figures, *left)
        self._bar = Bar(*columns, console=console)
        self._task = self._bar.add_task("starting", total=total, completed=done)
        self._bar.start()

    def step(self, report: StepReport) -> None:
        text = f"loss {report.loss:.3f}  {report.tokens_per_second:,.0f} tokens/s"
        if report.utilisation is not None:
            text += f"  {report.utilisation:.1%} of peak"
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, description=text)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_EVERY_S or report.step == self._total:
            self._last_line = now
            per_step = (now - self._started) / max(1, report.step - self._done_at_start)
            left = clock(per_step * (self._total - report.step))
            print(f"step {report.step}/{self._total}  {text}  left {left}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stopping(self) -> None:
        # past the buffers of sys.stderr, which the interrupted code may be writing to
        os.write(2, b"\nstopping after this step; Ctrl-C again: at once, back to the last checkpoint\n")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """hours:minutes:seconds; days count as hours."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


class TrainingLog:
    """train_log.jsonl: an object per step (StepReport) and per evaluation ("step", "held_out", "standard_error")."""

    def __init__(self, folder: Path, done: int):
        """Keep the lines of the first `done` steps; those after them belong to work that was lost and is done again."""
        self._path = folder / LOG_FILE
        self._folder = folder
        kept = [line for line in self.read() if line["step"] <= done] if done else []
        with atomic_file(self._path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def read(self) -> list[dict[str, Any]]:
        """The whole lines of the file; a line cut off by a kill is left out."""
        lines = []
        if self._path.is_file():
            for text in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    continue
        return lines

    def step(self, report: StepReport) -> None:
        self._file.write(json.dumps(asdict(report)) + "\n")

    def held_out(self, step: int, value: float, error: float) -> None:
        self._file.write(json.dumps({"step": step, "held_out": value, "standard_error": error}) + "\n")

    def close(self) -> None:
        self._file.close()
        draw_curve(self.read(), self._folder / CURVE_FILE)


def draw_curve(lines: list[dict[str, Any]], path: Path) -> None:
    """Loss over steps: the unweighted mean, its running mean, and the held-out values where there are any."""
    steps = [line for line in lines if "plain_loss" in line]
    if not steps:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    x = np.array([line["step"] for line in steps])
    y = np.array([line["plain_loss"] for line in steps])
    window = max(1, len(y) // 50)
    smooth = np.convolve(y, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.plot(x, y, linewidth=0.4, alpha=0.4, color="tab:blue", label="unweighted loss")
    axes.plot(x[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    held = [line for line in lines if "held_out" in line]
    if held:
        axes.plot([h["step"] for h in held], [h["held_out"] for h in held], "o-", color="tab:orange", label="held-out")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with atomic_file(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
