"""What the file of each case of family_checkpoints.py must hold, by hand: names, row orders, keys, diffusion records.

Nothing here knows the converter: patterns map the names of a checkpoint to llama.cpp's, the rest are literals.
"""

import re
from typing import Any

import numpy as np
from family_checkpoints import State
from tiny import VOCAB

from localdiff.spec import DiffusionSpec

# Where every tensor belongs


def interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows 2j and 2j+1 of a head come from its rows j and j + half."""
    size = len(tensor) // heads
    order = [h * size + j + part * (size // 2) for h in range(heads) for j in range(size // 2) for part in (0, 1)]
    return tensor[order]


DECODER = {
    r"model\.embed_tokens\.weight": "token_embd.weight",
    r"model\.norm\.weight": "output_norm.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": "blk.{}.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)": "blk.{}.attn_{}.{}",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight": "blk.{}.attn_{}_norm.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}.weight",
    r"model\.layers\.(\d+)\.mlp\.gate\.weight": "blk.{}.ffn_gate_inp.weight",
    r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}_exps.weight",
}
LLADA = {
    r"model\.transformer\.wte\.weight": "token_embd.weight",
    r"model\.transformer\.ln_f\.weight": "output_norm.weight",
    r"model\.transformer\.ff_out\.weight": "output.weight",
    r"model\.transformer\.blocks\.(\d+)\.attn_norm\.weight": "blk.{}.attn_norm.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_norm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.transformer\.blocks\.(\d+)\.([qkv])_proj\.weight": "blk.{}.attn_{}.weight",
    r"model\.transformer\.blocks\.(\d+)\.attn_out\.weight": "blk.{}.attn_output.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_proj\.weight": "blk.{}.ffn_gate.weight",
    r"model\.transformer\.blocks\.(\d+)\.up_proj\.weight": "blk.{}.ffn_up.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_out\.weight": "blk.{}.ffn_down.weight",
}
MINERU = {"language_model\\." + source: target for source, target in DECODER.items()} | {
    r"vision_model\..*": "",
    r"vision_abstractor\..*": "",
}
NEMOTRON = {
    source.replace("model", "encoder").replace("lm_head", "diffusion_head"): target
    for source, target in DECODER.items()
}
LLADA2 = DECODER | {
    r"model\.word_embeddings\.weight": "token_embd.weight",
    r"model\.layers\.(\d+)\.attention\.query_key_value\.weight": "blk.{}.attn_qkv.weight",
    r"model\.layers\.(\d+)\.attention\.query_layernorm\.weight": "blk.{}.attn_q_norm.weight",
    r"model\.layers\.(\d+)\.attention\.key_layernorm\.weight": "blk.{}.attn_k_norm.weight",
    r"model\.layers\.(\d+)\.attention\.dense\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp\.gate\.expert_bias": "blk.{}.exp_probs_b.bias",
    r"model\.layers\.(\d+)\.mlp\.shared_experts\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}_shexp.weight",
}
LAYER = r"encoder\.layer\.(\d+)\."
BERT_BODY = {
    r"embeddings\.word_embeddings\.weight": "token_embd.weight",
    r"embeddings\.position_embeddings\.weight": "position_embd.weight",
    r"embeddings\.token_type_embeddings\.weight": "token_types.weight",
    r"embeddings\.LayerNorm\.(weight|bias)": "token_embd_norm.{}",
    LAYER + r"attention\.self\.(q|k|v)[a-z]+\.(weight|bias)": "blk.{}.attn_{}.{}",
    LAYER + r"attention\.output\.dense\.(weight|bias)": "blk.{}.attn_output.{}",
    LAYER + r"attention\.output\.LayerNorm\.(weight|bias)": "blk.{}.attn_output_norm.{}",
    LAYER + r"intermediate\.dense\.(weight|bias)": "blk.{}.ffn_up.{}",
    LAYER + r"output\.dense\.(weight|bias)": "blk.{}.ffn_down.{}",
    LAYER + r"output\.LayerNorm\.(weight|bias)": "blk.{}.layer_output_norm.{}",
    # XLM-R XL
    LAYER + r"attention\.self_attn_layer_norm\.(weight|bias)": "blk.{}.attn_norm.{}",
    LAYER + r"LayerNorm\.(weight|bias)": "blk.{}.ffn_norm.{}",
    r"encoder\.LayerNorm\.(weight|bias)": "output_norm.{}",
}
BERT = {"bert\\." + source: target for source, target in BERT_BODY.items()} | {
    r"cls\.predictions\.transform\.dense\.(weight|bias)": "mlm_dense.{}",
    r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)": "mlm_norm.{}",
    r"cls\.predictions\.bias": "output.bias",
}
ROBERTA = {"roberta\\." + source: target for source, target in BERT_BODY.items()} | {
    r"lm_head\.dense\.(weight|bias)": "mlm_dense.{}",
    r"lm_head\.layer_norm\.(weight|bias)": "mlm_norm.{}",
    r"lm_head\.bias": "output.bias",
}
DISTIL_LAYER = r"distilbert\.transformer\.layer\.(\d+)\."
DISTILBERT = {
    r"distilbert\.embeddings\.word_embeddings\.weight": "token_embd.weight",
    r"distilbert\.embeddings\.position_embeddings\.weight": "position_embd.weight",
    r"distilbert\.embeddings\.LayerNorm\.(weight|bias)": "token_embd_norm.{}",
    DISTIL_LAYER + r"attention\.([qkv])_lin\.(weight|bias)": "blk.{}.attn_{}.{}",
    DISTIL_LAYER + r"attention\.out_lin\.(weight|bias)": "blk.{}.attn_output.{}",
    DISTIL_LAYER + r"sa_layer_norm\.(weight|bias)": "blk.{}.attn_output_norm.{}",
    DISTIL_LAYER + r"ffn\.lin1\.(weight|bias)": "blk.{}.ffn_up.{}",
    DISTIL_LAYER + r"ffn\.lin2\.(weight|bias)": "blk.{}.ffn_down.{}",
    DISTIL_LAYER + r"output_layer_norm\.(weight|bias)": "blk.{}.layer_output_norm.{}",
    r"vocab_transform\.(weight|bias)": "mlm_dense.{}",
    r"vocab_layer_norm\.(weight|bias)": "mlm_norm.{}",
    r"vocab_projector\.bias": "output.bias",
}
MODERNBERT = {
    r"model\.embeddings\.tok_embeddings\.weight": "token_embd.weight",
    r"model\.embeddings\.norm\.weight": "token_embd_norm.weight",
    r"model\.final_norm\.weight": "output_norm.weight",
    r"model\.layers\.(\d+)\.attn_norm\.weight": "blk.{}.attn_norm.weight",
    r"model\.layers\.(\d+)\.attn\.Wqkv\.weight": "blk.{}.attn_qkv.weight",
    r"model\.layers\.(\d+)\.attn\.Wo\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp_norm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.layers\.(\d+)\.mlp\.Wi\.weight": "blk.{}.ffn_up.weight",
    r"model\.layers\.(\d+)\.mlp\.Wo\.weight": "blk.{}.ffn_down.weight",
    r"head\.dense\.weight": "mlm_dense.weight",
    r"head\.norm\.weight": "mlm_norm.weight",
    r"decoder\.bias": "output.bias",
}
NAMES = {
    "llada": LLADA,
    "illada": LLADA,
    "mineru": MINERU,
    "nemotron": NEMOTRON,
    "llada2": LLADA2,
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-r": ROBERTA,
    "xlm-r-xl": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
}
INTERLEAVED = ("llada", "illada", "a2d-llama", "ministral3", "nemotron")
CUT = ("roberta", "xlm-r", "xlm-r-xl")  # their positions begin after the padding token, id 1
KV_HEADS = {"llada": 4}


def expected_tensors(case: str, state: State) -> State:
    out: dict[str, list[np.ndarray]] = {}
    # experts come in the order of their numbers, not of their names
    for source in sorted(state, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split(".")]):
        matches = [(re.fullmatch(pattern, source), target) for pattern, target in NAMES.get(case, DECODER).items()]
        found, target = next((found, target) for found, target in matches if found)
        name = target.format(*found.groups())
        tensor = state[source]
        if case in INTERLEAVED and re.search(r"attn_[qk]\.", name):
            tensor = interleave(tensor, 4 if "attn_q." in name else KV_HEADS.get(case, 2))
        if case in CUT and name == "position_embd.weight":
            tensor = tensor[2:]
        if name:
            out.setdefault(name, []).append(tensor)
    return {name: np.stack(parts) if "_exps" in name else parts[0] for name, parts in out.items()}


# Metadata


def body(arch: str, **more: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": 16,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }
    named = {key.replace("__", "."): value for key, value in more.items()}
    return {f"{arch}.{key}": value for key, value in (keys | named).items() if value is not None}


WIDE = {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 32}
QWEN3 = WIDE | {"rope__freq_base": 1000000.0}
EXPERTS = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_weights_norm": True,
}
LLADA_KEYS = {"attention__layer_norm_rms_epsilon": 1e-5, "rope__freq_base": 500000.0}
MISTRAL = QWEN3 | {
    "attention__layer_norm_rms_epsilon": 1e-5,
    "attention__temperature_scale": 0.1,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 16.0,
    "rope__scaling__original_context_length": 16,
    "rope__scaling__yarn_beta_fast": 32.0,
    "rope__scaling__yarn_beta_slow": 1.0,
    "rope__scaling__yarn_log_multiplier": 1.0,
}
ENCODER = {
    "block_count": 3,
    "context_length": 80,
    "attention__head_count_kv": 4,
    "attention__layer_norm_rms_epsilon": None,
    "attention__layer_norm_epsilon": 1e-5,
    "attention__causal": False,
    "rope__dimension_count": None,
    "rope__freq_base": None,
}


def mlm(norm: str = "post", types: int | None = None) -> dict[str, Any]:
    facts = {"localdiff.norm": norm, "localdiff.head": "mlm"}
    return facts | ({"tokenizer.ggml.token_type_count": types} if types else {})


METADATA: dict[str, dict[str, Any]] = {
    "llada": body("llada", **LLADA_KEYS, attention__head_count_kv=4),
    "illada": body("llada", **LLADA_KEYS),
    "dream": body("dream"),
    "fast-dllm-v2": body("qwen2"),
    "a2d-llama": body("llama"),
    "qwen3": body("qwen3", **QWEN3),
    "qwen3-tied": body("qwen3", **QWEN3),
    "sdar": body("qwen3", **QWEN3),
    "mineru": body("qwen3", **QWEN3),
    "qwen3moe": body("qwen3moe", **QWEN3, **EXPERTS),
    "sdar-moe": body("qwen3moe", **QWEN3, **EXPERTS),
    "rnd1": body("rnd1", **QWEN3, **EXPERTS),
    "llada-moe": body(
        "llada-moe",
        **EXPERTS | {"expert_weights_norm": False},
        attention__layer_norm_rms_epsilon=1e-5,
        rope__freq_base=50000.0,
    ),
    "llada2": body(
        "bailingmoe2",
        attention__key_length=16,
        attention__value_length=16,
        rope__dimension_count=8,
        rope__freq_base=600000.0,
        block_count=3,
        **EXPERTS | {"expert_used_count": 3},
        leading_dense_block_count=1,
        expert_shared_count=1,
        expert_shared_feed_forward_length=32,
        expert_group_count=4,
        expert_group_used_count=2,
        expert_gating_func=2,
        expert_weights_scale=2.5,
    ),
    "ministral3": body("mistral3", **MISTRAL),
    "nemotron": body("mistral3", **MISTRAL),
    "bert": body("bert", **ENCODER | {"attention__layer_norm_epsilon": 1e-12}) | mlm(types=2),
    "roberta": body("bert", **ENCODER | {"context_length": 78}) | mlm(types=1),
    "xlm-r": body("bert", **ENCODER | {"context_length": 78}) | mlm(types=1),
    "xlm-r-xl": body("bert", **ENCODER | {"context_length": 78}) | mlm("pre", types=1),
    "distilbert": body("bert", **ENCODER | {"attention__layer_norm_epsilon": 1e-12}) | mlm(),
    "modernbert": body(
        "modern-bert",
        **ENCODER | {"block_count": 5, "rope__dimension_count": 16, "rope__freq_base": 160000.0},
        rope__freq_base_swa=10000.0,
        rope__scaling__type="none",
        attention__sliding_window=16,
        attention__sliding_window_pattern=3,
        hidden_activation="gelu",
    )
    | mlm("pre"),
}
BLOCKS = {"attention": "block_causal", "decoder": "threshold"}
SDAR = BLOCKS | {"decoder": "sdar"}
# The ids come from config.json, or, for the mask, from the tokenizer, whose mask token is 1.
RECORDS: dict[str, DiffusionSpec | None] = {
    "llada": DiffusionSpec(5, False, decoder="llada", stop_tokens=(9,)),
    "illada": DiffusionSpec(1, False, decoder="llada", stop_tokens=(9, 10)),
    "dream": DiffusionSpec(
        7, True, decoder="dream", steps=512, temperature=0.2, top_p=0.95, stop_tokens=(3,), pad_token=3
    ),
    "fast-dllm-v2": DiffusionSpec(1, True, **BLOCKS, block_length=16, threshold=0.9),
    "a2d-llama": DiffusionSpec(1, False, decoder="llada", stop_tokens=(2,)),
    "qwen3": None,
    "qwen3-tied": None,
    "sdar": DiffusionSpec(1, False, **SDAR, block_length=8, threshold=0.9, stop_tokens=(4,)),
    "mineru": DiffusionSpec(6, False, **SDAR, block_length=32, threshold=0.95, temperature=1.0),
    "qwen3moe": None,
    "sdar-moe": DiffusionSpec(1, False, **SDAR, block_length=4, threshold=0.9),
    "rnd1": DiffusionSpec(8, True, decoder="rnd1", steps=256, temperature=0.01),
    "llada-moe": DiffusionSpec(1, False, decoder="llada", stop_tokens=(9,)),
    "llada2": DiffusionSpec(
        1, False, **BLOCKS | {"decoder": "llada2"}, block_length=32, threshold=0.95, stop_tokens=(3,), pad_token=3
    ),
    "ministral3": None,
    "nemotron": DiffusionSpec(11, False, **BLOCKS, block_length=32, threshold=0.9, stop_tokens=(2,), pad_token=11),
    "bert": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, pad_token=0),
    "roberta": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, stop_tokens=(2,), pad_token=1),
    "xlm-r": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, steps=50, stop_tokens=(2,), pad_token=1),
    "xlm-r-xl": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, steps=50, stop_tokens=(2,), pad_token=1),
    "distilbert": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, pad_token=0),
    "modernbert": DiffusionSpec(1, False, decoder="rdm", temperature=0.0, stop_tokens=(3,), pad_token=0),
}
