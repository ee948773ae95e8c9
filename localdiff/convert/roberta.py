"""RoBERTa and XLM-R base and large with their masked-LM head. The first token uses the row after the padding token's of
the position embedding; as in llama.cpp's files the rows before it are cut off."""

from __future__ import annotations

from . import mlm
from .family import Config, Description, Family

DENSE = "lm_head.dense"
HEAD_ROWS = mlm.head_rows(DENSE, "lm_head.layer_norm", ("lm_head.bias", "lm_head.decoder.bias"))
HEADS = ("lm_head.decoder.weight",)
PREFIXES = ("roberta.",)


def describe(config: Config, shapes: mlm.Shapes, order: str = "post") -> Description:
    mlm.refuse_without_head(config, shapes, DENSE)
    padding = config.ids("pad_token_id") or (1,)
    return mlm.describe(config, shapes, order, first_position=padding[0] + 1)


FAMILY = Family(
    model_types={"roberta": "roberta", "xlm-roberta": "xlmr"},
    arch="bert",
    embedding=mlm.EMBEDDING,
    rows=(mlm.TOKEN_TYPES, mlm.POSITIONS, *mlm.EMBEDDING_NORM, *HEAD_ROWS),
    layer_rows=mlm.POST_NORM_LAYERS,
    dropped=mlm.DROPPED,
    describe=describe,
    heads=HEADS,
    prefixes=PREFIXES,
)
