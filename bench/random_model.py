"""Llama-shaped GGUF files of any size with random weights, for measuring growth and counting instructions.

Same arguments, same bytes. No tokenizer is inside. Weights are made as float32 and quantised, which takes long for
large shapes; random_blocks() makes matrices of any type and size at once, whose logits mean nothing and are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
Matrix = Callable[[str, int, int], tuple[gguf.GGMLQuantizationType, Any]]  # name, rows, columns: its type and bytes


@dataclass(frozen=True)
class Shape:
    """dim is a multiple of head_dim; where `shared`, four heads share keys and values if that divides."""

    layers: int = 4
    dim: int = 512
    vocab: int = 2048
    context: int = 1024
    head_dim: int = 64
    ffn_dim: int = 0  # 0 = about 11 / 4 of dim
    shared: bool = True

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.heads // 4 if self.shared and self.heads % 4 == 0 else self.heads

    @property
    def ffn(self) -> int:
        return self.ffn_dim or self.dim * 11 // 4 // 32 * 32

    @property
    def block_weights(self) -> int:
        return self.layers * self.dim * (2 * self.dim + 2 * self.kv_heads * self.head_dim + 3 * self.ffn)


LLAMA_7B = Shape(layers=32, dim=4096, vocab=32000, context=4096, head_dim=128, ffn_dim=11008, shared=False)

# Where the float16 scales of a block lie and about how far its integers reach, by type; others: at 0, 8.
_SCALES = {
    "Q2_K": ((80, 82), 24), "Q3_K": ((108,), 64), "Q4_K": ((0, 2), 256), "Q5_K": ((0, 2), 512), "Q6_K": ((208,), 2048),
    "Q4_1": ((0, 2), 8), "Q5_1": ((0, 2), 16), "Q8_0": ((0,), 64), "IQ4_NL": ((0,), 64), "IQ4_XS": ((0,), 2048),
}  # fmt: skip


def random_blocks(kind: str) -> Matrix:
    """Matrices of random bytes with scales that make values about 1 / sqrt(columns) large.

    kind   a tensor type as in GGUF, or Q4_K_M: Q4_K, with Q6_K for the head and half of attn_v and ffn_down. Matrices
           of one type and shape share their bytes, so a file of any size is made in little memory.
    """
    made: dict[tuple[str, int, int], Any] = {}

    def matrix(name: str, rows: int, columns: int) -> tuple[gguf.GGMLQuantizationType, Any]:
        type_ = kind
        if kind == "Q4_K_M":
            half = name.endswith(("attn_v", "ffn_down")) and int(name.split(".")[1]) % 2 == 0
            type_ = "Q6_K" if half or name == "output" else "Q4_K"
        key = type_, rows, columns
        if key not in made:
            made[key] = _blocks(*key, seed=len(made))
        return gguf.GGMLQuantizationType[type_], made[key]

    return matrix


def _blocks(kind: str, rows: int, columns: int, seed: int) -> Any:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(seed).integers(0, 256, (rows * columns // values, size), np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = 120
        return blocks.reshape(rows, -1)
    places, reach = _SCALES.get(kind, ((0,), 8))
    scale = np.frombuffer(np.float16(columns**-0.5 / reach).tobytes(), np.uint8)
    for at in places:
        blocks[:, at : at + 2] = scale
    return blocks.reshape(rows, -1)


def _quantised(kind: str) -> Matrix:
    random, type_ = np.random.default_rng(1), gguf.GGMLQuantizationType[kind]

    def matrix(name: str, rows: int, columns: int) -> tuple[gguf.GGMLQuantizationType, Any]:
        return type_, quantize(random.standard_normal((rows, columns), np.float32) * 0.02, type_)

    return matrix


def write_random_model(to: Path, shape: Shape, kind: str = "Q4_0", make: Matrix | None = None) -> None:
    """Write the file; kind is one of FILE_TYPES and holds for every matrix, unless `make` makes them."""
    make_matrix = make or _quantised(kind)
    writer = gguf.GGUFWriter(str(to), "llama")
    writer.add_name(f"random {shape.layers} x {shape.dim}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    if make is None:
        writer.add_file_type(FILE_TYPES[kind])

    def matrix(name: str, rows: int, columns: int) -> None:
        type_, data = make_matrix(name, rows, columns)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=type_)

    matrix("token_embd", shape.vocab, shape.dim)
    matrix("output", shape.vocab, shape.dim)
    writer.add_tensor("output_norm.weight", np.ones(shape.dim, np.float32))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(shape.dim, np.float32))
        matrix(f"{block}attn_q", shape.dim, shape.dim)
        matrix(f"{block}attn_k", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(f"{block}attn_v", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(f"{block}attn_output", shape.dim, shape.dim)
        matrix(f"{block}ffn_gate", shape.ffn, shape.dim)
        matrix(f"{block}ffn_up", shape.ffn, shape.dim)
        matrix(f"{block}ffn_down", shape.dim, shape.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
