"""DistilBERT with its masked-LM head: BERT without token types, under names of its own."""

from __future__ import annotations

from . import mlm
from .family import MAX_LAYERS, Config, Description, Family, layer_norm, linear

_DENSE = "vocab_transform"
_LAYER = "layer.{i}"


def _describe(config: Config, shapes: mlm.Shapes) -> Description:
    config.expect("activation", ("gelu",), "gelu")
    mlm.refuse_without_head(config, shapes, _DENSE)
    return mlm.body(
        config,
        "post",
        dim=config.integer("dim", 768),
        layers=config.integer("n_layers", 6, most=MAX_LAYERS),
        heads=config.integer("n_heads", 12),
        ffn=config.integer("hidden_dim", 3072),
        eps=1e-12,  # fixed in its code
        types=0,
        positions=config.integer("max_position_embeddings", 512),
        first_position=0,
    )


FAMILY = Family(
    model_types={"distilbert": "bert"},
    arch="bert",
    embedding=mlm.EMBEDDING,
    rows=(
        mlm.POSITIONS,
        *mlm.EMBEDDING_NORM,
        *mlm.head_rows(_DENSE, "vocab_layer_norm", ("vocab_projector.bias",)),
    ),
    layer_rows=(
        *linear(f"{_LAYER}.attention.q_lin", "blk.{i}.attn_q", "dim", "dim"),
        *linear(f"{_LAYER}.attention.k_lin", "blk.{i}.attn_k", "dim", "dim"),
        *linear(f"{_LAYER}.attention.v_lin", "blk.{i}.attn_v", "dim", "dim"),
        *linear(f"{_LAYER}.attention.out_lin", "blk.{i}.attn_output", "dim", "dim"),
        *layer_norm(f"{_LAYER}.sa_layer_norm", "blk.{i}.attn_output_norm"),
        *linear(f"{_LAYER}.ffn.lin1", "blk.{i}.ffn_up", "ffn", "dim"),
        *linear(f"{_LAYER}.ffn.lin2", "blk.{i}.ffn_down", "dim", "ffn"),
        *layer_norm(f"{_LAYER}.output_layer_norm", "blk.{i}.layer_output_norm"),
    ),
    dropped=mlm.DROPPED,
    describe=_describe,
    heads=("vocab_projector.weight",),
    prefixes=("distilbert.", "transformer."),
)
