"""Tiny random models of every architecture: a transformers model, and the GGUF file with its weights.

One row per published family: the transformers class with the family's arithmetic, its configuration, the metadata and
the names of the file. Written here by hand, apart from localdiff/convert, so that neither can hide the other's mistake.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_values import add_values, finish

VOCAB, DIM, HEADS, HEAD_DIM, LAYERS, CONTEXT = 96, 48, 4, 12, 3, 64

# transformers' name -> GGUF's, whole names; N is a layer.
MLP, QKV_PARTS = ("gate", "up", "down"), ("weight", "bias")
DECODER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.N.input_layernorm.weight": "blk.N.attn_norm.weight",
    "model.layers.N.post_attention_layernorm.weight": "blk.N.ffn_norm.weight",
    "model.layers.N.self_attn.o_proj.weight": "blk.N.attn_output.weight",
    **{f"model.layers.N.self_attn.{x}_proj.{part}": f"blk.N.attn_{x}.{part}" for x in "qkv" for part in QKV_PARTS},
    **{f"model.layers.N.self_attn.{x}_norm.weight": f"blk.N.attn_{x}_norm.weight" for x in "qk"},
    **{f"model.layers.N.mlp.{x}_proj.weight": f"blk.N.ffn_{x}.weight" for x in MLP},
    **{f"model.layers.N.mlp.shared_experts.{x}_proj.weight": f"blk.N.ffn_{x}_shexp.weight" for x in MLP},
    "model.layers.N.mlp.gate.weight": "blk.N.ffn_gate_inp.weight",
    "model.layers.N.mlp.gate.e_score_correction_bias": "blk.N.exp_probs_b.bias",
    "model.layers.N.mlp.experts.down_proj": "blk.N.ffn_down_exps.weight",
    "model.layers.N.mlp.experts.gate_up_proj": "blk.N.ffn_gate_up_exps.weight",  # cut in two below
}  # fmt: skip


def encoder(body: str, layers: str, **parts: str) -> dict[str, str]:
    """The names of a BERT: `parts` maps the file's stems to the checkpoint's, below a layer, the body or the top."""
    names = {}
    for ours, theirs in parts.items():
        prefix, stem = ("blk.N.", layers + "N.") if not theirs.startswith(("/", "+")) else ("", "")
        path = body + theirs[1:] if theirs.startswith("+") else theirs.lstrip("/")
        for part in ("weight", "bias"):
            names[f"{stem}{path}.{part}"] = f"{prefix}{ours.replace('__', '.')}.{part}"
    return names


BERT_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
BERT_EMBEDDINGS = {
    "token_embd": "+embeddings.word_embeddings",
    "position_embd": "+embeddings.position_embeddings",
    "token_types": "+embeddings.token_type_embeddings",
    "token_embd_norm": "+embeddings.LayerNorm",
}
ROBERTA_HEAD = {"mlm_dense": "/lm_head.dense", "mlm_norm": "/lm_head.layer_norm"}
BERT = {
    **encoder(
        "bert.",
        "bert.encoder.layer.",
        **BERT_LAYER,
        **BERT_EMBEDDINGS,
        mlm_dense="/cls.predictions.transform.dense",
        mlm_norm="/cls.predictions.transform.LayerNorm",
    ),
    "cls.predictions.bias": "output.bias",
}
ROBERTA = {
    **encoder("roberta.", "roberta.encoder.layer.", **BERT_LAYER, **BERT_EMBEDDINGS, **ROBERTA_HEAD),
    "lm_head.bias": "output.bias",
}
ROBERTA_XL = {
    **encoder(
        "roberta.",
        "roberta.encoder.layer.",
        **{k: v for k, v in BERT_LAYER.items() if "norm" not in k},
        **{k: v for k, v in BERT_EMBEDDINGS.items() if "norm" not in k},
        **ROBERTA_HEAD,
        attn_norm="attention.self_attn_layer_norm",
        ffn_norm="LayerNorm",
        output_norm="+encoder.LayerNorm",
    ),
    "lm_head.bias": "output.bias",
}
DISTILBERT = {
    **encoder(
        "distilbert.",
        "distilbert.transformer.layer.",
        **{f"attn_{x}": f"attention.{x}_lin" for x in "qkv"},
        attn_output="attention.out_lin",
        attn_output_norm="sa_layer_norm",
        ffn_up="ffn.lin1",
        ffn_down="ffn.lin2",
        layer_output_norm="output_layer_norm",
        **{k: v for k, v in BERT_EMBEDDINGS.items() if k != "token_types"},
        mlm_dense="/vocab_transform",
        mlm_norm="/vocab_layer_norm",
    ),
    "vocab_projector.bias": "output.bias",
}
MODERNBERT = {
    **encoder(
        "model.",
        "model.layers.",
        attn_norm="attn_norm",
        attn_qkv="attn.Wqkv",
        attn_output="attn.Wo",
        ffn_norm="mlp_norm",
        ffn_up="mlp.Wi",
        ffn_down="mlp.Wo",
        token_embd="+embeddings.tok_embeddings",
        token_embd_norm="+embeddings.norm",
        output_norm="+final_norm",
        mlm_dense="/head.dense",
        mlm_norm="/head.norm",
    ),
    "decoder.bias": "output.bias",
}
GPT2 = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    **{
        f"transformer.{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in {
            "ln_f": "output_norm",
            "h.N.ln_1": "blk.N.attn_norm",
            "h.N.attn.c_attn": "blk.N.attn_qkv",
            "h.N.attn.c_proj": "blk.N.attn_output",
            "h.N.ln_2": "blk.N.ffn_norm",
            "h.N.mlp.c_fc": "blk.N.ffn_up",
            "h.N.mlp.c_proj": "blk.N.ffn_down",
        }.items()
        for part in ("weight", "bias")
    },
}


@dataclass(frozen=True)
class Family:
    """One row: what to build and how the file is to be labelled.

    hf            transformers class, without Config
    config        its configuration beside the common sizes
    names         checkpoint name -> file name
    metadata      keys below the architecture's, or whole keys where they hold no architecture
    interleaved   rows of Q and K are permuted to the interleaved layout
    first_row     rows of the position table that the file leaves out
    transposed    matrices are stored [in, out]
    fused         Q, K and V are one matrix of the file
    """

    arch: str
    hf: str
    config: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=lambda: DECODER)
    metadata: dict[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    first_row: int = 0
    transposed: bool = False
    fused: bool = False

    @property
    def is_encoder(self) -> bool:
        return self.arch in ("bert", "modern-bert")


def rope(theta: float = 10000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


MOE = {
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "head_dim": 16,
}
MOE_KEYS = {
    "expert_count": 8,
    "expert_used_count": 3,
    "expert_feed_forward_length": 20,
    "attention.key_length": 16,
    "attention.value_length": 16,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
    "llama_4_scaling_beta": 0.1,
}
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_beta_fast": 2.0,
    "rope.scaling.yarn_beta_slow": 0.25,
    "rope.scaling.yarn_log_multiplier": 0.5,
    "attention.temperature_scale": 0.1,
}
GLM_MOE = {  # the arithmetic of LLaDA2: rotary positions over half a head, biased sigmoid router with groups
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "head_dim": HEAD_DIM,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {"rope_theta": 600000.0, "rope_type": "default", "partial_rotary_factor": 0.5},
}
GLM_MOE_KEYS = {
    **{key: value for key, value in MOE_KEYS.items() if "attention" not in key},
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 2.5,
    "leading_dense_block_count": 1,
    "rope.dimension_count": 6,
    "rope.freq_base": 600000.0,
}

FAMILIES: dict[str, Family] = {
    "DiffuGPT": Family("gpt2", "GPT2LMHeadModel", names=GPT2, transposed=True),
    "DiffuLLaMA": Family("llama", "LlamaForCausalLM", interleaved=True),
    "Stable-DiffCoder": Family(
        "llama",
        "LlamaForCausalLM",
        {"num_key_value_heads": 2, **rope(500000.0)},
        metadata={"attention.head_count_kv": 2, "rope.freq_base": 500000.0},
        interleaved=True,
    ),
    "LLaDA": Family("llada", "LlamaForCausalLM", interleaved=True),
    "iLLaDA": Family(
        "llada",
        "LlamaForCausalLM",
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        metadata={"attention.head_count_kv": 2},
        interleaved=True,
    ),
    "Dream": Family("dream", "Qwen2ForCausalLM", {"num_key_value_heads": 1}, metadata={"attention.head_count_kv": 1}),
    "Fast-dLLM v2": Family(
        "qwen2", "Qwen2ForCausalLM", {"num_key_value_heads": 2}, metadata={"attention.head_count_kv": 2}
    ),
    "SDAR": Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
        metadata={"attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16},
    ),
    "SDAR-MoE": Family(
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        {**MOE, "num_key_value_heads": 2, "norm_topk_prob": True},
        metadata={**MOE_KEYS, "attention.head_count_kv": 2},
    ),
    "RND1": Family(
        "rnd1",
        "Qwen3MoeForCausalLM",
        {**MOE, "num_key_value_heads": 1, "norm_topk_prob": True},
        metadata={**MOE_KEYS, "attention.head_count_kv": 1},
    ),
    "LLaDA-MoE": Family(
        "llada-moe",
        "Qwen3MoeForCausalLM",
        {**MOE, "head_dim": HEAD_DIM, "norm_topk_prob": False},
        metadata={k: v for k, v in MOE_KEYS.items() if "attention" not in k},
    ),
    "LLaDA2": Family(
        "bailingmoe2",
        "Glm4MoeForCausalLM",
        {**GLM_MOE, "num_key_value_heads": 2},
        metadata={**GLM_MOE_KEYS, "attention.head_count_kv": 2},
        fused=True,
    ),
    "LLaDA2 as llada2": Family(
        "llada2",
        "Glm4MoeForCausalLM",
        {**GLM_MOE, "num_key_value_heads": 2},
        metadata={**GLM_MOE_KEYS, "attention.head_count_kv": 2},
        fused=True,
    ),
    "NBDiff": Family(
        "pangu-embedded",
        "LlamaForCausalLM",
        {"num_key_value_heads": 2, "attention_bias": True},
        {**DECODER, "model.layers.N.self_attn.o_proj.bias": "blk.N.attn_output.bias"},
        {"attention.head_count_kv": 2},
    ),
    "Ministral 3": Family(
        "mistral3",
        "Ministral3ForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 16, **rope(10000.0, **YARN)},
        metadata={
            **YARN_KEYS,
            "attention.head_count_kv": 2,
            "attention.key_length": 16,
            "attention.value_length": 16,
        },
        interleaved=True,
    ),
    "BERT": Family("bert", "BertForMaskedLM", {"type_vocab_size": 2}, BERT),
    "RoBERTa": Family("bert", "RobertaForMaskedLM", {"pad_token_id": 1}, ROBERTA, first_row=2),
    "XLM-R": Family("bert", "XLMRobertaForMaskedLM", {"pad_token_id": 1}, ROBERTA, first_row=2),
    "XLM-R XL": Family(
        "bert", "XLMRobertaXLForMaskedLM", {"pad_token_id": 1}, ROBERTA_XL, {"localdiff.norm": "pre"}, first_row=2
    ),
    "DistilBERT": Family("bert", "DistilBertForMaskedLM", {}, DISTILBERT),
    "ModernBERT": Family(
        "modern-bert",
        "ModernBertForMaskedLM",
        {
            "local_attention": 12,
            "num_hidden_layers": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        MODERNBERT,
        {
            "block_count": 5,
            "attention.sliding_window": 12,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base": 160000.0,
            "rope.freq_base_swa": 10000.0,
        },
    ),
}


def make_model(family: Family, seed: int = 0, scale: float = 0.2) -> Any:
    """A random transformers model, float32. scale: standard deviation of the weights, large enough to matter."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "intermediate_size": 72,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT + family.first_row,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "num_key_value_heads": HEADS,
    }
    by_class = {
        "GPT2LMHeadModel": {"n_embd": DIM, "n_inner": 72, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT},
        "DistilBertForMaskedLM": {"dim": DIM, "hidden_dim": 72, "n_layers": LAYERS, "n_heads": HEADS},
        "ModernBertForMaskedLM": {"cls_token_id": 0, "sep_token_id": 0},
    }
    cls = getattr(transformers, family.hf)
    own = by_class.get(family.hf, {})
    if "n_layer" in own or "n_layers" in own:
        keep = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings")
        common = {key: common[key] for key in keep if key != "max_position_embeddings" or "n_positions" not in own}
    config = cls.config_class(**{**common, **own, **family.config})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter.dtype != torch.float32 or "inv_freq" in name:
                continue
            noise = torch.randn_like(parameter) * scale
            parameter.copy_(noise + 1 if parameter.ndim == 1 and "bias" not in name else noise)
    return model


