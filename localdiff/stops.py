"""Stop strings: where a text ends because a caller said so.

A text is cut before the first stop string that it holds. While it is still being made its end may be the beginning of
one; that much is held back, so that what has been shown is never taken back. Not here: stop tokens (decode/loop.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopStrings:
    """None of the strings is empty."""

    strings: Sequence[str] = ()

    def find(self, text: str) -> int:
        """Where the earliest stop string begins, -1 where there is none."""
        return min((at for at in map(text.find, self.strings) if at >= 0), default=-1)

    def cut(self, text: str) -> str:
        """The text before the earliest stop string."""
        at = self.find(text)
        return text if at < 0 else text[:at]

    def sure(self, text: str) -> str:
        """What of a text that goes on will not be cut, whatever follows: a longer stop string may begin before one that
        is there."""
        return self.cut(text)[: self._beginning(text)]

    def _beginning(self, text: str) -> int:
        """Where the longest end of the text begins that a stop string begins with."""
        longest = max(map(len, self.strings), default=1) - 1
        for at in range(max(0, len(text) - longest), len(text)):
            if any(string.startswith(text[at:]) for string in self.strings):
                return at
        return len(text)
