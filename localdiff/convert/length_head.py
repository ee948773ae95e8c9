"""The length head that `adapt --method rdm --length-head` keeps beside a model, as tensors of the file.

It is torch's encoder layer and a classifier of two matrices over hidden states of the model, so its sizes are the
model's; the number of classes is its own. Here are its names and shapes; csrc/loader.cpp reads them. Not here: the
head itself (adapt/length_head.py).
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError
from .family import Description, Row, layer_norm, linear
from .matching import FileTensor, match_rows
from .safetensors_file import read_safetensors

FILE = "length_head.safetensors"  # in the folder of the checkpoint
_CLASSES = "classes.2"
ROWS = (
    Row("layer.self_attn.in_proj_weight", "length_head.attn_qkv.weight", ("qkv", "dim")),
    Row("layer.self_attn.in_proj_bias", "length_head.attn_qkv.bias", ("qkv",)),
    *linear("layer.self_attn.out_proj", "length_head.attn_output", "dim", "dim"),
    *layer_norm("layer.norm1", "length_head.attn_output_norm"),
    *linear("layer.linear1", "length_head.ffn_up", "ffn", "dim"),
    *linear("layer.linear2", "length_head.ffn_down", "dim", "ffn"),
    *layer_norm("layer.norm2", "length_head.layer_output_norm"),
    *linear("classes.0", "length_head.dense", "ffn", "dim"),
    *linear(_CLASSES, "length_head.classes", "classes", "ffn"),
)


def length_head(folder: Path, description: Description) -> list[FileTensor]:
    """The tensors of the length head in a checkpoint's folder; none where it has no such file.

    Raises ModelFileError where they do not fit the model.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    keys, dim = description.keys, description.sizes["dim"]
    heads = keys["attention.head_count"]
    if keys["attention.head_count_kv"] != heads or keys.get("attention.key_length", dim // heads) * heads != dim:
        raise ModelFileError(
            f"{path}: a length head has as many heads of keys as of queries, which together are as wide as the model, "
            "but this model's are others; move the file away to convert the model without it"
        )
    tensors = {tensor.name: tensor for tensor in read_safetensors(path)}
    last = tensors.get(f"{_CLASSES}.weight")
    sizes = {"dim": dim, "qkv": 3 * dim, "ffn": description.sizes["ffn"]}
    if last is not None:
        sizes["classes"] = last.shape[0]
    return match_rows("those of this model's length head", ROWS, sizes, tensors, path)
