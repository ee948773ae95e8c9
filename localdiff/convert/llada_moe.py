"""LLaDA-MoE: Qwen3's attention, a mixture of experts in every layer; the weights of the chosen experts are left as the
softmax gives them. Published checkpoints share LLaDA's model_type and are told by their class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from . import llama, qwen3
from .experts import EXPERT_ROWS, add_experts
from .family import Config, Description


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    for name, allowed, absent in (
        ("attention_bias", (False,), False),
        ("qk_layernorm", (True,), None),
        ("clip_qkv", (None,), None),
        ("head_dim", (None,), None),
        ("shared_expert_intermediate_size", (None, 0), None),
        ("moe_router_score_function", (None, "softmax"), None),
        ("moe_router_enable_expert_bias", (None, False), None),
        ("norm_topk_prob", (None, False), None),
        ("routed_scaling_factor", (1, 1.0), 1),
        ("router_num_group", (None, 0, 1, -2), None),
        ("router_topk_group", (None, 0, 1, -2), None),
    ):
        config.expect(name, allowed, absent)
    layers = config.integer("num_hidden_layers")
    config.expect("moe_layer_freq", ([1] * layers, 1), 1)
    width = "dense_intermediate_size" if config.value("dense_intermediate_size") else "expert_intermediate_size"
    body = llama.describe_body(config, ("linear",), llama.read_shape(config, ffn=width))
    return add_experts(body, config, "expert_intermediate_size", normalised=False)


FAMILY = dataclasses.replace(
    qwen3.FAMILY,
    model_types={"lladamoe": "llada-moe"},
    architectures={"LLaDAMoEModel": "llada-moe", "LLaDAMoEModelLM": "llada-moe"},
    arch="llada-moe",
    layer_rows=qwen3.ATTENTION_ROWS + qwen3.QK_NORM + EXPERT_ROWS,
    describe=_describe,
)
