"""Held-out likelihood in nats per token: a bound for diffusion models, the exact value for autoregressive ones.

Both score tokens 1 .. L-1 given token 0, so the two numbers are comparable. Not here: reading the text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .objective import annealed_mask, scored_logits, shifted_rows


def diffusion_bound(
    model: Any, sequences: np.ndarray, mask_token: int, draws: int, seed: int = 0, batch: int = 8
) -> tuple[float, float]:
    """Upper bound on -log p of a shifted masked-diffusion model, mean and standard error over the sequences.

    sequences   int64 [n, length]
    draws       noise levels per sequence, stratified

    The bound is the integral over t of (1/t) times the expected cross-entropy of the masked tokens. Integrating t out
    leaves a uniform number k of masked tokens among N with weight N / k (arXiv:2502.09992, equation 6), which has the
    same expectation and a smaller variance; k is drawn here.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    count, length = sequences.shape
    scored = length - 1
    everywhere = annealed_mask(length, 1.0, torch.Generator(), torch.float32)
    tokens = np.repeat(sequences, draws, axis=0)
    strata = np.tile(np.arange(draws), count)
    masked = np.minimum((strata + random.random(count * draws)) / draws * scored, scored - 1).astype(np.int64) + 1
    order = random.random((count * draws, scored)).argsort(axis=1).argsort(axis=1)
    hidden = np.zeros(tokens.shape, bool)
    hidden[:, 1:] = order < masked[:, None]
    values = np.zeros(count * draws)
    model.eval()
    with torch.no_grad():
        for first in range(0, count * draws, batch):
            rows = slice(first, first + batch)
            original, noised = torch.from_numpy(tokens[rows]), torch.from_numpy(hidden[rows])
            logits = scored_logits(model, torch.where(noised, mask_token, original), everywhere, shifted_rows(noised))
            entropies = torch.nn.functional.cross_entropy(logits, original[noised], reduction="none").double()
            sums = torch.zeros(len(original), dtype=torch.float64)
            sums.index_add_(0, noised.nonzero()[:, 0], entropies)
            values[rows] = sums.numpy() / masked[rows]
    return _mean_and_error(values.reshape(count, draws).mean(axis=1))


def autoregressive_nll(model: Any, sequences: np.ndarray, batch: int = 8) -> tuple[float, float]:
    """-log p per token of a causal model, mean and standard error over the sequences; sequences int64 [n, length]."""
    values = []
    model.eval()
    with torch.no_grad():
        for first in range(0, len(sequences), batch):
            tokens = torch.from_numpy(sequences[first : first + batch])
            logits = scored_logits(model, tokens, None, shifted_rows(torch.ones_like(tokens, dtype=torch.bool)))
            entropies = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
            values.append(entropies.view(len(tokens), -1).double().mean(dim=1).numpy())
    return _mean_and_error(np.concatenate(values))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)
