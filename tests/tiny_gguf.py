"""A tiny random llama as a GGUF file, written by the gguf package: text tests of the command line need no torch."""

from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
from gguf_values import add_values, finish
from text_metadata import tiny_bpe

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"


def write_tiny(
    path: Path, *, record: bool = True, arch: str = "llama", context: int = 64, dim: int = 32, layers: int = 1,
    kind: str = "F32", name: str = "tiny", text: dict[str, Any] | None = None, **metadata: Any,
) -> Path:  # fmt: skip
    """Write a model with matrices of one type.

    record   with a diffusion record whose mask is the tokenizer's
    text     the keys of its tokenizer; None: a tiny BPE, changed by `metadata`
    """
    ffn, heads = 2 * dim, 2
    text = tiny_bpe(**metadata) if text is None else dict(text)
    vocab = len(text["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // heads)
    if not record:
        text.pop("tokenizer.ggml.mask_token_id", None)
    add_values(writer, text)
    if record:
        writer.add_bool("diffusion.shift_logits", False)
        writer.add_array("localdiff.stop_token_ids", [261])
    draw = np.random.default_rng(0).standard_normal
    shapes = {"token_embd.weight": (vocab, dim), "output_norm.weight": (dim,), "output.weight": (vocab, dim)}
    for name, shape in {
        "attn_norm": (dim,), "attn_q": (dim, dim), "attn_k": (dim, dim), "attn_v": (dim, dim),
        "attn_output": (dim, dim), "ffn_norm": (dim,), "ffn_gate": (ffn, dim), "ffn_up": (ffn, dim),
        "ffn_down": (dim, ffn),
    }.items():  # fmt: skip
        shapes.update({f"blk.{layer}.{name}.weight": shape for layer in range(layers)})
    matrices = gguf.GGMLQuantizationType[kind]
    for name, shape in shapes.items():
        values = draw(shape, np.float32) * np.float32(0.3)
        if len(shape) == 1:
            writer.add_tensor(name, values + 1)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, matrices), raw_dtype=matrices)
    finish(writer)
    return path
