"""XLM-R XL and XXL: XLM-R with norms before the sublayers and after the last layer, and none on the embeddings."""

from __future__ import annotations

from . import mlm, roberta
from .family import Config, Description, Family, layer_norm


def _describe(config: Config, shapes: mlm.Shapes) -> Description:
    return roberta.describe(config, shapes, "pre")


FAMILY = Family(
    model_types={"xlm-roberta-xl": "xlmr"},
    arch="bert",
    embedding=mlm.EMBEDDING,
    rows=(
        mlm.TOKEN_TYPES,
        mlm.POSITIONS,
        *layer_norm("encoder.LayerNorm", "output_norm"),
        *roberta.HEAD_ROWS,
    ),  # fmt: skip
    layer_rows=(
        *layer_norm(f"{mlm.LAYER}.attention.self_attn_layer_norm", "blk.{i}.attn_norm"),
        *mlm.ATTENTION,
        *layer_norm(f"{mlm.LAYER}.LayerNorm", "blk.{i}.ffn_norm"),
        *mlm.FFN,
    ),
    dropped=mlm.DROPPED,
    describe=_describe,
    heads=roberta.HEADS,
    prefixes=roberta.PREFIXES,
)