def hf_logits(family: Family, model: Any, tokens: np.ndarray) -> np.ndarray:
    """float32 [length, vocab]: every row sees every position, of those that the model's own windows leave it."""
    import torch

    ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None]
    mask = {} if family.is_encoder else {"attention_mask": torch.zeros(1, 1, len(tokens), len(tokens))}
    with torch.no_grad():
        return model(ids, **mask).logits[0].numpy()


def interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of Q or K: value i and i + half of a head become neighbours."""
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def tensors_of(family: Family, model: Any) -> dict[str, np.ndarray]:
    """The file's tensors. A checkpoint name that the row does not know is an error, except tied and constant ones."""
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    skipped = r"(lm_head\.decoder|cls\.predictions\.decoder|vocab_projector|decoder)\.(weight|bias)|.*position_ids"
    tensors: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        ours = family.names.get(re.sub(r"\.(\d+)\.", ".N.", name, count=1))
        if ours is None or (tied and name == "lm_head.weight"):
            assert re.fullmatch(skipped, name) or tied, name
            continue
        layer = re.search(r"\.(\d+)\.", name)
        ours = ours.replace("N", layer[1]) if layer else ours
        array = value.numpy().astype(np.float32)
        if family.transposed and array.ndim == 2 and "embd" not in ours:
            array = np.ascontiguousarray(array.T)
        if ours == "position_embd.weight":
            array = array[family.first_row :]
        if family.interleaved and re.search(r"attn_[qk]\.weight", ours):
            array = interleave(array, getattr(model.config, "head_dim", None) or HEAD_DIM)
        if "gate_up_exps" in ours:
            half = array.shape[1] // 2
            tensors[ours.replace("gate_up", "gate")] = np.ascontiguousarray(array[:, :half])
            tensors[ours.replace("gate_up", "up")] = np.ascontiguousarray(array[:, half:])
            continue
        tensors[ours] = array
    for layer in range(model.config.num_hidden_layers if family.fused else 0):
        parts = [tensors.pop(f"blk.{layer}.attn_{x}.weight") for x in "qkv"]
        tensors[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(parts)
    return tensors


def metadata_of(family: Family, model: Any) -> dict[str, Any]:
    """The file's metadata, whole keys."""
    eps_names = {
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        **dict.fromkeys(("layer_norm_eps", "norm_eps", "layer_norm_epsilon"), "attention.layer_norm_epsilon"),
    }
    eps = {ours: getattr(model.config, theirs) for theirs, ours in eps_names.items() if hasattr(model.config, theirs)}
    keys = {
        "context_length": CONTEXT,
        "embedding_length": DIM,
        "block_count": LAYERS,
        "feed_forward_length": 72,
        "attention.head_count": HEADS,
        **(eps or {"attention.layer_norm_epsilon": 1e-12}),  # DistilBERT's is not in its configuration
        **family.metadata,
    }
    return {key if key.startswith("localdiff.") else f"{family.arch}.{key}": value for key, value in keys.items()}


def write_gguf(
    path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray], quantise: str | None = None
) -> Path:
    """quantise: a type for matrices whose rows it divides; others stay float32."""
    writer = gguf.GGUFWriter(path, arch)
    add_values(writer, metadata)
    for name, array in tensors.items():
        kind = gguf.GGMLQuantizationType[quantise] if quantise else None
        if kind and array.ndim > 1 and array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 and "inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    finish(writer)
    return path


class FamilyFiles:
    """The GGUF files of tiny random models by family, in `folder`; each is written when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name: str) -> Path:
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            family = FAMILIES[name]
            model = make_model(family)
            write_gguf(path, family.arch, metadata_of(family, model), tensors_of(family, model))
        return path
