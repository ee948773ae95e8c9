"""Qwen3, and on it SDAR, TraDo and the A2D models of dLLM: Qwen2's body with RMSNorm on the heads of Q and K, without
biases, with heads whose width need not be hidden_size / heads."""

from __future__ import annotations

from collections.abc import Mapping

from . import llama, qwen2
from .family import Config, Description, Family, Row

QK_NORM = (
    Row("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("head_dim",)),
    Row("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("head_dim",)),
)
# without biases: the architectures with norms on Q and K know none
ATTENTION_ROWS = tuple(
    row for row in llama.attention_rows(reorder=False, bias_optional=True) if not row.source.endswith(".bias")
)


def describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    config.expect("attention_bias", (False,), False)
    qwen2.refuse_windows(config)
    return llama.describe_body(config, ("linear",))


FAMILY = Family(
    model_types={"qwen3": None, "sdar": "sdar", "a2d-qwen3": "a2d"},
    arch="qwen3",
    embedding=llama.BODY_EMBEDDING,
    rows=llama.BODY_ROWS,
    layer_rows=ATTENTION_ROWS + QK_NORM + tuple(row for row in llama.FFN_ROWS if not row.optional),
    dropped=llama.BODY_DROPPED,
    describe=describe,
)
