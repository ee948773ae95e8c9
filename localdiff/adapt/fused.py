"""Cross-entropy of chosen rows, with the output matrix inside: no logits of more than a few rows exist at a time.

The rows are taken in chunks; a chunk's logits give the loss and, in the same pass, the gradients with respect to the
rows and the matrix. Beside those gradients (rows x dim, vocab x dim) it needs two chunks of `CHUNK_ELEMENTS` floats,
128 MiB, where plain cross-entropy keeps three arrays of rows x vocab: at 8192 masked rows of a vocabulary of 250,000
that is 24 GiB. Not here: which rows, their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # logits per chunk
MIN_ROWS = 8


def chunk_rows(vocab: int) -> int:
    return max(MIN_ROWS, CHUNK_ELEMENTS // vocab)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, matrix: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor,
        smoothing: Tensor | None, dtype: torch.dtype, training: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows, table = hidden.to(dtype), matrix.to(dtype)
        wanted = [training and needed for needed in context.needs_input_grad]
        grad_hidden = torch.empty_like(hidden, dtype=wide) if wanted[0] else None
        grad_matrix = torch.zeros_like(matrix, dtype=wide) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
        entropies = torch.empty(len(targets), dtype=wide, device=hidden.device)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        vocab = matrix.shape[0]
        size = chunk_rows(vocab)
        for first in range(0, len(targets), size):
            part = slice(first, first + size)
            logits = (rows[part] @ table.T).to(wide)
            if bias is not None:
                logits += bias.to(wide)
            logits -= logits.logsumexp(dim=1, keepdim=True)  # log-probabilities
            target, weight = targets[part, None], weights[part].to(wide)
            entropies[part] = -logits.gather(1, target)[:, 0]
            loss += (weight * entropies[part]).sum()
            total = weight
            if smoothing is not None:
                loss -= (smoothing[part].to(wide) * logits.mean(dim=1)).sum()
                total = weight + smoothing[part].to(wide)
            if not any(wanted[:3]):
                continue
            # d/dlogits of w * (-log p[target]) + s * mean(-log p) is (w + s) p - w [target] - s / vocab
            gradient = logits.exp_().mul_(total[:, None])
            gradient.scatter_add_(1, target, -weight[:, None])
            if smoothing is not None:
                gradient -= smoothing[part, None].to(wide) / vocab
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0)
            gradient = gradient.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (gradient @ table).to(wide)
            if grad_matrix is not None:
                grad_matrix += (gradient.T @ rows[part]).to(wide)
        context.kinds = (hidden.dtype, matrix.dtype, None if bias is None else bias.dtype)
        context.save_for_backward(grad_hidden, grad_matrix, grad_bias)
        context.mark_non_differentiable(entropies)
        return loss, entropies

    @staticmethod
    def backward(context: Any, *upstream: Tensor) -> tuple[Any, ...]:
        found = (
            None if gradient is None else (gradient * upstream[0]).to(kind)
            for gradient, kind in zip(context.saved_tensors, context.kinds, strict=True)
        )
        return (*found, None, None, None, None, None)


def cross_entropy(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    smoothing: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_i weights[i] * -log p_i[targets[i]] + smoothing[i] * mean over v of -log p_i[v], and each -log p_i[target].

    hidden    [n, dim]      what the output matrix is applied to
    matrix    [vocab, dim]  and bias [vocab]
    targets   int64 [n]
    weights   float32 [n]   smoothing too
    dtype     of the matrix products; None: that of `hidden`. Sums and exponentials are float32 or wider
    returns   scalar with gradients, [n] without
    """
    loss, entropies = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, matrix, bias, targets, weights, smoothing, dtype or hidden.dtype, torch.is_grad_enabled()
    )
    return loss, entropies
