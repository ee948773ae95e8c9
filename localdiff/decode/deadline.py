"""Deadlines: the pass after which there would be no time for another one.

A canvas is a complete draft at every step: whenever time runs out, one last pass writes every position that is still
masked. A pass is the last one when two more would be too late, going by the slowest of the last few; so a deadline is
kept to within about one forward pass, and one that is shorter than two passes takes two. Not here: what the last pass
writes (loop.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 4  # passes that the next one is expected to be no slower than


class Pace:
    """How long forward passes take. clock gives seconds; its differences count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._began = 0.0
        self._took: deque[float] = deque(maxlen=RECENT)

    def begin_pass(self) -> None:
        self._began = self.clock()

    def end_pass(self) -> None:
        self._took.append(self.clock() - self._began)

    def is_last(self, until: float) -> bool:
        """Whether the coming pass has to be the last one of a text that has to be full when the clock is at `until`."""
        return bool(self._took) and self.clock() + 2 * max(self._took) > until
