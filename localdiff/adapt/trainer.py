"""The training loop: batches in, optimiser steps out, checkpoints and reports on the way.

Everything random is a function of the seed and of the step, or is stored in the checkpoint, so a continued run takes
exactly the steps that an uninterrupted one would have taken. Weights and optimiser state are f32; `bf16` means
autocast around the forward pass. Not here: what the loss is (objective.py), files (checkpoint.py, data.py).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import LocaldiffError
from .base import Base
from .data import PackedData
from .objective import METHODS, Setting, open_fraction
from .options import AdaptOptions
from .progress import Progress, StepReport

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def learning_rate(step: int, options: AdaptOptions) -> float:
    """Rate of a step (0-based): a linear rise over the warm-up, then half a cosine down to 0 or a constant."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def build_optimizer(model: Any, options: AdaptOptions) -> torch.optim.AdamW:
    """AdamW without weight decay on norms and biases, which are the parameters of one dimension."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True)


def noise_generator(seed: int, forward: int) -> torch.Generator:
    """The generator of one forward pass; streams of different passes do not overlap."""
    return torch.Generator().manual_seed((seed << 40) + forward)


@contextmanager
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, read between steps; the second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


class Trainer:
    """Runs optimiser steps for one model. `step` counts the steps done."""

    def __init__(self, base: Base, data: PackedData, options: AdaptOptions, mask_token: int | None):
        self.base = base
        self.data = data
        self.options = options
        self.mask_token = mask_token
        self.step = 0
        self.optimizer = build_optimizer(base.model, options)
        self._method = METHODS[options.method]
        self._dtype = DTYPES[options.dtype]

    def train_step(self) -> StepReport:
        options = self.options
        started = time.monotonic()
        lr = learning_rate(self.step, options)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.base.model.train()
        opened = open_fraction(self.step, options.anneal_steps) if self._method.diffusion else 0.0
        total = plain = 0.0
        for forward in range(self.step * options.accumulate, (self.step + 1) * options.accumulate):
            tokens = torch.from_numpy(self.data.batch(forward * options.batch, options.batch))
            setting = Setting(self.mask_token, opened, noise_generator(options.seed, forward))
            with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype is torch.bfloat16):
                losses = self._method.losses(self.base.model, tokens, setting, self._dtype)
            total += losses.loss.item() / options.accumulate
            if not math.isfinite(total):
                raise LocaldiffError(f"the loss is {total} at step {self.step + 1}; start again with a smaller --lr")
            (losses.loss / options.accumulate).backward()  # type: ignore[no-untyped-call]
            plain += losses.plain.item() / options.accumulate
        limit = options.clip if options.clip > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.base.model.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        speed = options.accumulate * options.batch * self.data.length / (time.monotonic() - started)
        return StepReport(self.step, total, plain, lr, norm, opened, speed)

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
            with interrupt_flag() as interrupted:
                while self.step < self.options.steps:
                    taken = self.train_step()
                    report(taken)
                    progress.step(taken)
                    last = self.step == self.options.steps
                    if evaluate is not None and (last or self.step % self.options.eval_every == 0):
                        evaluate()
                    if last or self.step % self.options.save_every == 0:
                        save()
                    if interrupted() and not last:
                        save()
                        progress.note(f"stopped after step {self.step}; the checkpoint is written, --resume continues")
                        raise KeyboardInterrupt
        finally:
            progress.end()
