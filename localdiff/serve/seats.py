"""Seats: the slots of one session. Canvases take them and give them back; it grows as more or longer ones come.

Memory stays below a budget, which the engine's own plan is compared with: what does not fit beside the others waits,
what would not fit alone is refused. Growing means another session, in which everything is computed again; canvases
whose cache is an approximation would then go on differently, so growing waits for them to finish.
Not here: who comes first (scheduler.py), the canvases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineError, OptionError
from ..sessions import rounded_length

if TYPE_CHECKING:
    from ..cache.state import State
    from ..decode.loop import Job
    from ..engine import Session
    from ..model import Model

_MIB = 1 << 20


class Seats:
    """Slots for at most `most` canvases of one model, in a session of at most `budget` bytes.

    session   None until the first canvas comes
    states    what the slots hold, kept up to date by the loop
    bytes     the memory of the session
    """

    def __init__(self, model: Model, most: int, budget: int) -> None:
        self.session: Session | None = None
        self.states: dict[int, State] = {}
        self.bytes = 0
        self._model = model
        self._most = most
        self._budget = budget
        self._slots = 0
        self._length = 0
        self._taken: set[int] = set()

    def take(self, job: Job, waiting: int, movable: bool) -> tuple[int, ...] | None:
        """A slot for a canvas, with guidance another one for its companion; None: not before others have left. The
        session may be another one afterwards.

        waiting   how many more would like to sit down
        movable   whether the canvases here can go on in another session
        raises    OptionError where it would not fit alone, EngineError where memory cannot be had
        """
        needed = 2 if job.controls.guidance else 1
        length = rounded_length(job.places, self._model.info.context_length)
        if self._taken and len(self._taken) + needed > self._most:
            return None
        if length > self._length or len(self._taken) + needed > self._slots:
            if self._taken and not movable:
                return None
            size = self._larger(length, needed, waiting)
            if size is None:
                return None
            self._replace(*size)
        free = set(range(self._slots)) - self._taken
        first = max(free, key=lambda slot: (self._shared(slot, job), -slot))
        slots = (first, *sorted(free - {first})[: needed - 1])
        self._taken.update(slots)
        return slots

    def give_back(self, slots: Iterable[int]) -> None:
        self._taken.difference_update(slots)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session, self._slots, self._length, self.bytes = None, 0, 0, 0
        self.states.clear()

    def _larger(self, length: int, needed: int, waiting: int) -> tuple[int, int] | None:
        """The size (slots, length) of a session with room for `needed` more; None where it must wait for memory."""
        taken = len(self._taken)
        ahead = max(taken + needed, min(self._most, 1 << (taken + waiting).bit_length()))
        sizes = [(max(ahead, self._slots), max(length, self._length)), (taken + needed, max(length, self._length))]
        if not taken:
            sizes.append((needed, length))
        for slots, long in sizes:
            if slots > max(self._taken, default=-1) and self._model.session_bytes(slots, long) <= self._budget:
                return slots, long
        if taken:
            return None
        least = self._model.session_bytes(needed, length) // _MIB
        raise OptionError(
            f"a canvas of {length} positions takes {least} MiB, but sessions may take {self._budget // _MIB} MiB; ask "
            "for fewer tokens"
        )

    def _replace(self, slots: int, length: int) -> None:
        before = (self._slots, self._length)
        self.close()  # first: both together may be too much
        try:
            self._open(slots, length)
        except EngineError:
            if self._taken:
                self._open(*before)
            raise

    def _open(self, slots: int, length: int) -> None:
        self.session = self._model.session(slots, length)
        self._slots, self._length, self.bytes = slots, length, self._model.session_bytes(slots, length)

    def _shared(self, slot: int, job: Job) -> int:
        """How many tokens at the beginning of a canvas the slot holds already."""
        state = self.states.get(slot)
        if state is None:
            return 0
        length = min(len(state.token), len(job.canvas))
        differing = np.flatnonzero(state.token[:length] != job.canvas.tokens[:length])
        return int(differing[0]) if len(differing) else length
