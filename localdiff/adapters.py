"""LoRA adapters in GGUF files as users name them, and the files opened. How they are added is the engine's business.

Not here: PEFT folders, which `convert` merges.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .engine import File
from .errors import OptionError

Lora = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # one adapter or several, each a path or "PATH=SCALE"


def scaled_paths(lora: Lora) -> list[tuple[Path, float]]:
    """(path, scale) of every adapter. Raises OptionError for a scale that is no number."""
    return [_scaled_path(each) for each in ([lora] if isinstance(lora, (str, os.PathLike)) else lora)]


def _scaled_path(text: str | os.PathLike[str]) -> tuple[Path, float]:
    """A name that holds = and exists is a path."""
    name = os.fspath(text)
    path, separator, scale = name.rpartition("=")
    if not separator or Path(name).is_file():
        return Path(name), 1.0
    try:
        return Path(path), float(scale)
    except ValueError:
        raise OptionError(f"the adapter {name} has scale '{scale}', expected a number such as {path}=0.5") from None


@contextmanager
def opened(lora: Lora, access: str = "map") -> Iterator[list[tuple[File, float]]]:
    """The files and scales that EngineModel takes; they are closed at the end. Raises ModelFileError, OptionError."""
    with ExitStack() as files:
        yield [(files.enter_context(File.open(path, access)), scale) for path, scale in scaled_paths(lora)]
