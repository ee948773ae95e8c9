"""Qwen3-MoE, and SDAR-30B on it: Qwen3's attention, a mixture of experts in every layer, softmax over all experts
before the best are chosen, their weights made to sum to 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from . import qwen3
from .experts import EXPERT_ROWS, add_experts
from .family import Config, Description


def describe(
    config: Config, shapes: Mapping[str, tuple[int, ...]], normalised_where_absent: bool = False
) -> Description:
    config.expect("norm_topk_prob", (True,), normalised_where_absent)
    config.expect("decoder_sparse_step", (1,), 1)
    config.expect("mlp_only_layers", ([],), [])
    return add_experts(qwen3.describe(config, shapes), config, "moe_intermediate_size", normalised=True)


FAMILY = dataclasses.replace(
    qwen3.FAMILY,
    model_types={"qwen3_moe": None, "sdar_moe": "sdar"},
    arch="qwen3moe",
    layer_rows=qwen3.ATTENTION_ROWS + qwen3.QK_NORM + EXPERT_ROWS,
    describe=describe,
)
