"""Llama-shaped GGUF files of any size with random weights, for measuring growth and counting instructions.

Same arguments, same bytes. No tokenizer is inside. Not for large shapes: weights are made as float32 and quantised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
HEAD_DIM = 64


@dataclass(frozen=True)
class Shape:
    """dim is a multiple of 64, the size of a head; four heads share keys and values where that divides."""

    layers: int = 4
    dim: int = 512
    vocab: int = 2048
    context: int = 1024

    @property
    def heads(self) -> int:
        return self.dim // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return self.heads // 4 if self.heads % 4 == 0 else self.heads

    @property
    def ffn(self) -> int:
        return self.dim * 11 // 4 // 32 * 32

    @property
    def block_weights(self) -> int:
        return self.layers * self.dim * (2 * self.dim + 2 * self.kv_heads * HEAD_DIM + 3 * self.ffn)


def write_random_model(to: Path, shape: Shape, kind: str = "Q4_0") -> None:
    """Write the file; kind is one of FILE_TYPES and holds for every matrix."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(to), "llama")
    writer.add_name(f"random {shape.layers} x {shape.dim}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(FILE_TYPES[kind])

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns), np.float32) * 0.02
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", quantize(weights, type_), raw_dtype=type_)

    matrix("token_embd", shape.vocab, shape.dim)
    matrix("output", shape.vocab, shape.dim)
    writer.add_tensor("output_norm.weight", np.ones(shape.dim, np.float32))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(shape.dim, np.float32))
        matrix(f"{block}attn_q", shape.dim, shape.dim)
        matrix(f"{block}attn_k", shape.kv_heads * HEAD_DIM, shape.dim)
        matrix(f"{block}attn_v", shape.kv_heads * HEAD_DIM, shape.dim)
        matrix(f"{block}attn_output", shape.dim, shape.dim)
        matrix(f"{block}ffn_gate", shape.ffn, shape.dim)
        matrix(f"{block}ffn_up", shape.ffn, shape.dim)
        matrix(f"{block}ffn_down", shape.dim, shape.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
