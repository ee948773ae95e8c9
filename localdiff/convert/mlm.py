"""What the masked language models have in common: learned positions, embeddings that are normalised, attention with
biases everywhere, and a head of dense, activation, norm and the tied embedding with a bias of its own.

llama.cpp leaves the head out of its BERT files and has no names for it, so it reads no file that has one; here it is
mlm_dense, mlm_norm and output.bias. `localdiff.norm` says whether a layer normalises before (pre) or after
(post) its sublayers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import MAX_LAYERS, Config, Description, Row, layer_norm, linear

Shapes = Mapping[str, tuple[int, ...]]

EMBEDDING = ("embeddings.word_embeddings.weight",)
POSITIONS = Row(
    "embeddings.position_embeddings.weight", "position_embd.weight", ("positions", "dim"),
    lambda tensor, sizes: tensor[sizes["positions"] - sizes["context"] :], result=("context", "dim"),
)  # fmt: skip
TOKEN_TYPES = Row("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "dim"), exact=True)
EMBEDDING_NORM = layer_norm("embeddings.LayerNorm", "token_embd_norm")
DROPPED = (r"embeddings\.(position|token_type)_ids", r"pooler\.dense\.(weight|bias)")

# the sublayers of BERT and RoBERTa without their norms
LAYER = "encoder.layer.{i}"
ATTENTION = (
    *linear(f"{LAYER}.attention.self.query", "blk.{i}.attn_q", "dim", "dim"),
    *linear(f"{LAYER}.attention.self.key", "blk.{i}.attn_k", "dim", "dim"),
    *linear(f"{LAYER}.attention.self.value", "blk.{i}.attn_v", "dim", "dim"),
    *linear(f"{LAYER}.attention.output.dense", "blk.{i}.attn_output", "dim", "dim"),
)
FFN = (
    *linear(f"{LAYER}.intermediate.dense", "blk.{i}.ffn_up", "ffn", "dim"),
    *linear(f"{LAYER}.output.dense", "blk.{i}.ffn_down", "dim", "ffn"),
)
POST_NORM_LAYERS = (
    *ATTENTION,
    *layer_norm(f"{LAYER}.attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
    *FFN,
    *layer_norm(f"{LAYER}.output.LayerNorm", "blk.{i}.layer_output_norm"),
)


def head_rows(dense: str, norm: str, bias: tuple[str, ...]) -> tuple[Row, ...]:
    first, *others = bias
    return (
        *linear(dense, "mlm_dense", "dim", "dim"),
        *layer_norm(norm, "mlm_norm"),
        Row(first, "output.bias", ("vocab",), also=tuple(others)),
    )


def refuse_without_head(config: Config, shapes: Shapes, dense: str) -> None:
    if f"{dense}.weight" not in shapes:
        raise config.refuse(
            f"the checkpoint has no masked-LM head ({dense}.weight and what follows it), so it can read text but not "
            "write it; expected a ...ForMaskedLM checkpoint"
        )


def describe(config: Config, shapes: Shapes, order: str, first_position: int = 0) -> Description:
    """order            pre or post
    first_position   row of the position embedding that the first token uses; the rows before it are cut off
    """
    config.expect("hidden_act", ("gelu",), "gelu")
    config.expect("position_embedding_type", ("absolute",), "absolute")
    config.expect("is_decoder", (False,), False)
    config.expect("add_cross_attention", (False,), False)
    return body(
        config,
        order,
        dim=config.integer("hidden_size"),
        layers=config.integer("num_hidden_layers", most=MAX_LAYERS),
        heads=config.integer("num_attention_heads"),
        ffn=config.integer("intermediate_size"),
        eps=config.real("layer_norm_eps", 1e-12),
        types=config.integer("type_vocab_size", 2),
        positions=config.integer("max_position_embeddings"),
        first_position=first_position,
    )


def body(
    config: Config, order: str, *, dim: int, layers: int, heads: int, ffn: int, eps: float, types: int, positions: int,
    first_position: int,
) -> Description:  # fmt: skip
    if dim % heads:
        raise config.refuse(f"the width is {dim}, expected a multiple of the {heads} heads")
    if positions <= first_position:
        raise config.refuse(f"max_position_embeddings is {positions}, expected more than {first_position}")
    sizes = {"layers": layers, "dim": dim, "ffn": ffn, "types": types, "positions": positions}
    sizes["context"] = positions - first_position
    keys: dict[str, Any] = {
        "context_length": sizes["context"],
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": eps,
        "attention.causal": False,
    }
    facts: dict[str, Any] = {"localdiff.norm": order, "localdiff.head": "mlm"}
    if types:
        facts["tokenizer.ggml.token_type_count"] = types
    return Description(sizes, keys, tied=config.flag("tie_word_embeddings", True), facts=facts)
