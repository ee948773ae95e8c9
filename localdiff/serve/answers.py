"""Answers: the canvases of one request, from their pages to what its reader is told.

The scheduler's thread hands events over to the event loop, where they are read. A reader that is too slow for texts
gets the latest one, since later texts contain earlier ones; only who asked for canvases gets them all. Whatever ends
the reading - the last text, an error, a client that left - cancels what is unfinished. Not here: the shapes on the
wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request

from ..errors import EngineError
from ..generation import DenoiseEvent, Generation
from .refusals import Refused

if TYPE_CHECKING:
    from ..page import Page
    from .scheduler import Listener, Scheduler, Ticket

Item = tuple[int, "DenoiseEvent | Generation"]  # number of the text, what happened


class Answer:
    """The texts of one request; read once, by results() or by events().

    every   all events are wanted, not only the latest
    """

    def __init__(self, scheduler: Scheduler, pages: Sequence[Page], events: bool = False, every: bool = False) -> None:
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._events = events
        self._every = every
        self._items: list[tuple[int, DenoiseEvent | Generation | Exception]] = []
        self._results: list[Generation | None] = [None] * len(pages)
        self._tickets: list[Ticket] = scheduler.submit(pages, [self._listener(index) for index in range(len(pages))])

    def timings(self, index: int) -> dict[str, Any]:
        """What text `index` took, once it is finished."""
        result = self._results[index]
        assert result is not None
        return {
            "queued_seconds": round(self._tickets[index].queued_seconds, 6),
            "seconds": round(result.seconds, 6),
            "first_settled_seconds": result.first_settled_seconds,
            "nfe": result.nfe,
            "rows": result.rows,
            "answer_tokens_per_second": result.answer_tokens_per_second,
            "tokens_per_forward": result.tokens_per_forward,
            "stop_reason": result.stop_reason,
            "seed": result.seed,
            "decoder": result.decoder,
            "isa": result.isa,
            "threads": result.threads,
        }

    async def results(self, request: Request) -> list[Generation]:
        """All texts, when the last one is finished. Raises the first error; Refused where the client has gone."""
        reading = asyncio.ensure_future(self._last())
        leaving = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Refused(499, "the client has gone")
            return reading.result()
        finally:
            reading.cancel()
            leaving.cancel()
            self.close()

    async def events(self) -> AsyncIterator[Item]:
        """What happens, in order; for each text its Generation is the last. Raises the first error."""
        try:
            while any(result is None for result in self._results):
                await self._arrived.wait()
                self._arrived.clear()
                items, self._items = self._items, []
                for index, item in items:
                    if isinstance(item, Exception):
                        raise item
                    if isinstance(item, Generation):
                        self._results[index] = item
                    yield index, item
        finally:
            self.close()

    def close(self) -> None:
        """Nobody reads on."""
        self._scheduler.cancel(self._tickets)

    async def _last(self) -> list[Generation]:
        return [item async for _, item in self.events() if isinstance(item, Generation)] and [
            result for result in self._results if result is not None
        ]

    def _listener(self, index: int) -> Listener:
        def listen(what: DenoiseEvent | Generation | Exception) -> None:  # on the scheduler's thread
            if not isinstance(what, DenoiseEvent) or self._events:
                try:
                    self._loop.call_soon_threadsafe(self._put, index, what)
                except RuntimeError:  # the loop has ended before the scheduler
                    pass

        return listen

    def _put(self, index: int, what: DenoiseEvent | Generation | Exception) -> None:
        if not self._every:
            self._items = [item for item in self._items if item[0] != index or not isinstance(item[1], DenoiseEvent)]
        self._items.append((index, what))
        self._arrived.set()


class Deltas:
    """A text that grows, as the pieces that are added."""

    def __init__(self) -> None:
        self._sent = ""

    def next(self, text: str, last: bool = False) -> str:
        """What `text` adds. The last one has to go on from what was sent; others wait where they do not."""
        if not text.startswith(self._sent):
            if last:
                raise EngineError("the text that was sent and the finished text differ; this is a fault of the server")
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
