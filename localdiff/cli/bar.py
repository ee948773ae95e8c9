"""One line on stderr that says how far a file is, where stderr is a terminal; nothing elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from types import TracebackType

_WIDTH = 24  # of the bar, in columns
_SECONDS = 0.1  # between two paintings


def show_notes(notices: Iterable[str]) -> None:
    """What a command has to say of its result, below the line."""
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


class Bar:
    """`with` it, so that the line is gone afterwards, whatever happened."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, what: str, done: int, total: int) -> None:
        """what: the part that is being written; done of total, in any unit."""
        now = time.monotonic()
        if not self._shown or (now - self._last < _SECONDS and done < total):
            return
        self._last = now
        share = done / total if total else 1.0
        filled = round(_WIDTH * share)
        line = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%} {what}"
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:columns]}\x1b[K", end="", file=sys.stderr, flush=True)
