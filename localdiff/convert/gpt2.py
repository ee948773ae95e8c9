"""GPT-2, and DiffuGPT, which keeps GPT-2's tensors under the names of its wrapper.

Its linear layers are stored as Conv1D, [in, out], hence the transposes; q, k and v stay fused. The number of positions
is taken from the tensor, because padded vocabularies and wrappers leave config.json behind.
"""

from __future__ import annotations

from collections.abc import Mapping

from .family import MAX_LAYERS, Config, Description, Family, Row, transpose


def describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    config.expect("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    config.expect("scale_attn_weights", (True,), True)
    config.expect("scale_attn_by_inverse_layer_idx", (False,), False)
    config.expect("add_cross_attention", (False,), False)
    dim, layers, heads = config.integer("n_embd"), config.integer("n_layer", most=MAX_LAYERS), config.integer("n_head")
    if dim % heads:
        raise config.refuse(f"n_embd is {dim}, expected a multiple of the {heads} heads")
    ffn = config.integer("n_inner", 4 * dim)
    context = shapes.get("wpe.weight", (config.integer("n_positions", 1024),))[0]
    keys = {
        "context_length": context,
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": config.real("layer_norm_epsilon", 1e-5),
    }
    sizes = {"layers": layers, "dim": dim, "qkv": 3 * dim, "ffn": ffn, "context": context}
    return Description(sizes, keys, tied=config.flag("tie_word_embeddings", True))


FAMILY = Family(
    model_types={"gpt2": None},
    arch="gpt2",
    embedding=("wte.weight", "embed_tokens.weight"),
    rows=(
        Row("wpe.weight", "position_embd.weight", ("context", "dim")),
        Row("ln_f.weight", "output_norm.weight", ("dim",)),
        Row("ln_f.bias", "output_norm.bias", ("dim",)),
    ),
    layer_rows=(
        Row("h.{i}.ln_1.weight", "blk.{i}.attn_norm.weight", ("dim",)),
        Row("h.{i}.ln_1.bias", "blk.{i}.attn_norm.bias", ("dim",)),
        Row("h.{i}.attn.c_attn.weight", "blk.{i}.attn_qkv.weight", ("dim", "qkv"), transpose, result=("qkv", "dim")),
        Row("h.{i}.attn.c_attn.bias", "blk.{i}.attn_qkv.bias", ("qkv",)),
        Row("h.{i}.attn.c_proj.weight", "blk.{i}.attn_output.weight", ("dim", "dim"), transpose),
        Row("h.{i}.attn.c_proj.bias", "blk.{i}.attn_output.bias", ("dim",)),
        Row("h.{i}.ln_2.weight", "blk.{i}.ffn_norm.weight", ("dim",)),
        Row("h.{i}.ln_2.bias", "blk.{i}.ffn_norm.bias", ("dim",)),
        Row("h.{i}.mlp.c_fc.weight", "blk.{i}.ffn_up.weight", ("dim", "ffn"), transpose, result=("ffn", "dim")),
        Row("h.{i}.mlp.c_fc.bias", "blk.{i}.ffn_up.bias", ("ffn",)),
        Row("h.{i}.mlp.c_proj.weight", "blk.{i}.ffn_down.weight", ("ffn", "dim"), transpose, result=("dim", "ffn")),
        Row("h.{i}.mlp.c_proj.bias", "blk.{i}.ffn_down.bias", ("dim",)),
    ),
    dropped=(r"h\.\d+\.attn\.(masked_)?bias",),  # the causal buffers of old checkpoints
    describe=describe,
)
