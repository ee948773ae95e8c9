"""adapt(): base, data, trainer, checkpoints and log tied together.

The output folder holds adapt.json (the settings), checkpoints/, tokens/ (packed training text), train_log.jsonl and
loss.png while training runs, and at the end the result itself: an HF folder, with localdiff.json for diffusion methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..atomic import atomic_file
from ..errors import OptionError
from ..presets import parse_override
from ..spec import RECORD_FILE, DiffusionSpec
from . import checkpoint
from .base import Base, choose_mask, from_scratch, load_base, load_folder
from .bound import autoregressive_nll, diffusion_bound
from .data import PackedData, held_out_sequences, load_tokens
from .objective import METHODS
from .options import OPTIONS_FILE, AdaptOptions, flag_name
from .progress import Progress, SilentProgress, TrainingLog
from .trainer import Trainer

EVAL_DRAWS = 4  # noise levels per held-out sequence during training


@dataclass(frozen=True)
class AdaptResult:
    """Where the result lies and how training ended."""

    folder: Path
    steps: int
    parameters: int
    mask_token: int | None
    loss: float | None  # of the last step; None where no step was left to take


def run(options: AdaptOptions, progress: Progress | None) -> AdaptResult:
    progress = progress or SilentProgress()
    output = Path(options.output)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    newest = _newest_checkpoint(output, options)
    if newest is not None:
        saved = checkpoint.read_state(newest)
        _check_same_run(saved, options, newest)
        base, mask_token = load_folder(newest), saved.mask_token
    else:
        base, mask_token = _start(options)
    length = options.length or base.context
    if length > base.context:
        raise OptionError(f"--length is {length}, but the base has a context of {base.context} tokens")
    diffusion = METHODS[options.method].diffusion
    record = _record(base, mask_token, length, options.diffusion) if diffusion else None
    tokens, name = load_tokens([Path(p) for p in options.data], base.tokenizer, base.end_token, output / "tokens")
    trainer = Trainer(base, PackedData(tokens, length, options.seed), options, mask_token)
    if newest is not None:
        if saved.data != name:
            raise OptionError(f"--resume: the training text is not the one of {newest}; give the same files")
        checkpoint.restore(newest, trainer.optimizer)
        trainer.step = saved.step
    else:
        torch.manual_seed(options.seed)
    output.mkdir(parents=True, exist_ok=True)
    if newest is None:
        with atomic_file(output / OPTIONS_FILE) as part:
            part.write_text(options.to_json(), encoding="utf-8")
    log = TrainingLog(output, trainer.step)
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    progress.note(f"{parameters:,} parameters, {len(tokens):,} tokens, {trainer.data.per_epoch} sequences of {length}")

    def save() -> None:
        state = checkpoint.State(trainer.step, options.lasting(), name, length, mask_token)
        checkpoint.save_checkpoint(output, base, trainer.optimizer, state, options.keep)

    try:
        trainer.run(progress, log.step, save, _evaluator(trainer, log, output, progress))
    finally:
        log.close()
    checkpoint.publish(output, base, record, RECORD_FILE)
    losses = [line["loss"] for line in log.read() if "loss" in line]
    return AdaptResult(output, trainer.step, parameters, mask_token, losses[-1] if losses else None)


def _newest_checkpoint(output: Path, options: AdaptOptions) -> Path | None:
    found = checkpoint.list_checkpoints(output)
    if options.resume:
        if not found:
            raise OptionError(f"--resume: {output} holds no checkpoint; leave --resume out to start")
        return found[-1]
    if found or (output / "config.json").exists():
        raise OptionError(f"{output} already holds a run; add --resume to continue it or choose another folder")
    return None


def _check_same_run(saved: checkpoint.State, options: AdaptOptions, folder: Path) -> None:
    for name, value in options.lasting().items():
        before = saved.options.get(name)
        before = tuple(before) if isinstance(before, list) else before
        if before != value:
            raise OptionError(f"--resume: {flag_name(name)} is {value}, but the run so far used {before}; give that")
    if saved.step > options.steps:
        raise OptionError(f"--resume: --steps is {options.steps}, but {folder.name} has taken {saved.step} already")


def _start(options: AdaptOptions) -> tuple[Base, int | None]:
    if options.config is not None:
        assert options.tokenizer is not None
        return from_scratch(options.config, options.tokenizer, options.length, options.seed), None
    assert options.base is not None
    base = load_base(Path(options.base), options.tokenizer)
    if not METHODS[options.method].diffusion:
        return base, None
    return base, choose_mask(base, options.mask_token, options.mask_id)


def _record(base: Base, mask_token: int | None, length: int, override: str | None) -> str:
    assert mask_token is not None
    spec = DiffusionSpec(mask_token, logit_shift=True, canvas_max=length, stop_tokens=(base.end_token,))
    if override:
        fields = parse_override(override)
        fixed = sorted(set(fields) & {"mask_token", "logit_shift", "attention", "process", "canvas_max"})
        if fixed:
            raise OptionError(f"--diffusion: {', '.join(fixed)} follows from the training and cannot be set here")
        spec = replace(spec, **fields)
    spec.check_vocabulary(base.vocabulary)
    return spec.to_json()


def _evaluator(trainer: Trainer, log: TrainingLog, output: Path, progress: Progress) -> Callable[[], None] | None:
    options, base = trainer.options, trainer.base
    if not options.eval_data:
        return None
    paths = [Path(path) for path in options.eval_data]
    tokens, _ = load_tokens(paths, base.tokenizer, base.end_token, output / "tokens")
    sequences = held_out_sequences(tokens, trainer.data.length, options.eval_sequences)

    def evaluate() -> None:
        if trainer.mask_token is not None:
            value, error = diffusion_bound(base.model, sequences, trainer.mask_token, EVAL_DRAWS)
        else:
            value, error = autoregressive_nll(base.model, sequences)
        log.held_out(trainer.step, value, error)
        progress.note(f"step {trainer.step}: held-out {value:.4f} +- {error:.4f} nats per token")

    return evaluate
