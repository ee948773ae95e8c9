"""Deadlines: a text that is full in a given time, as good as the time allows.

A canvas is a complete draft at every step, so whenever time runs out one last pass can write every position that is
still masked. A pass is the last one when two more would be too late, going by the slowest of the last few; so a
deadline is kept to within about one forward pass (the first one has no measure). Until then each step writes at least
its share of the masks, sure ones that stand apart (order.apart), so that few are left for the last pass; decoders that
take tokens back keep their own pace. Not here: what the last pass asks (loop.py).
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .decoder import Move, Turn
from .order import apart

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
        """Whether the coming pass is the last one of a text that has to be full when the clock is at `until`."""
        return self.clock() + 2 * max(self._took, default=0.0) > until

    def passes_left(self, until: float) -> float:
        """How many passes like the last few end before the clock is at `until`; infinite before the first."""
        return (until - self.clock()) / max(statistics.median(self._took), 1e-9) if self._took else math.inf


def hurried(turn: Turn, move: Move, left: float, kept_out: Sequence[int]) -> Move:
    """The move of a decoder, writing more tokens where it would not be done in `left` passes, this one included.

    kept_out   tokens that are not written so
    """
    commits = move.commits
    missing = int(len(turn.canvas.masked) / max(1.0, left)) - len(commits)
    free = turn.masked & ~np.isin(turn.rows, commits.positions)
    free &= ~np.isin(turn.proposal.token, kept_out)
    if missing <= 0 or commits.copies is not None or not free.any():
        return move
    places, answer = np.flatnonzero(free), turn.proposal
    chosen = apart(answer.probability[places], turn.rows[places], answer.token[places], missing)
    more = turn.write(places[chosen])
    return replace(move, commits=commits.together(more))
