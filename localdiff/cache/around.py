"""prefix, dual, vicinity: the current block and something around it; everything when a block is done.

Fast-dLLM (arXiv:2505.22618): the first pass of a block computes all rows; the following ones, with prefix, the block
and what comes after it, with dual only the block. vicinity adds cache_window positions on both sides, after dInfer
(arXiv:2510.08666). A block is new when a token outside of it has been written since its state was computed. What is
outside keeps the state of the block's first pass, which is an approximation where attention is bidirectional.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from ..decode.blocks import blocks
from ..decode.decoder import stated
from .state import CachePolicy, View


class _Around(CachePolicy):
    def rows(self, view: View) -> Int32 | None:
        cut = stated(self.settings.block_length), self.settings.aligned
        current = [b for b in blocks(view.canvas, *cut) if np.isin(view.score, b, assume_unique=True).any()]
        begin, end = int(current[0][0]), int(current[-1][-1]) + 1
        stale = view.stale
        if stale[:begin].any() or stale[end:].any():
            return None
        return np.arange(*self._span(begin, end, len(view.canvas)), dtype=np.int32)

    def _span(self, begin: int, end: int, length: int) -> tuple[int, int]:
        raise NotImplementedError


class Prefix(_Around):
    def _span(self, begin: int, end: int, length: int) -> tuple[int, int]:
        return begin, length


class Vicinity(_Around):
    """dual is the vicinity without a window."""

    def _span(self, begin: int, end: int, length: int) -> tuple[int, int]:
        window = self.settings.cache_window or 0
        return max(0, begin - window), min(length, end + window)
