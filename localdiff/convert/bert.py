"""BERT with its masked-LM head."""

from __future__ import annotations

from . import mlm
from .family import Config, Description, Family

_DENSE = "cls.predictions.transform.dense"


def _describe(config: Config, shapes: mlm.Shapes) -> Description:
    mlm.refuse_without_head(config, shapes, _DENSE)
    return mlm.describe(config, shapes, "post")


FAMILY = Family(
    model_types={"bert": "bert"},
    arch="bert",
    embedding=mlm.EMBEDDING,
    rows=(
        mlm.TOKEN_TYPES,
        mlm.POSITIONS,
        *mlm.EMBEDDING_NORM,
        *mlm.head_rows(
            _DENSE,
            "cls.predictions.transform.LayerNorm",
            ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ),
    ),
    layer_rows=mlm.POST_NORM_LAYERS,
    dropped=(*mlm.DROPPED, r"cls\.seq_relationship\.(weight|bias)"),
    describe=_describe,
    heads=("cls.predictions.decoder.weight",),
    prefixes=("bert.",),
)
