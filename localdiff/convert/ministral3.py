"""Ministral 3: Llama's body with YaRN, and queries that grow with the logarithm of how often the original context is
passed. As in llama.cpp's `mistral3` files the rows of Q and K are in interleaved-RoPE order."""

from __future__ import annotations

from collections.abc import Mapping

from . import llama
from .family import Config, Description, Family


def describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    config.expect("sliding_window", (None,), None)
    description = llama.describe_body(config, ("yarn",))
    beta = llama.rope_settings(config).value("llama_4_scaling_beta")
    if beta:
        if description.keys.get("rope.scaling.type") != "yarn":
            raise config.refuse("llama_4_scaling_beta is set without YaRN, whose original context it counts in")
        description.keys["attention.temperature_scale"] = llama.rope_settings(config).real("llama_4_scaling_beta")
    return description


FAMILY = Family(
    model_types={"ministral3": None},
    arch="mistral3",
    embedding=llama.BODY_EMBEDDING,
    rows=llama.BODY_ROWS,
    layer_rows=llama.attention_rows(reorder=True, bias_optional=True) + llama.FFN_ROWS,
    dropped=llama.BODY_DROPPED,
    describe=describe,
)
