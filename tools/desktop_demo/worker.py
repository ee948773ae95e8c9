"""The thread that works for a window: it loads models and denoises, one order at a time, and reports through a queue.

Everything that takes time happens here, so the window never waits. cancel() may be called from the window's thread at
any moment: the engine leaves off between two layers. Knows nothing of any toolkit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import localdiff
from localdiff.errors import Cancelled, LocaldiffError


@dataclass(frozen=True)
class Report:
    """kind: "loaded" (text: the model's name), "step" (spans, text: figures), "done", "cancelled", "failed" (text)."""

    kind: str
    text: str = ""
    spans: Sequence[Any] = ()


class Worker:
    """Give it orders with load() and write(), read `reports` regularly, end it with close()."""

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._model: localdiff.Model | None = None
        self._stream: Any = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="localdiff worker")
        self._thread.start()

    def load(self, path: str | None) -> None:
        """Open a GGUF file, None = the embedded model, in place of the one before."""
        self._orders.put(lambda: self._load(path))

    def write(self, text: str, **options: Any) -> None:
        """Continue a text, or fill its holes where it has some ([[8]] or [[]])."""
        self._cancelled.clear()
        self._orders.put(lambda: self._write(text, options))

    def cancel(self) -> None:
        """Stop what is being written."""
        self._cancelled.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.cancel()
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except Cancelled:
                self.reports.put(Report("cancelled"))
            except (LocaldiffError, OSError, MemoryError) as error:
                self.reports.put(Report("failed", str(error) or type(error).__name__))
        if self._model is not None:
            self._model.close()

    def _load(self, path: str | None) -> None:
        model = localdiff.load(path)
        if self._model is not None:
            self._model.close()
        self._model = model
        self.reports.put(Report("loaded", model.name))

    def _write(self, text: str, options: dict[str, Any]) -> None:
        assert self._model is not None, "a model is loaded first"
        if "[[" in text:
            options.pop("max_new_tokens", None)
            self._stream = self._model.stream_infill(text, **options)
        else:
            self._stream = self._model.stream(text, **options)
        try:
            if self._cancelled.is_set():  # before there was a stream
                self._stream.cancel()
            for event in self._stream:
                figures = f"forward pass {event.step}, {len(event.canvas.masked)} positions open"
                self.reports.put(Report("step", figures, event.spans))
            result = self._stream.result
            figures = (
                f"{result.answer_tokens_per_second:.0f} tokens/s, {result.nfe} forward passes, {result.seconds:.2f} s"
            )
            self.reports.put(Report("done", f"{len(result.tokens)} tokens, {figures}, seed {result.seed}"))
        finally:
            self._stream.close()
            self._stream = None
