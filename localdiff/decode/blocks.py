"""Blocks: the positions to fill, cut into pieces that are denoised one after the other, left to right.

A block holds block_length positions that are not given, so text between two holes does not count. With block-causal
attention the model sees fixed blocks of positions; then blocks begin at multiples of block_length instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..canvas import MASKED, Canvas, Int32
from .decoder import Decoder, Look, stated


def masked_of(canvas: Canvas, block: Int32) -> Int32:
    """The positions of `block` that are masked."""
    masked: Int32 = block[canvas.state[block] == MASKED]
    return masked


def numbers(canvas: Canvas, block_length: int, aligned: bool) -> Int32:
    """int32 [len(canvas.maskable)]: the block of each position to fill, counted from 0; ascending."""
    positions = canvas.maskable
    if not aligned:
        return np.arange(len(positions), dtype=np.int32) // block_length
    begins = np.diff(positions // block_length, prepend=positions[:1] // block_length) > 0
    return np.cumsum(begins, dtype=np.int32)


def blocks(canvas: Canvas, block_length: int, aligned: bool) -> list[Int32]:
    """The positions of each block, ascending; none is empty."""
    positions = canvas.maskable
    edges = np.flatnonzero(np.diff(numbers(canvas, block_length, aligned))) + 1
    return np.split(positions, edges) if len(positions) else []


def current_block(canvas: Canvas, block_length: int, aligned: bool) -> tuple[int, Int32]:
    """Number and positions of the first block that still has a masked position; ValueError where none has."""
    positions = canvas.maskable
    masked = canvas.state[positions] == MASKED
    if not masked.any():
        raise ValueError("the canvas has no masked position")
    block_of = numbers(canvas, block_length, aligned)
    index = int(block_of[masked.argmax()])
    return index, positions[block_of == index]


class BlockDecoder(Decoder):
    """A decoder that looks at the masked positions of the first unfinished block.

    alternatives  how many of the likeliest tokens of each it wants to know
    """

    alternatives: ClassVar[int] = 0

    @property
    def cut(self) -> tuple[int, bool]:
        """How the canvas is cut, the arguments of blocks()."""
        return stated(self.settings.block_length), self.settings.aligned

    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        _, block = current_block(canvas, *self.cut)
        return Look(masked_of(canvas, block), alternatives=self.alternatives)
