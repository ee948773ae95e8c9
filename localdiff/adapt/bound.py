"""Held-out likelihood in nats per token: a bound for diffusion models, the exact value for autoregressive ones.

Both score what is not given, and never token 0, so the two numbers are comparable. Not here: reading the text.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .bodies import Scorer
from .objective import Noised, Objective, lay_out, maskable_of

BATCH = 8


def diffusion_bound(
    scorer: Scorer, held_out: Batch, objective: Objective, draws: int, seed: int = 0, batch: int = BATCH
) -> tuple[float, float]:
    """Upper bound on -log p of a masked-diffusion model, mean and standard error over the sequences.

    objective   how the model is run: mask token, shift, blocks
    draws       noise levels per sequence, stratified

    The bound is the integral over t of (1/t) times the expected cross-entropy of the masked tokens. Integrating t out
    leaves a uniform number k of masked tokens among N with weight N / k (arXiv:2502.09992, equation 6), which has the
    same expectation and a smaller variance; k is drawn here. A model of blocks has one k for each block, and the bound
    is the sum over blocks (arXiv:2503.09573, equation 7).
    """
    assert objective.mask_token is not None
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    tokens = held_out.tokens.repeat_interleave(draws, dim=0)
    maskable = maskable_of(held_out, shift=True).repeat_interleave(draws, dim=0)
    valid = None if held_out.valid is None else held_out.valid.repeat_interleave(draws, dim=0)
    total, length = tokens.shape
    strata = np.tile(np.arange(draws), total // draws)
    hidden = torch.zeros_like(maskable)
    weights = torch.zeros(tokens.shape, dtype=torch.float64)
    for start in range(0, length, objective.block or length):
        part = slice(start, start + (objective.block or length))
        here = maskable[:, part].numpy()
        counts = here.sum(axis=1)
        masked = np.minimum((strata + random.random(total)) / draws * counts, counts - 1).astype(np.int64) + 1
        ranks = np.where(here, random.random(here.shape), 2.0).argsort(axis=1).argsort(axis=1)
        hidden[:, part] = torch.from_numpy((ranks < masked[:, None]) & here)
        weights[:, part] = torch.from_numpy(counts / np.maximum(masked, 1))[:, None]
    values = np.zeros(total)
    for at in range(0, total, batch):
        rows = slice(at, at + batch)
        noised = torch.where(hidden[rows], objective.mask_token, tokens[rows])
        seen = None if valid is None else valid[rows]
        found = _entropies(scorer, Noised(noised, tokens[rows], hidden[rows], weights[rows], None, seen), objective)
        values[rows] = ((found * weights[rows]).sum(dim=1) / maskable[rows].sum(dim=1).clamp(min=1)).numpy()
    return _mean_and_error(values.reshape(-1, draws).mean(axis=1))


def autoregressive_nll(scorer: Scorer, held_out: Batch, batch: int = BATCH) -> tuple[float, float]:
    """-log p per token of a causal model, mean and standard error over the sequences."""
    values = []
    scored = maskable_of(held_out, shift=True)
    for first in range(0, len(scored), batch):
        tokens, here = held_out.tokens[first : first + batch], scored[first : first + batch]
        found = _entropies(scorer, Noised(tokens, tokens, here, torch.zeros(())), Objective("ar", None))
        values.append((found.sum(dim=1) / here.sum(dim=1).clamp(min=1)).numpy())
    return _mean_and_error(np.concatenate(values))


@torch.no_grad()
def _entropies(scorer: Scorer, noised: Noised, objective: Objective) -> Tensor:
    """Cross-entropy of the scored tokens, float64 [n, length], 0 elsewhere."""
    scorer.eval()
    inputs = lay_out(noised, objective, 1.0, torch.Generator(), torch.float32)
    device = next(scorer.parameters()).device
    _, entropies, _ = scorer(inputs.to(device), torch.zeros(len(inputs.targets), device=device))
    spread = torch.zeros(noised.scored.shape, dtype=torch.float64)
    spread[noised.scored] = entropies.double().cpu()
    return spread


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)
