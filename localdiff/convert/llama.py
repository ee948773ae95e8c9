"""Llama and what shares its shape: RMSNorm, gated FFN, grouped-query attention, rotary positions.

llama.cpp's `llama` files hold the rows of Q and K in interleaved-RoPE order, so both are reordered here. Biases are
carried where present. Llama 3's frequency scaling becomes the tensor rope_freqs.weight. `describe_body` and `body_rows`
serve the families that differ only in biases and row order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .family import MAX_LAYERS, Change, Config, Description, Family, FloatArray, Row, Sizes
from .rope import interleaved_rows


def describe_body(config: Config, scalings: tuple[str, ...]) -> Description:
    """`scalings` names the kinds of RoPE scaling that files of the architecture can express."""
    config.expect("hidden_act", ("silu", "swish"), "silu")
    dim, layers = config.integer("hidden_size"), config.integer("num_hidden_layers", most=MAX_LAYERS)
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refuse(f"num_key_value_heads is {kv_heads}, expected a divisor of the {heads} heads")
    if config.value("head_dim") is None and dim % heads:
        raise config.refuse(f"hidden_size is {dim}, expected a multiple of the {heads} heads")
    head_dim = config.integer("head_dim", dim // heads)
    if head_dim % 2:
        raise config.refuse(f"the head dimension is {head_dim}, expected an even number for rotary positions")
    ffn = config.integer("intermediate_size")
    keys: dict[str, Any] = {
        "context_length": config.integer("max_position_embeddings"),
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", 1e-6),
        "rope.dimension_count": head_dim,
    }
    if head_dim * heads != dim:
        keys["attention.key_length"] = keys["attention.value_length"] = head_dim
    sizes = {"layers": layers, "dim": dim, "ffn": ffn, "heads": heads, "kv_heads": kv_heads}
    sizes |= {"q": heads * head_dim, "kv": kv_heads * head_dim}
    extra = _rope(config, head_dim, keys, scalings)
    return Description(sizes, keys, tied=config.flag("tie_word_embeddings", False), extra=extra)


def _rope(config: Config, head_dim: int, keys: dict[str, Any], scalings: tuple[str, ...]) -> dict[str, FloatArray]:
    """Add the rotary keys; returns rope_freqs.weight where the scaling needs one.

    Older checkpoints have `rope_theta` and `rope_scaling`, newer ones both in `rope_parameters`.
    """
    scaling = config.section("rope_parameters") or config.section("rope_scaling") or Config({}, "")
    theta = scaling.real("rope_theta", config.real("rope_theta", 10000.0))
    keys["rope.freq_base"] = theta
    scaling.expect("partial_rotary_factor", (1, 1.0), config.value("partial_rotary_factor", 1.0))
    kind = scaling.value("rope_type", scaling.value("type", "default"))
    if kind == "default":
        return {}
    if kind not in scalings:
        known = ", ".join(("default", *scalings))
        raise config.refuse(f"RoPE scaling '{kind}' is not supported for this architecture; supported: {known}")
    if kind == "linear":
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = scaling.real("factor")
        return {}
    return {"rope_freqs.weight": llama3_factors(scaling, theta, head_dim)}


def llama3_factors(scaling: Config, theta: float, head_dim: int) -> FloatArray:
    """The divisor of each rotary frequency, [head_dim / 2]: 1 for short waves, `factor` for long ones, between them
    the reciprocal of a linear mix of both reciprocals (Llama 3.1's rule)."""
    factor, low, high = scaling.real("factor"), scaling.real("low_freq_factor"), scaling.real("high_freq_factor")
    if high <= low:
        raise scaling.refuse(f"high_freq_factor is {high:g}, expected more than low_freq_factor, {low:g}")
    trained = scaling.integer("original_max_position_embeddings")
    turns = trained * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: FloatArray = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def body_rows(reorder_q: Change | None, reorder_k: Change | None, qkv_bias_optional: bool) -> tuple[Row, ...]:
    return (
        Row("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("dim",)),
        Row("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", ("q", "dim"), reorder_q),
        Row("layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", ("q",), reorder_q, qkv_bias_optional),
        Row("layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", ("kv", "dim"), reorder_k),
        Row("layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", ("kv",), reorder_k, qkv_bias_optional),
        Row("layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", ("kv", "dim")),
        Row("layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", ("kv",), None, qkv_bias_optional),
        Row("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("dim", "q")),
        Row("layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", ("dim",), optional=True),
        Row("layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", ("dim",)),
        Row("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ffn", "dim")),
        Row("layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", ("ffn",), optional=True),
        Row("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ffn", "dim")),
        Row("layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", ("ffn",), optional=True),
        Row("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("dim", "ffn")),
        Row("layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", ("dim",), optional=True),
    )


def _interleave_q(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return interleaved_rows(tensor, sizes["heads"])


def _interleave_k(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return interleaved_rows(tensor, sizes["kv_heads"])


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    return describe_body(config, ("linear", "llama3"))


BODY_EMBEDDING = ("embed_tokens.weight",)
BODY_ROWS = (Row("norm.weight", "output_norm.weight", ("dim",)),)
BODY_DROPPED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq")  # recomputed from the base

FAMILY = Family(
    model_type="llama",
    arch="llama",
    embedding=BODY_EMBEDDING,
    rows=BODY_ROWS,
    layer_rows=body_rows(_interleave_q, _interleave_k, qkv_bias_optional=True),
    dropped=BODY_DROPPED,
    describe=_describe,
)
