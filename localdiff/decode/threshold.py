"""threshold: block after block, every token that the model is sure enough of, and always the surest one.

Fast-dLLM's parallel decoding (arXiv:2505.22618): in the current block each masked position whose proposed token has at
least the threshold's probability is written; where none has, the likeliest one, so that every step makes progress.
Its caches are in cache.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..canvas import Canvas, Commits, Int32
from .blocks import current_block, masked_of
from .decoder import pick
from .table import Settings

if TYPE_CHECKING:
    from ..engine import Proposal


class Threshold:
    scores_from = "raw"

    def __init__(self, settings: Settings, seed: int) -> None:
        assert settings.threshold is not None
        assert settings.block_length is not None
        self._threshold = np.float32(settings.threshold)
        self._cut = (settings.block_length, settings.aligned)

    def check(self, canvas: Canvas) -> None:
        """Any threshold fits any canvas."""

    def plan(self, canvas: Canvas) -> Int32:
        _, block = current_block(canvas, *self._cut)
        return masked_of(canvas, block)

    def step(self, canvas: Canvas, rows: Int32, proposal: Proposal, step: int) -> Commits:
        chosen = proposal.probability >= self._threshold
        chosen[np.argmax(proposal.probability)] = True
        return pick(rows, proposal, chosen)
