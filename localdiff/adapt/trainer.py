"""The training loop: batches in, optimiser steps out, checkpoints and reports on the way.

Everything random is a function of the seed and of the step, or is stored in the checkpoint, so a continued run takes
exactly the steps that an uninterrupted one would have taken. Of several processes each takes sequences of its own, in
the order in which one process with as many passes per step would: the two have the same curve. Weights and optimiser
state are f32; `bf16` means autocast around the forward pass. Not here: what the loss is (objective.py), how weights
move (optimizers.py), files (checkpoint.py, data.py).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch

from ..errors import LocaldiffError
from .batch import Batch
from .bodies import Scorer
from .flops import Counter
from .noise import open_fraction
from .objective import Objective, losses
from .optimizers import Average, build_optimizers
from .options import AdaptOptions
from .processes import Processes
from .progress import Progress, StepReport

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Data(Protocol):
    """An endless sequence of training sequences; first grows from call to call."""

    length: int

    def batch(self, first: int, count: int) -> Batch: ...


def learning_rate(step: int, options: AdaptOptions) -> float:
    """Rate of a step (0-based): a linear rise over the warm-up, then half a cosine down to 0, a constant, or a fall
    with the inverse square root of the step; or a constant and a straight fall to 0 over the last steps (wsd,
    arXiv:2404.06395): until that begins the curve does not depend on the number of steps."""
    warmup = options.warming
    if step < warmup:
        return options.lr * (step + 1) / warmup
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "inverse-sqrt":
        return options.lr * math.sqrt(max(1, warmup) / (step + 1))
    if options.schedule == "wsd":
        return options.lr * min(1.0, (options.steps - step) / (options.decay_steps or max(1, options.steps // 5)))
    share = (step - warmup) / max(1, options.steps - warmup)
    return options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def noise_generator(seed: int, forward: int) -> torch.Generator:
    """The generator of one forward pass; streams of different passes do not overlap."""
    return torch.Generator().manual_seed((seed << 40) + forward)


@contextmanager
def interrupt_flag(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, read between steps, and `tell` the user; the second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        tell()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


class Trainer:
    """Runs optimiser steps for one model. `step` counts the steps done."""

    def __init__(
        self, scorer: Scorer, data: Data, options: AdaptOptions, objective: Objective, processes: Processes
    ) -> None:
        self.scorer = scorer
        self.data = data
        self.options = options
        self.objective = objective
        self.processes = processes
        self.step = 0
        self._dtype = DTYPES[options.dtype]
        self._counter = Counter(scorer.model, processes.device, options.peak_tflops, self._dtype)
        processes.shard(scorer, self._dtype)
        self.optimizers = build_optimizers(scorer, options, processes)
        self.average = Average(scorer, options.ema, processes) if options.ema else None

    def train_step(self) -> StepReport:
        options, processes = self.options, self.processes
        started = time.monotonic()
        lr = learning_rate(self.step, options)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        self.scorer.train()
        opened = open_fraction(self.step, options.annealing) if self.objective.row.diffusion else 0.0
        total = plain = length_loss = work = 0.0
        for index in range(options.accumulate):
            forward = (self.step * options.accumulate + index) * processes.world + processes.rank
            batch = self.data.batch(forward * options.batch, options.batch)
            generator = noise_generator(options.seed, forward)
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=self._dtype is torch.bfloat16):
                found = losses(self.scorer, batch, self.objective, opened, generator, self._dtype, processes.device)
            both = found.loss if found.length_loss is None else found.loss + found.length_loss
            (both / options.accumulate).backward()  # type: ignore[no-untyped-call]
            total += found.loss.item() / options.accumulate
            plain += found.plain.item() / options.accumulate
            length_loss += 0.0 if found.length_loss is None else found.length_loss.item() / options.accumulate
            work += self._counter.work(found.rows, found.row_length, found.scored)
        total, plain, length_loss = processes.mean(total, plain, length_loss)
        if not math.isfinite(total + length_loss):
            raise LocaldiffError(f"the loss is {total} at step {self.step + 1}; start again with a smaller --lr")
        limit = options.clip if options.clip > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), limit)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        norm_value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        seconds = time.monotonic() - started
        tokens = options.accumulate * options.batch * self.data.length * processes.world
        rate, utilisation = self._counter.rate(work, seconds)
        return StepReport(
            self.step, total, plain, lr, norm_value, opened, tokens / seconds, rate, utilisation,
            None if self.scorer.length_head is None else length_loss,
        )  # fmt: skip

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the running average of its weights, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def run(
        self,
        progress: Progress,
        report: Callable[[StepReport], None],
        save: Callable[[], None],
        evaluate: Callable[[], None] | None,
    ) -> None:
        """Train to the last step. Raises KeyboardInterrupt after Ctrl-C, once a checkpoint is written."""
        progress.begin(self.step, self.options.steps)
        try:
            with interrupt_flag(progress.stopping) as interrupted:
                while self.step < self.options.steps:
                    taken = self.train_step()
                    report(taken)
                    progress.step(taken)
                    last = self.step == self.options.steps
                    if evaluate is not None and (last or self.step % self.options.eval_every == 0):
                        evaluate()
                    if last or self.step % self.options.save_every == 0:
                        save()
                    if self.processes.any(interrupted()) and not last:
                        save()
                        progress.note(f"stopped after step {self.step}; the checkpoint is written, --resume continues")
                        raise KeyboardInterrupt
        finally:
            progress.end()
