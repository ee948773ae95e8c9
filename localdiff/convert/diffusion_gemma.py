"""DiffusionGemma: a Gemma 4 body with a mixture of experts, the same weights for prompt and canvas. Layers with a
window and layers that see everything differ in the length and number of their heads and in their rotary bases; the
latter take their keys for values and rotate a part of each head. What a step expected is fed back to the next one.

Names, keys and layouts are those of llama.cpp's files of the architecture, the parameters of its sampler included. The
vision tower is left out. Not here: what is fed back and when (the engine, decode/entropy_bound.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .family import MAX_EXPERTS, MAX_LAYERS, Config, Description, Family, Row

_KINDS = {"sliding_attention": True, "full_attention": False}
_UNROTATED = 1e30  # divides the frequency of a pair that is not rotated


def _windowed(config: Config, layers: int) -> list[bool]:
    """Of each layer whether it has a window."""
    found = config.value("layer_types", ["sliding_attention"] * 5 + ["full_attention"])
    types = [found[index % 6] for index in range(layers)] if config.value("layer_types") is None else found
    if not isinstance(types, list) or len(types) != layers or any(kind not in _KINDS for kind in types):
        raise config.refuse(f"layer_types is not a list of {layers} of {' and '.join(_KINDS)}")
    return [_KINDS[kind] for kind in types]


def _global_heads(config: Config, windowed: list[bool]) -> tuple[int, int]:
    """Length and number of the key and value heads of layers without a window."""
    sections = config.section("per_layer_config")
    if sections is None:
        kv_heads = config.integer("num_global_key_value_heads", config.integer("num_key_value_heads"))
        return config.integer("global_head_dim", 512), kv_heads
    found = set()
    for index, local in enumerate(windowed):
        layer = sections.section(str(index))
        if layer is None and local:
            continue
        layer = layer or Config({}, "")
        sizes = [layer.integer(name, config.integer(name)) for name in ("head_dim", "num_key_value_heads")]
        if local and sizes != [config.integer("head_dim"), config.integer("num_key_value_heads")]:
            raise config.refuse(f"per_layer_config gives layer {index}, which has a window, heads of its own")
        if not local:
            found.add((sizes[0], sizes[1]))
    if len(found) > 1:
        raise config.refuse("per_layer_config gives layers without a window different heads")
    return found.pop() if found else (config.integer("head_dim"), config.integer("num_key_value_heads"))


def _rope(config: Config, head_dim: int, global_head_dim: int) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The rotary keys, and the divisors of the frequencies of layers without a window, [global_head_dim / 2]."""
    sections = config.section("rope_parameters") or Config({}, "")
    local = sections.section("sliding_attention") or Config({}, "")
    everywhere = sections.section("full_attention") or Config({}, "")
    local.expect("rope_type", ("default",), "default")
    everywhere.expect("rope_type", ("proportional",), "proportional")
    everywhere.expect("factor", (1, 1.0), 1.0)
    local_dims = int(head_dim * local.real("partial_rotary_factor", 1.0))
    rotated = int(everywhere.real("partial_rotary_factor", 0.25) * global_head_dim // 2)
    for name, size in (("head_dim", local_dims), ("global_head_dim", global_head_dim)):
        if size % 2:
            raise config.refuse(f"{name} is {size}, expected an even number for rotary positions")
    keys = {
        "rope.dimension_count": global_head_dim,
        "rope.dimension_count_swa": local_dims,
        "rope.freq_base": everywhere.real("rope_theta", 1000000.0),
        "rope.freq_base_swa": local.real("rope_theta", 10000.0),
    }
    divisors = np.full(global_head_dim // 2, _UNROTATED, np.float32)
    divisors[:rotated] = 1
    return keys, divisors


def _describe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    for name, allowed, absent in (
        ("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        ("attention_bias", False, False),
        ("tie_word_embeddings", True, True),
        ("enable_moe_block", True, True),
        ("attention_k_eq_v", True, True),
        ("use_double_wide_mlp", False, False),
        ("num_kv_shared_layers", 0, 0),
        ("hidden_size_per_layer_input", 0, 0),
    ):
        config.expect(name, (allowed,), absent)
    config.expect("use_bidirectional_attention", (None, "vision"), None)  # of images, which are left out
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    dim, ffn, heads, kv_heads, head_dim = (
        config.integer(name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    windowed = _windowed(config, layers)
    global_head_dim, global_kv_heads = _global_heads(config, windowed)
    for count in (kv_heads, global_kv_heads):
        if heads % count:
            raise config.refuse(f"{count} key and value heads, expected a divisor of the {heads} heads")
    experts = config.integer("num_experts", most=MAX_EXPERTS)
    expert_ffn = config.integer("moe_intermediate_size")
    rope, divisors = _rope(config, head_dim, global_head_dim)
    keys: dict[str, Any] = {
        "context_length": config.integer("max_position_embeddings"),
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": [kv_heads if local else global_kv_heads for local in windowed],
        "attention.key_length": global_head_dim,
        "attention.value_length": global_head_dim,
        "attention.key_length_swa": head_dim,
        "attention.value_length_swa": head_dim,
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", 1e-6),
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": windowed,
        "expert_count": experts,
        "expert_used_count": config.integer("top_k_experts", most=experts),
        "expert_feed_forward_length": expert_ffn,
        "final_logit_softcapping": config.real("final_logit_softcapping", 30.0),
        **rope,
    }
    sizes = {"layers": layers, "dim": dim, "ffn": ffn, "one": 1, "experts": experts, "expert_ffn": expert_ffn}
    sizes["gate_up"] = 2 * expert_ffn
    for index, local in enumerate(windowed):
        size, count = (head_dim, kv_heads) if local else (global_head_dim, global_kv_heads)
        sizes |= {f"head_dim.{index}": size, f"q.{index}": heads * size, f"kv.{index}": count * size}
        sizes[f"v.{index}"] = count * size if local else 0
    return Description(sizes, keys, tied=True, extra={"rope_freqs.weight": divisors})


def _norm(source: str, target: str) -> Row:
    return Row(f"layers.{{i}}.{source}.weight", f"blk.{{i}}.{target}.weight", ("dim",))


def _layer(source: str, target: str, *shape: str) -> Row:
    return Row(f"layers.{{i}}.{source}", f"blk.{{i}}.{target}", shape)


FAMILY = Family(
    model_types={"diffusion_gemma": "diffusion-gemma"},
    arch="diffusion-gemma",
    embedding=("embed_tokens.weight",),
    rows=(
        Row("norm.weight", "output_norm.weight", ("dim",)),
        Row("self_conditioning.pre_norm.weight", "self_cond_pre_norm.weight", ("dim",)),
        Row("self_conditioning.gate_proj.weight", "self_cond_gate.weight", ("ffn", "dim")),
        Row("self_conditioning.up_proj.weight", "self_cond_up.weight", ("ffn", "dim")),
        Row("self_conditioning.down_proj.weight", "self_cond_down.weight", ("dim", "ffn")),
    ),
    layer_rows=(
        _norm("input_layernorm", "attn_norm"),
        _layer("self_attn.q_proj.weight", "attn_q.weight", "q.{i}", "dim"),
        _layer("self_attn.k_proj.weight", "attn_k.weight", "kv.{i}", "dim"),
        _layer("self_attn.v_proj.weight", "attn_v.weight", "v.{i}", "dim"),
        _layer("self_attn.q_norm.weight", "attn_q_norm.weight", "head_dim.{i}"),
        _layer("self_attn.k_norm.weight", "attn_k_norm.weight", "head_dim.{i}"),
        _layer("self_attn.o_proj.weight", "attn_output.weight", "dim", "q.{i}"),
        _norm("post_attention_layernorm", "post_attention_norm"),
        _norm("pre_feedforward_layernorm", "ffn_norm"),
        _layer("mlp.gate_proj.weight", "ffn_gate.weight", "ffn", "dim"),
        _layer("mlp.up_proj.weight", "ffn_up.weight", "ffn", "dim"),
        _layer("mlp.down_proj.weight", "ffn_down.weight", "dim", "ffn"),
        _norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        _norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        Row("layers.{i}.router.proj.weight", "blk.{i}.ffn_gate_inp.weight", ("experts", "dim"), exact=True),
        Row("layers.{i}.router.scale", "blk.{i}.ffn_gate_inp.scale", ("dim",), exact=True),
        Row("layers.{i}.router.per_expert_scale", "blk.{i}.ffn_down_exps.scale", ("experts",), exact=True),
        _layer("experts.gate_up_proj", "ffn_gate_up_exps.weight", "experts", "gate_up", "dim"),
        _layer("experts.down_proj", "ffn_down_exps.weight", "experts", "dim", "expert_ffn"),
        _norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        _norm("post_feedforward_layernorm", "post_ffw_norm"),
        Row("layers.{i}.layer_scalar", "blk.{i}.layer_output_scale.weight", ("one",), exact=True),
        Row(
            "encoder.language_model.layers.{i}.layer_scalar",
            "blk.{i}.enc_layer_output_scale.weight",
            ("one",),
            exact=True,
        ),
    ),
    dropped=(
        r"encoder\.(vision_tower|embed_vision)\..*",
        r"encoder\.language_model\.(?!layers\.\d+\.layer_scalar$).*",  # tied to the weights above
    ),
    describe=_describe,
    prefixes=("decoder.",),
    section="text_config",
)
