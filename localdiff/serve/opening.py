"""Opening: which models are loaded how, and the hub they become; plain values, so that it can go to another process.

Used by the server, by batches and by Ray's workers. Not here: flags, HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..loading import load
from .hub import Hub
from .scheduler import Limits

if TYPE_CHECKING:
    from ..model import Model


@dataclass(frozen=True)
class Opening:
    """files: (name, path); a name of None is that of the file, a path of None the model of the package.

    loading    arguments of localdiff.load()
    parallel   texts denoised together
    queue      texts that may wait
    seconds    that a request may take
    memory     MiB for the session of each model; None: half of what is free now
    """

    files: tuple[tuple[str | None, str | None], ...]
    loading: Mapping[str, Any]
    parallel: int
    queue: int
    seconds: float
    memory: int | None = None

    @contextmanager
    def hub(self) -> Iterator[Hub]:
        """The models, loaded and ready; they are closed afterwards."""
        memory = _free_memory() // 2 if self.memory is None else self.memory << 20
        limits = Limits(self.parallel, self.queue, self.seconds, memory)
        with ExitStack() as models:
            loaded: list[tuple[str, Model]] = []
            for name, path in self.files:
                model = models.enter_context(load(path, **{"access": "read", **self.loading}))
                loaded.append((name or model.path.stem, model))
            hub = Hub(loaded, limits)
            try:
                yield hub
            finally:
                hub.close()


def _free_memory() -> int:
    """Bytes that are free or can be had from the system's file cache."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
