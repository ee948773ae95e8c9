"""The sessions of one model, kept between generations: their memory is taken once and grows when more is needed.

lend() gives a session that is large enough to one caller at a time; several threads get several sessions. A session
that was cancelled is given up, since its cancellation may still be waiting for a call that never came. What the slots
of a session hold is kept with it, so that a prompt that was computed need not be computed again, and a saved prompt is
put into all slots of a new one. When the pool is collected, or the program ends, sessions are closed at once: the
collector might free the model before them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache.saved import SavedPrompt
    from .cache.state import State
    from .engine import EngineModel, Session

_GRAIN = 64  # slot lengths are multiples of this, so that slightly longer prompts do not need a new session


def rounded_length(length: int, context_length: int) -> int:
    """The slot length of a session that is asked for `length` positions."""
    return min(-(-length // _GRAIN) * _GRAIN, max(length, context_length))


@dataclass
class _Kept:
    session: Session
    slots: int
    length: int
    cancelled: bool = False
    states: dict[int, State] = field(default_factory=dict)  # by slot


class SessionPool:
    def __init__(self, engine: EngineModel, threads: int | None) -> None:
        self._engine = engine
        self._threads = threads
        self.math = "exact"  # of sessions that are made from now on
        self.prompt: SavedPrompt | None = None  # what their slots begin with
        self._lock = threading.Lock()
        self._free: list[_Kept] = []
        self._lent: list[_Kept] = []
        weakref.finalize(self, _close_all, self._free, self._lent)

    @contextmanager
    def lend(self, slots: int, length: int) -> Iterator[Session]:
        """A session of at least `slots` canvases of `length` positions, for the time of the with statement."""
        with self.lend_kept(slots, length) as (session, states):
            states.clear()  # nobody takes notes of what happens to them
            yield session

    @contextmanager
    def lend_kept(self, slots: int, length: int) -> Iterator[tuple[Session, dict[int, State]]]:
        """The same, with what its slots hold; the borrower keeps that up to date."""
        kept = self._take(slots, length)
        try:
            yield kept.session, kept.states
        finally:
            with self._lock:
                self._lent.remove(kept)
                if kept.cancelled:
                    kept.session.close()
                else:
                    self._free.append(kept)

    def cancel(self, session: Session | None = None) -> None:
        """Make the running calls of `session`, or of every session in use, raise Cancelled soon. From any thread."""
        with self._lock:
            for kept in self._lent:
                if session is None or kept.session is session:
                    kept.cancelled = True
                    kept.session.cancel()

    def close(self) -> None:
        """Give up the sessions that are not in use."""
        with self._lock:
            _close_all(self._free)
            self._free.clear()

    def _take(self, slots: int, length: int) -> _Kept:
        with self._lock:
            kept = next((kept for kept in self._free if kept.slots >= slots and kept.length >= length), None)
            if kept is not None:
                self._free.remove(kept)
            else:
                if self._free:  # a larger one takes its place
                    small = self._free.pop()
                    # twice as long where prompts are kept: a conversation that grows would lose them at every turn
                    ahead = min(2 * small.length, self._engine.info.context_length) if small.states else 0
                    slots, length = max(slots, small.slots), max(length, small.length, ahead)
                    small.session.close()
                if self.prompt is not None:
                    length = max(length, len(self.prompt.tokens))
                rounded = rounded_length(length, self._engine.info.context_length)
                session = self._engine.session(slots=slots, slot_length=rounded, threads=self._threads, math=self.math)
                kept = _Kept(session, slots, rounded)
                if self.prompt is not None:
                    kept.states = {slot: self.prompt.restore(session, slot) for slot in range(slots)}
            self._lent.append(kept)
            return kept


def _close_all(*lists: list[_Kept]) -> None:
    for kept in chain.from_iterable(lists):
        kept.session.close()
