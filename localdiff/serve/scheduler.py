"""The scheduler: continuous batching. Canvases of many callers are denoised together, one call of the engine per step.

One thread per model runs the loop of decode/. Between two steps canvases leave - finished, cancelled, too late - and
waiting ones take their seats, first come, first served; every live canvas takes part in every step, so short texts are
not held up by long ones. What a canvas becomes does not depend on the others. Listeners are called on that thread and
must be quick. Not here: HTTP, seats and memory (seats.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..decode.loop import Denoiser
from ..errors import EngineError, LocaldiffError
from ..generation import DenoiseEvent, Generation, TextInProgress
from .seats import Seats

if TYPE_CHECKING:
    from ..model import Model
    from ..page import Page

T = TypeVar("T")
Listener = Callable[["DenoiseEvent | Generation | Exception"], None]  # events, then one result or error


class Busy(LocaldiffError):
    """The queue is full; retry_after: seconds until it is worth another try."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(LocaldiffError):
    """The server is going down."""


class TooLate(LocaldiffError):
    """The time limit of a request has passed."""


@dataclass(frozen=True)
class Limits:
    """parallel: canvases denoised together; queue: canvases waiting; seconds: from the request to its last token;
    memory: bytes of the session."""

    parallel: int
    queue: int
    seconds: float
    memory: int


@dataclass
class Counts:
    """What a scheduler has done so far; written by its thread only."""

    engine_calls: int = 0
    canvas_steps: int = 0
    rows: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    finished: dict[str, int] = field(default_factory=dict)  # by stop reason, "cancelled", "error"


def _nobody(what: DenoiseEvent | Generation | Exception) -> None:
    """Hears what comes after the end."""


class Ticket:
    """One canvas on its way."""

    def __init__(self, page: Page, listener: Listener) -> None:
        self.page = page
        self.cancelled = False
        self.slots: tuple[int, ...] = ()
        self.queued_seconds = 0.0
        self.text = TextInProgress(page)
        self._listener = listener
        self._since = self._started = time.monotonic()

    @property
    def age(self) -> float:
        return time.monotonic() - self._since

    @property
    def running_seconds(self) -> float:
        return time.monotonic() - self._started

    def start(self) -> None:
        self._started = time.monotonic()
        self.queued_seconds = self._started - self._since

    def tell(self, what: DenoiseEvent | Generation | Exception) -> None:
        if not self.cancelled:
            self._listener(what)
        if not isinstance(what, DenoiseEvent):
            self._listener = _nobody  # it knows its tickets: a cycle of garbage would wait for the collector


