"""adapt(): base, data, trainer, checkpoints and log tied together.

The output folder holds adapt.json (the settings), config.toml where one was given, checkpoints/, tokens/ (packed
training text), train_log.jsonl and loss.png while training runs, and at the end the result itself: an HF folder, with
localdiff.json for diffusion methods.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..atomic import atomic_file
from ..errors import OptionError
from ..fields import flag_name
from ..presets import parse_override
from ..spec import RECORD_FILE, DiffusionSpec
from . import checkpoint, lora, methods
from .base import Base, choose_mask, from_scratch, load_base, load_folder
from .batch import Batch
from .bodies import Scorer
from .bound import autoregressive_nll, diffusion_bound
from .length_head import check_base, length_head_for, load_length_head
from .objective import Objective
from .options import OPTIONS_FILE, AdaptOptions
from .processes import Processes
from .progress import Progress, SilentProgress, TrainingLog
from .sources import Source, instruct_tokens, open_source
from .trainer import Trainer

EVAL_DRAWS = 4  # noise levels per held-out sequence during training
CONFIG_COPY = "config.toml"


@dataclass(frozen=True)
class AdaptResult:
    """Where the result lies and how training ended."""

    folder: Path
    steps: int
    parameters: int
    mask_token: int | None
    loss: float | None  # of the last step; None where no step was left to take


def run(options: AdaptOptions, progress: Progress | None) -> AdaptResult:
    options = options.settled()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    processes = Processes(options.device)
    progress = progress if progress is not None and processes.main else SilentProgress()
    output = Path(options.output)
    newest = _newest_checkpoint(output, options)
    if newest is not None:
        saved = checkpoint.read_state(newest)
        _check_same_run(saved, options, newest)
        base, mask_token = _continued(options, newest, saved.mask_token), saved.mask_token
    else:
        base, mask_token = _start(options)
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    if options.lora:
        _attach_adapters(base, options, newest)
    length = options.length or base.context
    if length > base.context:
        raise OptionError(f"--length is {length}, but the base has a context of {base.context} tokens")
    objective = resolve(options, base, mask_token)
    record = _record(base, objective, length, options) if objective.row.diffusion else None
    source = open_source(options, base, length, objective.shift, output, processes)
    if options.length_head:
        check_base(base.model)
    head = length_head_for(base.model) if options.length_head else None
    if head is not None and newest is not None:
        head = load_length_head(base.model, newest)
    if options.attention != "sdpa":
        base.model.set_attn_implementation(options.attention)
    if options.checkpointing:
        recompute_activations(base.model)
    trainer = Trainer(Scorer(base.model, head), source.data, options, objective, processes)
    if newest is not None:
        if saved.data != source.name:
            raise OptionError(f"--resume: the training text is not the one of {newest}; give the same files")
        if source.stream is not None and saved.processes != processes.world:
            raise OptionError(
                f"--resume: {saved.processes} processes read the stream so far, but this run has {processes.world}; "
                "start as many"
            )
        stream = checkpoint.restore(newest, trainer)
        if source.stream is not None:
            source.stream.restore(stream)
        trainer.step = saved.step
    else:
        torch.manual_seed(options.seed + processes.rank)
    log = _begin(output, options, trainer, newest is None)
    trained = sum(parameter.numel() for parameter in trainer.scorer.parameters() if parameter.requires_grad)
    share = f", {trained:,} of them trained" if options.lora else ""
    progress.note(f"{parameters:,} parameters{share}; {source.description}")

    def save() -> None:
        state = checkpoint.State(trainer.step, options.lasting(), source.name, length, mask_token, processes.world)
        place = None if source.stream is None else source.stream.state()
        checkpoint.save_checkpoint(output, base, trainer, state, options.keep, place)

    try:
        report = log.step if log is not None else lambda _: None
        trainer.run(progress, report, save, _evaluator(trainer, source, log, progress))
    finally:
        if log is not None:
            log.close()
    with trainer.averaged():
        checkpoint.publish(output, base, trainer, record, RECORD_FILE)
    losses = [line["loss"] for line in log.read() if "loss" in line] if log is not None else []
    return AdaptResult(output, trainer.step, parameters, mask_token, losses[-1] if losses else None)


def resolve(options: AdaptOptions, base: Base, mask_token: int | None) -> Objective:
    """The objective that the options mean for this base."""
    row = methods.TABLE[options.method]
    kind = "masked" if base.family.masked else "causal"
    name = type(base.model).__name__
    if kind not in row.bases:
        known = ", ".join(method for method, each in methods.TABLE.items() if kind in each.bases)
        raise OptionError(f"--method {options.method} does not go with a {name}; choose one of {known}")
    if kind == "masked":
        for setting in ("shift", "anneal_steps"):
            if getattr(options, setting) not in (None, "off", 1):
                raise OptionError(
                    f"{flag_name(setting)} is for models with causal attention, but the base is a {name}; leave it out"
                )
    shift = row.shift if options.shift is None else options.shift == "on"
    return Objective(
        options.method,
        mask_token,
        weight=options.weight or (row.weights[0] if row.weights else ""),
        normalise=options.normalise or methods.NORMALISERS[0],
        shift=shift and kind == "causal",
        masked_base=kind == "masked",
        block=(options.block_length or methods.BLOCK_LENGTH) if "block_length" in row.settings else 0,
        timesteps=options.timesteps or methods.TIMESTEPS,
        mask_ratio=options.mask_ratio,
        label_smoothing=options.label_smoothing or 0.0,
        stratified=options.times == "stratified",
        spans=options.spans or 0.0,
    )


def recompute_activations(model: Any) -> None:
    """Keep no activations inside the layers; transformers renamed the switch."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


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
    if options.shape is not None:
        assert options.tokenizer is not None
        base = from_scratch(options.shape, options.tokenizer, options.length, options.seed)
    else:
        assert options.base is not None
        base = load_base(Path(options.base), options.tokenizer)
    if not methods.TABLE[options.method].diffusion:
        return base, None
    return base, choose_mask(base, options.mask_token, options.mask_id)


