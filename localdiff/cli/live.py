"""The live view: a text while it settles, as one region at the bottom of the terminal that is repainted in place.

Settled text is plain, tokens of the last step are highlighted, masked positions are dim blocks. Lines are broken here,
by the width of each character, so the region's height is known; after a resize it is what the terminal made of them. A
text taller than the terminal is shown around the last known position. Only the region itself is ever erased, the cursor
is never hidden, and at the end nothing of it is left (the answer follows on stdout) or its last state (Ctrl-C).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ..page import Span

FRAME_SECONDS = 0.03  # between two paintings
STYLES = {"given": "", "settled": "", "fresh": "\x1b[1;32m", "masked": "\x1b[2m", "note": "\x1b[2m"}
RESET = "\x1b[0m"

Cell = tuple[str, int, str]  # character, columns, kind
Line = list[Cell]


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters become a question mark in a box."""
    return "".join(char if char in "\n\t" or char.isprintable() or not _controls(char) else "\ufffd" for char in text)


def _controls(char: str) -> bool:
    code = ord(char)  # C0, DEL, C1, and the marks that reverse the direction of writing
    return code < 32 or 127 <= code < 160 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


class LiveView:
    """Paints on a terminal stream; `with` it, so that the region is left in order whatever happens."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.cells import get_character_cell_size

        self._columns_of = get_character_cell_size
        self._stream = stream or sys.stderr
        self._coloured = not os.environ.get("NO_COLOR")
        self._mask = "░" if "utf" in (self._stream.encoding or "").lower() else "_"
        self._painted: list[int] = []  # columns of each line of the region
        self._last = 0.0
        self._pending: Sequence[Span] | None = None

    @staticmethod
    def possible() -> bool:
        """Whether stderr is a terminal that can be painted on."""
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def show(self, spans: Sequence[Span]) -> None:
        """The text as it is now; painted at once, or with the next call where the last painting was just now."""
        self._pending = spans
        if time.monotonic() - self._last >= FRAME_SECONDS:
            self.paint()

    def paint(self) -> None:
        if self._pending is None:
            return
        columns, rows = self._size()
        lines = self._visible(self._lines(self._pending, columns), rows)
        self._write(self._to_top(columns) + "\x1b[K\n".join(self._styled(line) for line in lines) + "\x1b[J")
        self._painted = [sum(width for _, width, _ in line) for line in lines]
        self._pending = None
        self._last = time.monotonic()

    def erase(self) -> None:
        """Take the region away; the cursor is where it began."""
        if self._painted:
            self._write(self._to_top(self._size()[0]) + "\x1b[J")
        self._painted, self._pending = [], None

    def keep(self) -> None:
        """Leave the region as it is; the cursor is below it."""
        self.paint()
        if self._painted:
            self._write("\n")
        self._painted = []

    # ---- lines ----

    def _lines(self, spans: Sequence[Span], columns: int) -> list[Line]:
        """The text broken into lines that are narrower than the terminal, after spaces where there are any."""
        limit = max(2, columns - 1)  # a full last column would leave the cursor in doubt
        lines: list[Line] = [[]]
        width = 0
        for cell in self._cells(spans):
            if cell[0] == "\n":
                lines.append([])
                width = 0
                continue
            if width + cell[1] > limit:
                line = lines[-1]
                space = next((i for i in range(len(line) - 1, -1, -1) if line[i][0] == " "), -1)
                rest = line[space + 1 :] if space >= 0 and cell[0] != " " else []
                del line[len(line) - len(rest) :]
                lines.append(rest)
                width = sum(each[1] for each in rest)
            lines[-1].append(cell)
            width += cell[1]
        return lines

    def _cells(self, spans: Sequence[Span]) -> list[Cell]:
        cells: list[Cell] = []
        for span in spans:
            text = self._mask * span.tokens if span.kind == "masked" else printable(span.text).expandtabs(4)
            cells += [(char, self._columns_of(char), span.kind) for char in text]
        return cells

    def _visible(self, lines: list[Line], rows: int) -> list[Line]:
        """At most rows - 1 lines: those that end with the last line in which something is known."""
        room = max(1, rows - 1)
        if len(lines) <= room:
            return lines
        known = [i for i, line in enumerate(lines) if any(kind != "masked" for _, _, kind in line)]
        end = min(len(lines), max(room, (known[-1] if known else 0) + 2))
        return lines[end - room : end]

    def _styled(self, line: Line) -> str:
        parts: list[str] = []
        now = ""
        for char, _, kind in line:
            style = STYLES[kind] if self._coloured else ""
            if style != now:
                parts.append((RESET if now else "") + style)
                now = style
            parts.append(char)
        return "".join(parts) + (RESET if now else "")

    # ---- the terminal ----

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def _to_top(self, columns: int) -> str:
        """From the end of the region to its start, as high as it is at the present width."""
        rows = sum(max(1, -(-width // columns)) for width in self._painted)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the terminal has gone; the answer has not
            self._painted = []