class Scheduler:
    """Runs the canvases of one model. submit(), ask() and cancel() from any thread."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.counts = Counts()
        self._model = model
        self._limits = limits
        self._seats = Seats(model, limits.parallel, limits.memory)
        self._denoiser: Denoiser | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._questions: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._live: dict[int, Ticket] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="localdiff-engine", daemon=True)
        self._thread.start()

    # ---- from any thread ----

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def session_bytes(self) -> int:
        return self._seats.bytes

    def submit(self, pages: Sequence[Page], listeners: Sequence[Listener]) -> list[Ticket]:
        """Queue canvases, all of them or none; Busy where the queue is full, Stopping when the server goes down."""
        tickets = [Ticket(page, listener) for page, listener in zip(pages, listeners, strict=True)]
        with self._changed:
            if self._stopping:
                raise Stopping("the server is going down; ask again when it is back")
            free = max(0, self._limits.parallel - len(self._live)) + self._limits.queue
            if len(self._waiting) + len(tickets) > free:
                raise Busy(
                    f"{len(self._waiting)} texts are waiting and at most {self._limits.queue} may; try again later",
                    self._retry_after(),
                )
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def ask(self, question: Callable[[], T]) -> T:
        """The answer of a function that uses the engine; it is called between two steps."""
        answer: Future[T] = Future()
        with self._changed:
            if self._stopping:
                raise Stopping("the server is going down; ask again when it is back")
            self._questions.append((question, answer))
            self._changed.notify()
        return answer.result()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Forget canvases; their listeners hear nothing more."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End at once: what runs and waits hears Stopping."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if (session := self._seats.session) is not None:
            session.cancel()
        self._thread.join()

    # ---- on the thread ----

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._live or self._questions or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    break
                questions = list(self._questions)
                self._questions.clear()
            for question, answer in questions:
                try:
                    answer.set_result(question())
                except Exception as error:
                    answer.set_exception(error)
            self._part()
            self._admit()
            self._step()
        for ticket in [*self._live.values(), *self._waiting]:
            ticket.tell(Stopping("the server is going down; the text was not finished"))
        for _, answer in self._questions:
            answer.set_exception(Stopping("the server is going down"))
        self._seats.close()

    def _part(self) -> None:
        """Let go of what was cancelled and of what is too late."""
        late = TooLate(f"the text took longer than the {self._limits.seconds:g} seconds that a request may take")
        for slot, ticket in list(self._live.items()):
            if ticket.cancelled or ticket.age > self._limits.seconds:
                self._drop(self._leave(slot), late)
        with self._changed:
            gone = [each for each in self._waiting if each.cancelled or each.age > self._limits.seconds]
            for ticket in gone:
                self._waiting.remove(ticket)
        for ticket in gone:
            self._drop(ticket, late)

    def _admit(self) -> None:
        """Seat those who wait, in their order, as far as there is room."""
        while self._waiting:
            ticket = self._waiting[0]
            movable = self._denoiser is None or self._denoiser.movable
            before = self._seats.session
            try:
                slots = self._seats.take(ticket.page.job, len(self._waiting), movable)
            except (LocaldiffError, MemoryError) as error:
                slots = None
                self._waiting.popleft()
                self._drop(ticket, error)
            else:
                if slots is not None:
                    self._waiting.popleft()
            if self._seats.session is not before:
                self._move()
            if slots is not None:
                self._begin(slots, ticket)
            elif ticket in self._waiting:
                return

    def _move(self) -> None:
        """Go on in the session that the seats have now."""
        session = self._seats.session
        if session is None:
            for slot in list(self._live):
                self._drop(self._leave(slot), EngineError("there is not enough memory to go on"))
            self._denoiser = None
        elif self._denoiser is None:
            self._denoiser = Denoiser(session, self._seats.states)
        else:
            self._denoiser.move(session)

    def _begin(self, slots: tuple[int, ...], ticket: Ticket) -> None:
        assert self._denoiser is not None
        slot, beside = slots[0], slots[1] if len(slots) > 1 else None
        ticket.slots = slots
        self._live[slot] = ticket
        ticket.start()
        self.counts.queued_seconds += ticket.queued_seconds
        try:
            self._denoiser.add(slot, ticket.page.job, beside)
        except Exception as error:
            self._drop(self._leave(slot), error)
            return
        if slot not in self._denoiser.live:
            self._finish(slot)

    def _step(self) -> None:
        if self._denoiser is None or not self._live:
            return
        started = time.monotonic()
        try:
            self._advance(None)
        except Exception:
            if self._stopping:
                return
            for slot in list(self._live):  # whose fault it is shows when each goes alone
                try:
                    self._advance([slot])
                except Exception as error:
                    self._drop(self._leave(slot), error)
        self.counts.busy_seconds += time.monotonic() - started

    def _advance(self, slots: Sequence[int] | None) -> None:
        assert self._denoiser is not None
        self.counts.engine_calls += 1
        for step in self._denoiser.step(slots):
            ticket = self._live[step.index]
            self.counts.canvas_steps += 1
            self.counts.rows += step.rows
            ticket.tell(ticket.text.advance(step, ticket.running_seconds))
            if step.stop_reason is not None:
                self._finish(step.index)

    def _finish(self, slot: int) -> None:
        assert self._seats.session is not None
        threads = self._seats.session.timings().threads
        ticket = self._live[slot]
        result = ticket.text.result(self._model.setup, threads)
        self._leave(slot)
        self._count(result.stop_reason)
        self.counts.tokens += len(result.tokens)
        self.counts.prompt_tokens += result.prompt_tokens
        ticket.tell(result)

    def _leave(self, slot: int) -> Ticket:
        if self._denoiser is not None:
            self._denoiser.remove(slot)
        ticket = self._live.pop(slot)
        self._seats.give_back(ticket.slots)
        return ticket

    def _drop(self, ticket: Ticket, error: Exception) -> None:
        """The text will not be finished."""
        self._count("cancelled" if ticket.cancelled else "error")
        ticket.tell(error)

    def _count(self, why: str) -> None:
        self.counts.finished[why] = self.counts.finished.get(why, 0) + 1

    def _retry_after(self) -> int:
        """Seconds until some of the queue has moved on, by what canvases took so far."""
        finished = sum(self.counts.finished.values())
        each = self.counts.busy_seconds / finished if finished else 1.0
        return max(1, min(60, round(each * len(self._waiting))))
