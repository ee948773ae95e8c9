"""LLaDA, LLaDA-1.5 and iLLaDA: Llama's body under the names of its own configuration and modules.

As in llama.cpp's `llada` files the rows of Q and K are in interleaved-RoPE order. `ff_proj` is the gate, the last
`ff_out` the head. iLLaDA is told by its tied head over grouped keys; its mask token is another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from . import llama
from .family import MAX_LAYERS, Config, Description, Family, Row

_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_BIASED = ("q_proj", "k_proj", "v_proj")  # with include_qkv_bias


def _rows() -> tuple[Row, ...]:
    """Llama's rows with LLaDA's names."""
    rows = []
    for row in llama.attention_rows(reorder=True, bias_optional=True) + llama.FFN_ROWS:
        theirs, _, part = row.source.removeprefix("layers.{i}.").rpartition(".")
        if part == "weight" or _MODULES[theirs] in _BIASED:
            rows.append(dataclasses.replace(row, source=f"blocks.{{i}}.{_MODULES[theirs]}.{part}"))
    return tuple(rows)


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    for name, allowed, absent in (
        ("activation_type", "silu", None),
        ("block_type", "llama", None),
        ("block_group_size", 1, 1),
        ("layer_norm_type", "rms", None),
        ("layer_norm_with_affine", True, True),
        ("rope", True, False),
        ("alibi", False, False),
        ("attention_layer_norm", False, False),
        ("input_emb_norm", False, False),
        ("include_bias", False, False),
        ("bias_for_layer_norm", False, False),
        ("scale_logits", False, False),
        ("multi_query_attention", False, False),
        ("clip_qkv", None, None),
    ):
        config.expect(name, (allowed,), absent)
    dim, heads = config.integer("d_model"), config.integer("n_heads")
    if dim % heads:
        raise config.refuse(f"d_model is {dim}, expected a multiple of the {heads} heads")
    shape = llama.Shape(
        dim=dim,
        layers=config.integer("n_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=config.integer("n_kv_heads", heads),
        head_dim=dim // heads,
        ffn=config.integer("mlp_hidden_size"),
        context=config.integer("max_sequence_length"),
        eps=config.real("rms_norm_eps", 1e-5),
    )
    description = llama.describe_body(config, (), shape)
    tied = config.flag("weight_tying", True)
    preset = "illada" if tied and shape.kv_heads < shape.heads else None
    return dataclasses.replace(description, tied=tied, preset=preset)


FAMILY = Family(
    model_types={"llada": "llada", "fastdllm_llada": "llada"},
    arch="llada",
    embedding=("wte.weight",),
    rows=(Row("ln_f.weight", "output_norm.weight", ("dim",)),),
    layer_rows=_rows(),
    dropped=(),
    describe=_describe,
    heads=("ff_out.weight",),
)
