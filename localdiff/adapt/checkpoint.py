"""Checkpoints that are either whole or absent, and the writing of the finished result.

A checkpoint is a folder `checkpoints/step-00000500`: the model as an HF folder, `trainer.pt` (optimiser state and
random generator states) and `state.json`. It is written under a temporary name in the same parent, synced to disk,
re-read and renamed. Not here: deciding when to save.
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

from ..errors import ModelFileError
from .base import Base

FOLDER = "checkpoints"
PREFIX = "step-"


@dataclass(frozen=True)
class State:
    """What a continuation needs besides the weights."""

    step: int  # optimiser steps done
    options: dict[str, Any]  # AdaptOptions.lasting()
    data: str  # fingerprint of the training tokens
    length: int
    mask_token: int | None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A fresh folder beside the target; removed unless it was renamed away."""
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".part-*"):  # left by a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def list_checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (output / FOLDER).glob(f"{PREFIX}*") if path.is_dir())


def save_checkpoint(output: Path, base: Base, optimizer: torch.optim.Optimizer, state: State, keep: int) -> Path:
    parent = output / FOLDER
    target = parent / f"{PREFIX}{state.step:08d}"
    if target.exists():
        return target
    with _staging(parent) as folder:
        base.save(folder)
        torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, folder / "trainer.pt")
        (folder / "state.json").write_text(json.dumps(state.__dict__, indent=2) + "\n", encoding="utf-8")
        for path in folder.iterdir():
            _sync(path)
        read_state(folder)
        _sync(folder)
        os.rename(folder, target)
    _sync(parent)
    for old in list_checkpoints(output)[:-keep]:
        with _staging(parent) as folder:
            old.rename(folder / "old")  # a half-removed folder must not look like a checkpoint
    return target


def read_state(folder: Path) -> State:
    try:
        fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return State(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError(
            f"{folder}: not a checkpoint of this version ({error}); remove it to use an older one"
        ) from None


def restore(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load optimiser and random generator states; the weights come with `base.load_folder`."""
    saved = torch.load(folder / "trainer.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])


def publish(output: Path, base: Base, record: str | None, record_name: str) -> None:
    """Write the finished HF folder into `output`, config.json last: without it the folder is not a checkpoint."""
    with _staging(output) as folder:
        base.save(folder)
        if record is not None:
            (folder / record_name).write_text(record, encoding="utf-8")
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == "config.json")
        for name in names:
            _sync(folder / name)
        for name in names:
            os.replace(folder / name, output / name)
    _sync(output)
