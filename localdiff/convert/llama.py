"""Llama and what shares its shape: RMSNorm, gated FFN, grouped-query attention, rotary positions.

llama.cpp's `llama` files hold the rows of Q and K in interleaved-RoPE order, so both are reordered here. Biases are
carried where present. Llama 3's frequency scaling becomes the tensor rope_freqs.weight. Stable-DiffCoder and DiffuLLaMA
are plain Llama checkpoints. `describe_body`, `attention_rows` and FFN_ROWS serve the families of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .family import MAX_LAYERS, Config, Description, Family, FloatArray, Row, Sizes
from .rope import interleaved_rows


class Shape(NamedTuple):
    """The numbers of a body, whatever its config.json calls them."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    eps: float


def read_shape(config: Config, ffn: str = "intermediate_size") -> Shape:
    config.expect("hidden_act", ("silu", "swish"), "silu")
    dim, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if config.value("head_dim") is None and dim % heads:
        raise config.refuse(f"hidden_size is {dim}, expected a multiple of the {heads} heads")
    return Shape(
        dim=dim,
        layers=config.integer("num_hidden_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", dim // heads),
        ffn=config.integer(ffn),
        context=config.integer("max_position_embeddings"),
        eps=config.real("rms_norm_eps", 1e-6),
    )


def describe_body(
    config: Config, scalings: tuple[str, ...], shape: Shape | None = None, rotated: float = 1.0
) -> Description:
    """scalings   the kinds of RoPE scaling that files of the architecture can express
    shape      of the body, where config.json does not use the usual names
    rotated    the share of a head that is rotated, which config.json may state
    """
    s = shape or read_shape(config)
    if s.heads % s.kv_heads:
        raise config.refuse(f"num_key_value_heads is {s.kv_heads}, expected a divisor of the {s.heads} heads")
    rope_dims = int(s.head_dim * rotated)
    if rope_dims % 2 or not rope_dims:
        what = "the head dimension" if rotated == 1 else "the rotated part of a head"
        raise config.refuse(f"{what} is {rope_dims}, expected an even number for rotary positions")
    keys: dict[str, Any] = {
        "context_length": s.context,
        "embedding_length": s.dim,
        "block_count": s.layers,
        "feed_forward_length": s.ffn,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.layer_norm_rms_epsilon": s.eps,
        "rope.dimension_count": rope_dims,
    }
    if s.head_dim * s.heads != s.dim:
        keys["attention.key_length"] = keys["attention.value_length"] = s.head_dim
    sizes = {"layers": s.layers, "dim": s.dim, "ffn": s.ffn, "heads": s.heads, "kv_heads": s.kv_heads}
    sizes |= {"q": s.heads * s.head_dim, "kv": s.kv_heads * s.head_dim, "head_dim": s.head_dim}
    extra = _rope(config, rope_dims, keys, scalings, rotated)
    return Description(sizes, keys, tied=config.flag("tie_word_embeddings", False), extra=extra)


def rope_settings(config: Config) -> Config:
    """Older checkpoints have `rope_theta` and `rope_scaling`, newer ones both in `rope_parameters`."""
    return config.section("rope_parameters") or config.section("rope_scaling") or Config({}, "")


def _rope(
    config: Config, rope_dims: int, keys: dict[str, Any], scalings: tuple[str, ...], rotated: float
) -> dict[str, FloatArray]:
    """Add the rotary keys; returns rope_freqs.weight where the scaling needs one."""
    scaling = rope_settings(config)
    theta = scaling.real("rope_theta", config.real("rope_theta", 10000.0))
    keys["rope.freq_base"] = theta
    scaling.expect("partial_rotary_factor", (rotated,), config.value("partial_rotary_factor", rotated))
    kind = scaling.value("rope_type", scaling.value("type", "default"))
    if kind == "default":
        return {}
    if kind not in scalings:
        known = ", ".join(("default", *scalings))
        raise config.refuse(f"RoPE scaling '{kind}' is not supported for this architecture; supported: {known}")
    if kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(scaling, theta, rope_dims)}
    keys["rope.scaling.type"] = kind
    keys["rope.scaling.factor"] = scaling.real("factor")
    if kind == "yarn":
        keys.update(_yarn(scaling))
    return {}


def _yarn(scaling: Config) -> dict[str, Any]:
    """The keys of YaRN beyond the factor. Files say the magnitude of rotated values by one number: without
    yarn_log_multiplier it is 0.1 ln(factor) + 1, with it that divided by 0.1 * multiplier * ln(factor) + 1."""
    scaling.expect("truncate", (True,), True)
    for name in ("attention_factor", "attn_factor", "extrapolation_factor"):
        scaling.expect(name, (None,), None)
    keys: dict[str, Any] = {
        "rope.scaling.original_context_length": scaling.integer("original_max_position_embeddings"),
        "rope.scaling.yarn_beta_fast": scaling.real("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": scaling.real("beta_slow", 1.0),
    }
    if scaling.value("mscale_all_dim"):
        scaling.expect("mscale", (1, 1.0), None)
        keys["rope.scaling.yarn_log_multiplier"] = scaling.real("mscale_all_dim")
    return keys


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


def attention_rows(reorder: bool, bias_optional: bool) -> tuple[Row, ...]:
    """`reorder`: files of the architecture hold Q and K in interleaved-RoPE order."""
    q, k = (_interleave_q, _interleave_k) if reorder else (None, None)
    return (
        Row("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("dim",)),
        Row("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", ("q", "dim"), q),
        Row("layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", ("q",), q, bias_optional),
        Row("layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", ("kv", "dim"), k),
        Row("layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", ("kv",), k, bias_optional),
        Row("layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", ("kv", "dim")),
        Row("layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", ("kv",), None, bias_optional),
        Row("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("dim", "q")),
        Row("layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", ("dim",), optional=True),
        FFN_NORM,
    )


def _interleave_q(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return interleaved_rows(tensor, sizes["heads"])


def _interleave_k(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return interleaved_rows(tensor, sizes["kv_heads"])


FFN_NORM = Row("layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", ("dim",))
FFN_ROWS = (
    Row("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ffn", "dim")),
    Row("layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", ("ffn",), optional=True),
    Row("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ffn", "dim")),
    Row("layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", ("ffn",), optional=True),
    Row("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("dim", "ffn")),
    Row("layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", ("dim",), optional=True),
)
BODY_EMBEDDING = ("embed_tokens.weight",)
BODY_ROWS = (Row("norm.weight", "output_norm.weight", ("dim",)),)
BODY_DROPPED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq")  # recomputed from the base


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    return describe_body(config, ("linear", "llama3"))


FAMILY = Family(
    model_types={"llama": None, "a2d-llama": "a2d"},
    arch="llama",
    embedding=BODY_EMBEDDING,
    rows=BODY_ROWS,
    layer_rows=attention_rows(reorder=True, bias_optional=True) + FFN_ROWS,
    dropped=BODY_DROPPED,
    describe=_describe,
)
