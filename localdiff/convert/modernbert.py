"""ModernBERT with its masked-LM head: rotary positions, fused QKV, gate and up fused into one matrix (gate first),
norms without biases and none before the first attention. Every n-th layer sees everything, the first included; the
others see a window, with a rotary base of their own."""

from __future__ import annotations

from typing import Any

from . import mlm
from .family import MAX_LAYERS, Config, Description, Family, Row

_DENSE = "head.dense"


def _period(config: Config, layers: int) -> int:
    """Every so many layers one sees everything."""
    types = config.value("layer_types")
    if types is None:
        return config.integer("global_attn_every_n_layers", 3)
    kinds = {"full_attention": True, "sliding_attention": False}
    full = [index for index, kind in enumerate(types) if kinds.get(kind)]
    period = full[1] if len(full) > 1 else max(layers, 2)
    expected = ["full_attention" if index % period == 0 else "sliding_attention" for index in range(layers)]
    if types != expected:
        raise config.refuse("layer_types is no repetition of one full_attention and some sliding_attention layers")
    return period


def _bases(config: Config) -> tuple[float, float]:
    """The rotary bases of full and of sliding layers."""
    found = []
    sections = config.section("rope_parameters") or Config({}, "")
    for kind, name, absent in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        section = sections.section(kind) or Config({}, "")
        section.expect("rope_type", ("default",), "default")
        found.append(section.real("rope_theta", config.real(name, absent)))
    return found[0], found[1]


def _describe(config: Config, shapes: mlm.Shapes) -> Description:
    mlm.refuse_without_head(config, shapes, _DENSE)
    for name, allowed, absent in (
        ("hidden_activation", "gelu", "gelu"),
        ("classifier_activation", "gelu", "gelu"),
        ("attention_bias", False, False),
        ("mlp_bias", False, False),
        ("norm_bias", False, False),
        ("classifier_bias", False, False),
        ("decoder_bias", True, True),
    ):
        config.expect(name, (allowed,), absent)
    dim, heads, ffn = (config.integer(n) for n in ("hidden_size", "num_attention_heads", "intermediate_size"))
    if dim % heads or dim // heads % 2:
        raise config.refuse(f"hidden_size is {dim}, expected an even multiple of the {heads} heads")
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    base, local_base = _bases(config)
    keys: dict[str, Any] = {
        "context_length": config.integer("max_position_embeddings", 8192),
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "hidden_activation": "gelu",
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": config.real("norm_eps", 1e-5),
        "attention.causal": False,
        "attention.sliding_window": config.integer("local_attention", 128),
        "attention.sliding_window_pattern": _period(config, layers),
        "rope.dimension_count": dim // heads,
        "rope.freq_base": base,
        "rope.freq_base_swa": local_base,
        "rope.scaling.type": "none",
    }
    sizes = {"layers": layers, "dim": dim, "qkv": 3 * dim, "ffn": ffn, "gate_up": 2 * ffn, "normed": 1}
    facts = {"localdiff.norm": "pre", "localdiff.head": "mlm"}
    return Description(sizes, keys, tied=config.flag("tie_word_embeddings", True), facts=facts)


FAMILY = Family(
    model_types={"modernbert": "modernbert"},
    arch="modern-bert",
    embedding=("embeddings.tok_embeddings.weight",),
    rows=(
        Row("embeddings.norm.weight", "token_embd_norm.weight", ("dim",)),
        Row("final_norm.weight", "output_norm.weight", ("dim",)),
        Row("head.dense.weight", "mlm_dense.weight", ("dim", "dim")),
        Row("head.norm.weight", "mlm_norm.weight", ("dim",)),
        Row("decoder.bias", "output.bias", ("vocab",)),
    ),
    layer_rows=(
        Row("layers.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight", ("dim",), since="normed"),
        Row("layers.{i}.attn.Wqkv.weight", "blk.{i}.attn_qkv.weight", ("qkv", "dim")),
        Row("layers.{i}.attn.Wo.weight", "blk.{i}.attn_output.weight", ("dim", "dim")),
        Row("layers.{i}.mlp_norm.weight", "blk.{i}.ffn_norm.weight", ("dim",)),
        Row("layers.{i}.mlp.Wi.weight", "blk.{i}.ffn_up.weight", ("gate_up", "dim")),
        Row("layers.{i}.mlp.Wo.weight", "blk.{i}.ffn_down.weight", ("dim", "ffn")),
    ),
    dropped=mlm.DROPPED,
    describe=_describe,
    heads=("decoder.weight",),
)
