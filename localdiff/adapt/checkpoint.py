"""Checkpoints that are either whole or absent, and the writing of the finished result.

A checkpoint is a folder `checkpoints/step-00000500`: the model as an HF folder - or, with LoRA, `trained.safetensors`
with the trained weights alone and the tokenizer - `trainer.pt` (optimiser state, the running average of the weights
and the state of each process) and `state.json`. It is written under a temporary name in the same parent, synced to
disk, re-read and renamed. Of several processes the first writes; all of them have to call. Not here: deciding when to
save.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..atomic import sync
from ..errors import ModelFileError
from . import lora
from .base import Base
from .length_head import save_length_head
from .processes import load_optimizer, whole_optimizer, whole_weights
from .trainer import Trainer

FOLDER = "checkpoints"
TRAINED = "trained.safetensors"
FORMAT = 3  # of state.json and trainer.pt
PREFIX = "step-"


@dataclass(frozen=True)
class State:
    """What a continuation needs besides the weights."""

    step: int  # optimiser steps done
    options: dict[str, Any]  # AdaptOptions.lasting()
    data: str  # fingerprint of the training tokens
    length: int
    mask_token: int | None
    processes: int = 1


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A fresh folder beside the target, removed unless it was renamed away; ModelFileError on a full disk."""
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".part-*"):  # left by a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
    try:
        yield folder
    except (OSError, SafetensorError, RuntimeError) as error:  # the last one is how torch.save tells of a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise ModelFileError(f"{parent}: could not be written ({reason}); is the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def list_checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (output / FOLDER).glob(f"{PREFIX}*") if path.is_dir())


def save_checkpoint(
    output: Path, base: Base, trainer: Trainer, state: State, keep: int, streams: dict[str, Any] | None
) -> None:
    """Write a checkpoint. streams: where each process's data stream stands, where there is one."""
    processes = trainer.processes
    target = output / FOLDER / f"{PREFIX}{state.step:08d}"
    if processes.any(target.exists()):
        return
    # every process has its part of the weights
    weights = whole_weights(base.model)
    head = None if trainer.scorer.length_head is None else whole_weights(trainer.scorer.length_head)
    own = processes.gather({"random": processes.random_state(), "stream": streams})
    optimizers = [whole_optimizer(optimizer) for optimizer in trainer.optimizers]
    average = None if trainer.average is None else trainer.average.weights
    if processes.main:
        _write(target, base, state, weights, head, {"optimizers": optimizers, "average": average, "processes": own})
        for old in list_checkpoints(output)[:-keep]:
            with _staging(target.parent) as folder:
                old.rename(folder / "old")  # a half-removed folder must not look like a checkpoint
    processes.wait()


def _write(
    target: Path, base: Base, state: State, weights: dict[str, torch.Tensor], head: dict[str, torch.Tensor] | None,
    rest: dict[str, Any],
) -> None:  # fmt: skip
    with _staging(target.parent) as folder:
        if base.adapted:
            save_file(lora.trained(base.model, weights), folder / TRAINED)
            base.save_tokenizer(folder)
        else:
            base.save(folder, weights)
        if head is not None:
            save_length_head(head, folder)
        torch.save(rest, folder / "trainer.pt")
        (folder / "state.json").write_text(
            json.dumps({"format": FORMAT, **state.__dict__}, indent=2) + "\n", encoding="utf-8"
        )
        for path in folder.iterdir():
            sync(path)
        read_state(folder)
        sync(folder)
        os.rename(folder, target)
    sync(target.parent)


def read_state(folder: Path) -> State:
    try:
        fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if fields.pop("format", 1) != FORMAT:
            raise ValueError(f"format {FORMAT} is expected")
        return State(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{folder}: not a checkpoint of this version ({error}); remove it to use an older one"
        ) from None


def restore(folder: Path, trainer: Trainer) -> Any:
    """Load the states of optimisers, average and random generators, and return where this process's data stream
    stood. The weights come with `base.load_folder`."""
    saved = torch.load(folder / "trainer.pt", weights_only=True)
    for optimizer, state in zip(trainer.optimizers, saved["optimizers"], strict=True):
        load_optimizer(optimizer, state)
    if trainer.average is not None:
        trainer.average.load(saved["average"])
    own = saved["processes"][trainer.processes.rank]
    trainer.processes.set_random_state(own["random"])
    return own["stream"]


def publish(output: Path, base: Base, trainer: Trainer, record: str | None, record_name: str) -> None:
    """Write the finished HF folder into `output`, config.json last: without it the folder is not a checkpoint.
    Adapters are merged into the weights."""
    weights = whole_weights(base.model)
    head = None if trainer.scorer.length_head is None else whole_weights(trainer.scorer.length_head)
    if not trainer.processes.main:
        return
    if base.adapted:
        weights = lora.merged(base.model, weights)
    with _staging(output) as folder:
        base.save(folder, weights)
        if head is not None:
            save_length_head(head, folder)
        if record is not None:
            (folder / record_name).write_text(record, encoding="utf-8")
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == "config.json")
        for name in names:
            sync(folder / name)
        for name in names:
            os.replace(folder / name, output / name)
    sync(output)
