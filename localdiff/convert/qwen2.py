"""Qwen2, and Fast-dLLM v2 and Open-dCoder on it: Llama's body with biases on q, k and v, and with the rows of Q and K
left in half-split order.

Sliding-window variants are refused: their windows differ by layer and the files have no key for that.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import llama
from .family import Config, Description, Family


def refuse_windows(config: Config) -> None:
    config.expect("use_sliding_window", (False,), False)
    if "sliding_attention" in config.value("layer_types", ()):
        raise config.refuse("layer_types names sliding_attention, which is not supported; supported: full_attention")


def describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    refuse_windows(config)
    return llama.describe_body(config, ("linear",))


FAMILY = Family(
    model_types={"qwen2": None, "Fast_dLLM_Qwen": "fdv2", "a2d-qwen2": "a2d"},
    arch="qwen2",
    embedding=llama.BODY_EMBEDDING,
    rows=llama.BODY_ROWS,
    layer_rows=llama.attention_rows(reorder=False, bias_optional=False) + llama.FFN_ROWS,
    dropped=llama.BODY_DROPPED,
    describe=describe,
)
