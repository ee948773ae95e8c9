"""Qwen2: Llama's body with biases on q, k and v, and with the rows of Q and K left in half-split order.

Sliding-window variants are refused: their windows differ by layer and the files have no key for that.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import llama
from .family import Config, Description, Family


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    config.expect("use_sliding_window", (False,), False)
    if "sliding_attention" in config.value("layer_types", ()):
        raise config.refuse("layer_types names sliding_attention, which is not supported; supported: full_attention")
    return llama.describe_body(config, ("linear",))


FAMILY = Family(
    model_type="qwen2",
    arch="qwen2",
    embedding=llama.BODY_EMBEDDING,
    rows=llama.BODY_ROWS,
    layer_rows=llama.body_rows(None, None, qkv_bias_optional=False),
    dropped=llama.BODY_DROPPED,
    describe=_describe,
)
