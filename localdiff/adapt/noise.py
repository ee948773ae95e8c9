"""Noise and attention of the training methods: times, masked tokens, annealed and block attention.

Every random number comes from the generator passed in, so that a training step is a function of its number. Tensors
stay on the CPU. Not here: losses and what they weigh (objective.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_TIME = 0.001  # t is drawn from [0.001, 1)


def draw_times(shape: int | tuple[int, ...], generator: torch.Generator, stratified: bool = False) -> Tensor:
    """float32 of `shape`, 0.001 + 0.999 u with u uniform on [0, 1).

    stratified   each u is uniform, but the n of one column fall into the n equal parts of [0, 1), one into each, in an
                 order of its own: the noise levels of a batch vary less (arXiv:2107.00630, appendix I.1)
    """
    uniform = torch.rand(shape, generator=generator)
    if stratified:
        parts = torch.rand(shape, generator=generator).argsort(dim=0)
        uniform = (parts + uniform) / len(uniform)
    return MIN_TIME + (1 - MIN_TIME) * uniform


def draw_masked(times: Tensor, maskable: Tensor, generator: torch.Generator) -> Tensor:
    """bool [batch, length]: each maskable position with the probability of its time.

    times      float32 [batch] one time per sequence, or [batch, length] one per position
    maskable   bool [batch, length]
    """
    chances = times if times.dim() == 2 else times[:, None]
    return (torch.rand(maskable.shape, generator=generator) < chances) & maskable


def draw_spans(times: Tensor, maskable: Tensor, generator: torch.Generator) -> Tensor:
    """bool [batch, length]: one run of maskable positions in each sequence, as a hole or a continuation hides them.

    times      float32 [batch], the expected share of hidden positions
    maskable   bool [batch, length]; where it has gaps the run goes on behind them

    Every second run, by chance, reaches the end of the sequence; the others lie anywhere.
    """
    available = maskable.sum(dim=1)
    length = (times * available + torch.rand(times.shape, generator=generator)).long().minimum(available)
    room = available - length
    anywhere = (torch.rand(times.shape, generator=generator) * (room + 1)).long().minimum(room)
    start = torch.where(torch.rand(times.shape, generator=generator) < 0.5, room, anywhere)
    rank = maskable.cumsum(dim=1) - 1
    return maskable & (rank >= start[:, None]) & (rank < (start + length)[:, None])


def draw_steps(batch: int, steps: int, ratio: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two time steps per sequence, int64 [batch] each, from 1 .. steps, the larger first (arXiv:2302.05737).

    ratio   a fixed share of masked tokens instead of a drawn one: both steps are the next whole number above
            ratio * steps, as in the code of arXiv:2308.12219
    """
    if ratio is not None:
        fixed = torch.full((batch,), math.ceil(ratio * steps))
        return fixed, fixed.clone()
    drawn = torch.randint(1, steps + 1, (2, batch), generator=generator)
    return drawn.amax(dim=0), drawn.amin(dim=0)


def draw_coupled(
    first: Tensor, second: Tensor, steps: int, maskable: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Two sets of masked positions of the same sequences, bool [batch, length] each.

    first, second   int64 [batch], first >= second

    The first masks each maskable position with probability first / steps; the second keeps each of those with
    probability second / first. Where the steps are equal the second is drawn afresh.
    """
    outer = draw_masked(first / steps, maskable, generator)
    inner = draw_masked(second / first, outer, generator)
    afresh = draw_masked(second / steps, maskable, generator)
    return outer, torch.where((first == second)[:, None], afresh, inner)


def open_fraction(step: int, anneal_steps: int) -> float:
    """Share of future positions that are visible at a step (0-based): it grows linearly to 1."""
    return min(1.0, (step + 1) / anneal_steps)


def annealed_mask(length: int, fraction: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [1, 1, length, length]: 0 where row i may see position j, the dtype's minimum elsewhere.

    The lower triangle is always visible; above it each entry is open with probability `fraction`. One matrix serves
    all sequences, heads and layers of the call.
    """
    if fraction >= 1:
        return torch.zeros(1, 1, length, length, dtype=dtype)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible |= torch.rand(length, length, generator=generator) < fraction
    return additive(visible, dtype)


def block_mask(length: int, block: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [1, 1, 2 length, 2 length] of block diffusion (arXiv:2503.09573, section 3 and figure 3).

    The input is the noised sequence followed by the clean one. A noised row sees its own noised block and all clean
    blocks before it; a clean row sees the clean blocks up to its own.
    """
    blocks = torch.arange(length) // block
    row, column = blocks[:, None], blocks[None, :]
    nothing = torch.zeros(length, length, dtype=torch.bool)
    noised = torch.cat([row == column, column < row], dim=1)
    clean = torch.cat([nothing, column <= row], dim=1)
    return additive(torch.cat([noised, clean]), dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, 1, rows, columns]: 0 where `visible`, the dtype's minimum elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
