"""The forward pass again, in plain numpy and float64: slow, obvious, and independent of the engine.

Files are read and dequantised by the `gguf` package. One function, `logits`, over the same axes as csrc/arch.h; whole
rows only, no state, no batches.
"""

from math import erf
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader

LLAMA: dict[str, Any] = {"norm": "rms", "rope": "half", "gated": True, "act": "silu", "window_period": 0}
INTERLEAVED = {**LLAMA, "rope": "interleaved"}
ENCODER = {**LLAMA, "norm": "layer", "act": "gelu"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {**LLAMA, "norm": "layer", "rope": None, "gated": False, "act": "gelu_tanh"},
    "llama": INTERLEAVED,
    "llada": INTERLEAVED,
    "mistral3": INTERLEAVED,
    "qwen2": LLAMA,
    "dream": LLAMA,
    "qwen3": LLAMA,
    "qwen3moe": {**LLAMA, "renormalise": True},
    "rnd1": {**LLAMA, "renormalise": True},
    "llada-moe": LLAMA,
    "pangu-embedded": LLAMA,
    "bailingmoe2": {**LLAMA, "gating": 2},
    "llada2": {**LLAMA, "gating": 2},
    "bert": {**ENCODER, "rope": None, "gated": False},
    "modern-bert": {**ENCODER, "window_period": 3},
}


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.vectorize(erf, otypes=[float])(x / np.sqrt(2)))


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

    def logits(
        self,
        tokens: np.ndarray,
        hi: np.ndarray,
        positions: np.ndarray | None = None,
        hidden: np.ndarray | None = None,
    ) -> np.ndarray:
        """float64 [length, vocab]: one pass in which row p sees rows [0, hi[p]) without hidden[p] and stands for
        positions[p]."""
        place = np.arange(len(tokens))
        positions = place if positions is None else positions
        x = self.tensors["token_embd.weight"][tokens]
        if "position_embd.weight" in self.tensors:
            x = x + self.tensors["position_embd.weight"][positions]
        if "token_types.weight" in self.tensors:
            x = x + self.tensors["token_types.weight"][0]
        x = self._norm(x, "token_embd_norm")

        period, window = self.axes["window_period"], self.key("attention.sliding_window", 0) // 2
        for layer in range(self.key("block_count") - self.key("nextn_predict_layers", 0)):
            block = f"blk.{layer}."
            local = period > 0 and layer % self.key("attention.sliding_window_pattern", period) != 0
            visible = place[None, :] < np.asarray(hi)[:, None]
            if hidden is not None:
                visible &= place[None, :] != hidden[:, None]
            if local:
                visible &= np.abs(place[None, :] - place[:, None]) <= window
            out = self._attention(block, self._norm(x, block + "attn_norm"), visible, positions, local)
            x = self._norm(x + out, block + "attn_output_norm")
            out = self._feed_forward(block, self._norm(x, block + "ffn_norm"))
            x = self._norm(x + out, block + "layer_output_norm")

        return self.head(self._norm(x, "output_norm"))

    def head(self, x: np.ndarray) -> np.ndarray:
        """From the last normed rows [rows, dim] to logits [rows, vocab]."""
        if "mlm_dense.weight" in self.tensors:
            x = self._norm(activate(self.axes["act"], self._linear(x, "mlm_dense")), "mlm_norm")
        return self._output(x, "output.weight" if "output.weight" in self.tensors else "token_embd.weight")

    def _output(self, x: np.ndarray, matrix: str) -> np.ndarray:
        return x @ self.tensors[matrix].T + self.tensors.get("output.bias", 0.0)

    def _attention(
        self, block: str, h: np.ndarray, visible: np.ndarray, positions: np.ndarray, local: bool
    ) -> np.ndarray:
        length, heads = len(h), self.key("attention.head_count")
        kv_heads = self.key("attention.head_count_kv", heads)
        if block + "attn_qkv.weight" in self.tensors:
            fused = self._linear(h, block + "attn_qkv")
            size = fused.shape[1] // (heads + 2 * kv_heads)
            q, k, v = np.split(fused, [heads * size, (heads + kv_heads) * size], axis=1)
        else:
            q, k, v = (self._linear(h, block + name) for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = (y.reshape(length, n, -1) for y, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
        q = self._rotate(self._norm(q, block + "attn_q_norm"), positions, local)
        k = self._rotate(self._norm(k, block + "attn_k_norm"), positions, local)
        if temperature := self.key("attention.temperature_scale", 0.0):
            periods = np.floor(positions / self.key("rope.scaling.original_context_length"))
            q = q * (1 + temperature * np.log(1 + periods))[:, None, None]
        out = np.empty_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, group].T / np.sqrt(q.shape[-1])
            scores = np.where(visible, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
        return self._linear(out.reshape(length, -1), block + "attn_output")

    def _feed_forward(self, block: str, h: np.ndarray) -> np.ndarray:
        act = self.axes["act"]
        if block + "ffn_gate_inp.weight" in self.tensors:
            return self._experts(block, h)
        up = self._linear(h, block + "ffn_up")
        if not self.axes["gated"]:
            return self._linear(activate(act, up), block + "ffn_down")
        gate, up = (
            (self._linear(h, block + "ffn_gate"), up)
            if block + "ffn_gate.weight" in self.tensors
            else np.split(up, 2, axis=1)
        )
        return self._linear(activate(act, gate) * up, block + "ffn_down")

    def _experts(self, block: str, h: np.ndarray) -> np.ndarray:
        gate, up, down = (self.tensors[f"{block}ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
        act = self.axes["act"]
        out = np.zeros_like(h)
        if block + "ffn_up_shexp.weight" in self.tensors:
            shared = activate(act, self._linear(h, block + "ffn_gate_shexp")) * self._linear(h, block + "ffn_up_shexp")
            out = self._linear(shared, block + "ffn_down_shexp")
        for row in range(len(h)):
            for expert, weight in self._route(block, h[row]):
                hidden = activate(act, gate[expert] @ h[row]) * (up[expert] @ h[row])
                out[row] += weight * (down[expert] @ hidden)
        return out

    def _route(self, block: str, h: np.ndarray) -> list[tuple[int, float]]:
        """The experts of one row and their weights."""
        used = self.key("expert_used_count")
        logits = self.tensors[block + "ffn_gate_inp.weight"] @ h
        if self.key("expert_gating_func", self.axes.get("gating", 1)) == 1:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        else:
            scores = 1 / (1 + np.exp(-logits))
        ranks = scores + self.tensors.get(block + "exp_probs_b.bias", 0.0)
        groups = self.key("expert_group_count", 1)
        if groups > 1:
            parts = ranks.reshape(groups, -1)
            best_two = np.sort(parts, axis=1)[:, -2:].sum(axis=1)
            kept = np.argsort(-best_two, kind="stable")[: self.key("expert_group_used_count")]
            ranks = np.where(np.isin(np.arange(groups), kept)[:, None], parts, -np.inf).ravel()
        chosen = np.argsort(-ranks, kind="stable")[:used]
        weights = scores[chosen]
        if self.key("expert_weights_norm", self.axes.get("renormalise", False)):
            weights = weights / weights.sum()
        weights = weights * self.key("expert_weights_scale", 1.0)
        return list(zip(chosen.tolist(), weights.tolist(), strict=True))

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.tensors[name + ".weight"].T
        return y + self.tensors[name + ".bias"] if name + ".bias" in self.tensors else y

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """The norm of the last axis; x itself where the file has no such norm."""
        if name + ".weight" not in self.tensors:
            return x
        if self.axes["norm"] == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
            eps = self.key("attention.layer_norm_epsilon")
        else:
            eps = self.key("attention.layer_norm_rms_epsilon")
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * self.tensors[name + ".weight"]
        return x + self.tensors.get(name + ".bias", 0.0)

    def _rotate(self, x: np.ndarray, positions: np.ndarray, local: bool) -> np.ndarray:
        """Rotary positions over [length, heads, head_dim]."""
        if self.axes["rope"] is None:
            return x
        dims = self.key("rope.dimension_count", x.shape[-1])
        half = dims // 2
        base = self.key("rope.freq_base", 10000.0)
        base = self.key("rope.freq_base_swa", base) if local else base
        frequencies = base ** (-2.0 * np.arange(half) / dims) / self.tensors.get("rope_freqs.weight", 1.0)
        frequencies, magnitude = self._scale(frequencies, base, dims)
        angles = positions[:, None] * frequencies
        cos, sin = np.cos(angles)[:, None] * magnitude, np.sin(angles)[:, None] * magnitude
        if self.axes["rope"] == "interleaved":
            first, second = np.s_[..., 0:dims:2], np.s_[..., 1:dims:2]
        else:
            first, second = np.s_[..., :half], np.s_[..., half:dims]
        out = x.copy()
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
        return out

    def _scale(self, frequencies: np.ndarray, base: float, dims: int) -> tuple[np.ndarray, float]:
        """Linear scaling, or YaRN (arXiv:2309.00071): blend by how often a frequency turns in the original context."""
        factor = self.key("rope.scaling.factor", 1.0)
        if self.key("rope.scaling.type", "none") != "yarn":
            return frequencies / factor, 1.0
        length = self.key("rope.scaling.original_context_length")
        turns = [self.key("rope.scaling.yarn_beta_fast", 32.0), self.key("rope.scaling.yarn_beta_slow", 1.0)]
        fast, slow = (dims * np.log(length / (n * 2 * np.pi)) / (2 * np.log(base)) for n in turns)
        low, high = max(np.floor(fast), 0), min(np.ceil(slow), dims - 1)
        divided = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
        log_multiplier = self.key("rope.scaling.yarn_log_multiplier", 0.0)
        magnitude = (0.1 * np.log(factor) + 1) / (0.1 * log_multiplier * np.log(factor) + 1)
        return frequencies * (1 - divided) + frequencies / factor * divided, magnitude


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