def _continued(options: AdaptOptions, newest: Path, mask_token: int | None) -> Base:
    """The model of a checkpoint; with LoRA the base anew, whose trained weights follow."""
    if not options.lora:
        return load_folder(newest)
    base, again = _start(options)
    if again != mask_token:
        raise OptionError("--resume: the base is not the one that the run was started with; give the same")
    return base


def _attach_adapters(base: Base, options: AdaptOptions, newest: Path | None) -> None:
    torch.manual_seed(options.seed)
    lora.attach(base.model, options.lora, options.lora_alpha or 2.0 * options.lora, options.lora_dropout)
    base.adapted = True
    if newest is not None:
        lora.load_trained(base.model, load_file(newest / checkpoint.TRAINED))


def _record(base: Base, objective: Objective, length: int, options: AdaptOptions) -> str:
    assert objective.mask_token is not None
    roles: dict[str, Any] = {}
    if objective.masked_base:
        roles = {name: base.token(name) for name in ("pad_token", "sep_token")}
    spec = DiffusionSpec(
        objective.mask_token,
        logit_shift=objective.shift,
        attention="block_causal" if objective.block else "full",
        block_length=objective.block,
        canvas_max=length,
        decoder=objective.row.decoder,
        stop_tokens=(base.end_token,),
        **{**roles, **instruct_tokens(options, base)},
    )
    if options.diffusion:
        fields = parse_override(options.diffusion)
        fixed = {"mask_token", "logit_shift", "attention", "block_length", "process", "canvas_max"}
        if not objective.block:
            fixed.discard("block_length")  # of block decoders on a model that sees everything
        if clash := sorted(set(fields) & fixed):
            raise OptionError(f"--diffusion: {', '.join(clash)} follows from the training and cannot be set here")
        spec = replace(spec, **fields)
    spec.check_vocabulary(base.vocabulary)
    return spec.to_json()


def _begin(output: Path, options: AdaptOptions, trainer: Trainer, fresh: bool) -> TrainingLog | None:
    """Write the settings; the log, which one process keeps."""
    if not trainer.processes.main:
        return None
    output.mkdir(parents=True, exist_ok=True)
    if fresh:
        with atomic_file(output / OPTIONS_FILE) as part:
            part.write_text(options.to_json(), encoding="utf-8")
        if options.config is not None:
            with atomic_file(output / CONFIG_COPY) as part:
                shutil.copyfile(options.config, part)
    return TrainingLog(output, trainer.step)


def _evaluator(
    trainer: Trainer, source: Source, log: TrainingLog | None, progress: Progress
) -> Callable[[], None] | None:
    if not trainer.options.eval_data:
        return None
    held_out: Batch = source.held_out()

    def evaluate() -> None:
        with trainer.averaged():
            if trainer.objective.row.diffusion:
                value, error = diffusion_bound(trainer.scorer, held_out, trainer.objective, EVAL_DRAWS)
            else:
                value, error = autoregressive_nll(trainer.scorer, held_out)
        if log is not None:
            log.held_out(trainer.step, value, error)
        progress.note(f"step {trainer.step}: held-out {value:.4f} +- {error:.4f} nats per token")

    return evaluate
