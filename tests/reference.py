"""The forward pass again, in plain numpy and float64: slow, obvious, and independent of the engine.

Files are read and dequantised by the `gguf` package. One function, `logits`, over the same axes as csrc/arch.h; whole
rows only, no state, no batches.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layer", "rope": None, "gated": False},
    "llama": {"norm": "rms", "rope": "interleaved", "gated": True},
    "qwen2": {"norm": "rms", "rope": "half", "gated": True},
}


class Reference:
    """The weights of a GGUF file as float64 arrays [rows, columns], and its metadata."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(str(path))
        self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }
        self.arch = self.metadata["general.architecture"]
        self.axes = ARCHITECTURES[self.arch]

    def key(self, name: str, absent: Any = None) -> Any:
        return self.metadata.get(f"{self.arch}.{name}", absent)

    def logits(self, tokens: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """float64 [length, vocab]: one pass in which row p sees positions [0, hi[p])."""
        length = len(tokens)
        heads = self.key("attention.head_count")
        kv_heads = self.key("attention.head_count_kv", heads)
        x = self.tensors["token_embd.weight"][tokens]
        if self.axes["rope"] is None:
            x = x + self.tensors["position_embd.weight"][:length]
        visible = np.arange(length)[None, :] < np.asarray(hi)[:, None]

        for layer in range(self.key("block_count")):
            block = f"blk.{layer}."
            h = self._norm(x, block + "attn_norm")
            if block + "attn_qkv.weight" in self.tensors:
                q, k, v = np.split(self._linear(h, block + "attn_qkv"), 3, axis=1)
            else:
                q, k, v = (self._linear(h, block + name) for name in ("attn_q", "attn_k", "attn_v"))
            q, k, v = (y.reshape(length, n, -1) for y, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
            q, k = self._rotate(q), self._rotate(k)
            out = np.empty_like(q)
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = q[:, head] @ k[:, group].T / np.sqrt(q.shape[-1])
                scores = np.where(visible, scores, -np.inf)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
            x = x + self._linear(out.reshape(length, -1), block + "attn_output")

            h = self._norm(x, block + "ffn_norm")
            up = self._linear(h, block + "ffn_up")
            if self.axes["gated"]:
                gate = self._linear(h, block + "ffn_gate")
                up = gate / (1 + np.exp(-gate)) * up
            else:
                up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            x = x + self._linear(up, block + "ffn_down")

        x = self._norm(x, "output_norm")
        return self._linear(x, "output" if "output.weight" in self.tensors else "token_embd")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.tensors[name + ".weight"].T
        return y + self.tensors[name + ".bias"] if name + ".bias" in self.tensors else y

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.axes["norm"] == "layer":
            x = x - x.mean(axis=1, keepdims=True)
            eps = self.key("attention.layer_norm_epsilon")
        else:
            eps = self.key("attention.layer_norm_rms_epsilon")
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * self.tensors[name + ".weight"]
        return x + self.tensors[name + ".bias"] if self.axes["norm"] == "layer" else x

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotary positions over [length, heads, head_dim]."""
        if self.axes["rope"] is None:
            return x
        dims = self.key("rope.dimension_count", x.shape[-1])
        half = dims // 2
        frequencies = self.key("rope.freq_base", 10000.0) ** (-2.0 * np.arange(half) / dims)
        if "rope_freqs.weight" in self.tensors:
            frequencies = frequencies / self.tensors["rope_freqs.weight"]
        angles = np.arange(len(x))[:, None] * frequencies / self.key("rope.scaling.factor", 1.0)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        if self.axes["rope"] == "interleaved":
            first, second = np.s_[..., 0:dims:2], np.s_[..., 1:dims:2]
        else:
            first, second = np.s_[..., :half], np.s_[..., half:dims]
        out = x.copy()
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
        return out


def visible_to(kind: str, length: int, block_length: int = 0, prefix: int = 0) -> np.ndarray:
    """int [length]: the end of the interval that each row sees, by definition of the attention kind."""
    position = np.arange(length)
    ends = {
        "full": np.full(length, length),
        "causal": position + 1,
        "block_causal": np.minimum((position // max(block_length, 1) + 1) * block_length, length),
        "prefix_causal": np.where(position < prefix, position + 1, length),
    }
    return ends[kind]


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean over rows of KL(softmax(reference) || softmax(logits)), in nats."""

    def log_softmax(rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.float64)
        rows = rows - rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())
