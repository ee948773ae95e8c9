"""Cache policies: which rows a denoise step recomputes; the others keep the keys and values of an earlier step.

The engine knows no cache by name: it is told a set of rows. A policy is a small object with one method.
"""

from __future__ import annotations

from typing import Protocol

from ..canvas import Canvas, Int32


class CachePolicy(Protocol):
    def rows(self, canvas: Canvas) -> Int32 | None:
        """The positions to recompute in the next forward pass, ascending; None = all."""
        ...


class Exact:
    """Recompute everything: no approximation."""

    def rows(self, canvas: Canvas) -> None:
        return None
