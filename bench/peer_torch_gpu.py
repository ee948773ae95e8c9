"""torch as a peer of gpu.py: usage peer_torch_gpu.py SHAPE cuda|cpu

A whole Llama-shaped model with random bfloat16 weights: RMS norms, rotation, scaled_dot_product_attention without a
mask (so not causal), gated feed-forward; SHAPE is JSON, the fields of random_model.Shape. Rows are one canvas, all of
them are scored: the likeliest token and its probability, which come back to the processor. Kernels are torch's own,
launched one by one. cpu is for trying this program.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peer import serve, timed, tokens
from random_model import Shape
from torch.nn import functional


class Llama:
    def __init__(self, shape: Shape, device: str) -> None:
        self._shape, self._device = shape, device

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, dtype=torch.bfloat16, device=device) * columns**-0.5

        dim, ffn, kv = shape.dim, shape.ffn, shape.kv_heads * shape.head_dim
        self._embedding, self._head = matrix(shape.vocab, dim), matrix(shape.vocab, dim)
        self._norm = torch.ones(dim, dtype=torch.bfloat16, device=device)
        self._layers = [
            (matrix(dim + 2 * kv, dim), matrix(dim, dim), matrix(2 * ffn, dim), matrix(dim, ffn))
            for _ in range(shape.layers)
        ]

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self._shape.dim,), self._norm, 1e-5)

    def scores(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [rows]; the likeliest tokens and their probabilities, [rows] each, on the processor."""
        shape, rows = self._shape, len(ids)
        frequencies = 10000.0 ** (-torch.arange(0, shape.head_dim, 2, device=self._device) / shape.head_dim)
        angles = torch.arange(rows, device=self._device)[:, None] * frequencies
        cosine, sine = (f(angles).repeat_interleave(2, 1).bfloat16() for f in (torch.cos, torch.sin))

        def turned(x: torch.Tensor) -> torch.Tensor:  # [heads, rows, head_dim], pairs are neighbours
            return x * cosine + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sine

        x = self._embedding[ids]
        for qkv, output, gate_up, down in self._layers:
            parts = functional.linear(self._normed(x), qkv).view(rows, -1, shape.head_dim).transpose(0, 1)
            q, k, v = parts.split((shape.heads, shape.kv_heads, shape.kv_heads))
            seen = functional.scaled_dot_product_attention(
                turned(q)[None], turned(k)[None], v[None], enable_gqa=shape.heads != shape.kv_heads
            )
            x = x + functional.linear(seen[0].transpose(0, 1).reshape(rows, -1), output)
            gate, up = functional.linear(self._normed(x), gate_up).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, down)
        probabilities = functional.linear(self._normed(x), self._head).float().softmax(-1)
        best = probabilities.max(-1)
        return best.indices.cpu(), best.values.cpu()


def main() -> None:
    shape_json, device = sys.argv[1:]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
    torch.manual_seed(1)
    shape = Shape(**json.loads(shape_json))
    model = Llama(shape, device)

    @torch.inference_mode()
    def forward(rows: int) -> dict[str, Any]:
        ids = torch.tensor(tokens(shape.vocab, rows), device=device)
        return timed(lambda: model.scores(ids))

    serve({"forward": forward}, {"version": torch.__version__})


if __name__ == "__main__":
    main()
