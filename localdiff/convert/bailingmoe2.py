"""LLaDA2.0 and 2.1, and Ling 2.0 below them: fused QKV, norms on Q and K, rotation of a part of each head, leading
dense layers, then experts chosen by sigmoid scores plus a bias, among the best groups, beside a shared expert.

The bias serves the choice only; the weights are the scores without it, made to sum to 1 and scaled.
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf

from . import llama
from .experts import EXPERT_ROWS, add_experts
from .family import MAX_LAYERS, Config, Description, Family, Row


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    for name, allowed, absent in (
        ("use_qk_norm", True, True),
        ("use_qkv_bias", False, False),
        ("use_bias", False, True),
        ("use_rmsnorm", True, True),
        ("norm_head", False, False),
        ("norm_topk_prob", True, True),
        ("score_function", "sigmoid", "sigmoid"),
        ("use_sliding_window", False, False),
        ("num_nextn_predict_layers", 0, 0),
    ):
        config.expect(name, (allowed,), absent)
    rotated = llama.rope_settings(config).real("partial_rotary_factor", config.real("partial_rotary_factor", 0.5))
    body = llama.describe_body(config, (), rotated=rotated)
    description = add_experts(body, config, "moe_intermediate_size", normalised=True)
    sizes, keys = description.sizes, description.keys
    if keys["expert_used_count"] < 2:
        raise config.refuse("num_experts_per_tok is 1, expected 2 or more: one expert's weight would not be normalised")
    dense, shared = config.value("first_k_dense_replace", 0), config.value("num_shared_experts", 0)
    for name, value, most in (("first_k_dense_replace", dense, MAX_LAYERS), ("num_shared_experts", shared, 64)):
        if value:
            config.integer(name, most=most)
    sizes["dense"] = min(dense, sizes["layers"])
    sizes["qkv"] = sizes["q"] + 2 * sizes["kv"]
    sizes["shared_layers"] = sizes["dense"] if shared else sizes["layers"]  # the first layer with a shared expert
    sizes["shared_ffn"] = shared * sizes["expert_ffn"]
    config.expect("moe_shared_expert_intermediate_size", (sizes["shared_ffn"],), sizes["shared_ffn"])
    groups = config.integer("n_group", 1, most=sizes["experts"])
    if sizes["experts"] % groups:
        raise config.refuse(f"n_group is {groups}, expected a divisor of the {sizes['experts']} experts")
    keys |= {
        "attention.key_length": sizes["head_dim"],
        "attention.value_length": sizes["head_dim"],
        "leading_dense_block_count": sizes["dense"],
        "expert_shared_count": shared,
        "expert_shared_feed_forward_length": sizes["expert_ffn"],  # of each
        "expert_group_count": groups,
        "expert_group_used_count": config.integer("topk_group", groups, most=groups),
        "expert_gating_func": int(gguf.ExpertGatingFuncType.SIGMOID),
        "expert_weights_scale": config.real("routed_scaling_factor", 1.0),
    }
    return description


FAMILY = Family(
    model_types={"llada2_moe": "llada2", "llada21_moe": "llada2", "bailing_moe_v2": None},
    architectures={"BailingMoeV2ForCausalLM": None},  # whose model_type is that of Ling 1, another body
    arch="bailingmoe2",
    embedding=("word_embeddings.weight",),
    rows=llama.BODY_ROWS,
    layer_rows=(
        Row("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("dim",)),
        Row("layers.{i}.attention.query_key_value.weight", "blk.{i}.attn_qkv.weight", ("qkv", "dim")),
        Row("layers.{i}.attention.query_layernorm.weight", "blk.{i}.attn_q_norm.weight", ("head_dim",)),
        Row("layers.{i}.attention.key_layernorm.weight", "blk.{i}.attn_k_norm.weight", ("head_dim",)),
        Row("layers.{i}.attention.dense.weight", "blk.{i}.attn_output.weight", ("dim", "q")),
        llama.FFN_NORM,
        Row("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ffn", "dim"), until="dense"),
        Row("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ffn", "dim"), until="dense"),
        Row("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("dim", "ffn"), until="dense"),
        *EXPERT_ROWS,
        Row("layers.{i}.mlp.gate.expert_bias", "blk.{i}.exp_probs_b.bias", ("experts",), since="dense"),
        *(
            Row(
                f"layers.{{i}}.mlp.shared_experts.{part}_proj.weight",
                f"blk.{{i}}.ffn_{part}_shexp.weight",
                shape,
                since="shared_layers",
            )
            for part, shape in (
                ("gate", ("shared_ffn", "dim")),
                ("up", ("shared_ffn", "dim")),
                ("down", ("dim", "shared_ffn")),
            )
        ),
    ),
    dropped=llama.BODY_DROPPED,
    describe=_describe,
)
