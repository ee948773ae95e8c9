"""Tiny random checkpoints of every family that `convert` reads, in the layout in which they are published.

Where transformers has the class, it writes the folder; families with code of their own are written from the class whose
arithmetic is theirs, with the published names of tensors and configuration; LLaDA2 from its description, in numpy.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny import VOCAB, tiny_tokenizer

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Made:
    folder: Path
    state: State  # of the file
    config: dict[str, Any]  # of config.json
    logits: Callable[[np.ndarray], np.ndarray]  # tokens -> float32 [length, vocab], every row seeing all


DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
QWEN3 = DECODER | {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(folder)


def _written_by_transformers(
    folder: Path, name: str, head: str, fields: dict[str, Any], scale: float = 0.2
) -> tuple[Any, State, dict[str, Any]]:
    """(model, tensors and config as save_pretrained writes them)."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    torch.set_num_threads(1)
    torch.manual_seed(7)
    config = getattr(transformers, name + "Config")(**{"vocab_size": VOCAB, **fields})
    config._attn_implementation = "eager"
    model = getattr(transformers, name + head)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * scale
            parameter.copy_(noise + 1 if parameter.ndim == 1 and key.endswith("weight") else noise)
    model.save_pretrained(folder)
    state = {key: tensor.copy() for key, tensor in load_file(folder / "model.safetensors").items()}
    return model, state, json.loads((folder / "config.json").read_text())


def _logits_of(model: Any, causal: bool) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def logits(tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None]
        open_mask = {"attention_mask": torch.zeros(1, 1, len(tokens), len(tokens))} if causal else {}
        with torch.no_grad():
            return np.asarray(model(ids, **open_mask).logits[0].float().numpy())

    return logits


def transformers_checkpoint(
    folder: Path,
    name: str,
    head: str,
    fields: dict[str, Any],
    *,
    renamed: Callable[[str], str] | None = None,
    stated: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    more: State | None = None,
) -> Made:
    """`renamed` gives tensors, `stated` the configuration their published form; `more` are tensors that are dropped."""
    model, state, config = _written_by_transformers(folder, name, head, fields)
    state = {renamed(key) if renamed else key: tensor for key, tensor in state.items()}
    config = stated(config) if stated else config
    _write(folder, state | (more or {}), config)
    return Made(folder, state, config, _logits_of(model, causal=head == "ForCausalLM"))


def with_type(model_type: str, **more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | {"model_type": model_type, "architectures": ["Own"]} | more


_LLADA_NAMES = {
    "model.embed_tokens.weight": "model.transformer.wte.weight",
    "model.norm.weight": "model.transformer.ln_f.weight",
    "lm_head.weight": "model.transformer.ff_out.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def llada_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return _LLADA_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"model.transformer.blocks.{layer}.{_LLADA_NAMES[rest.removesuffix('.weight')]}.weight"


def llada_config(**more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    fields = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 64,
        "embedding_size": VOCAB,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "max_sequence_length": 128,
        "mlp_hidden_size": 96,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": 4,
        "n_layers": 2,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "vocab_size": VOCAB,
        **more,
    }
    return lambda config: fields


def llada_moe_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAMoEModelLM"],
        "model_type": "llada",
        "attention_bias": False,
        "clip_qkv": None,
        "dense_intermediate_size": 96,
        "eos_token_id": 9,
        "expert_intermediate_size": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "max_position_embeddings": 128,
        "moe_layer_freq": [1, 1],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }


def nemotron_name(name: str) -> str:
    return "diffusion_head.weight" if name == "lm_head.weight" else name.replace("model.", "encoder.", 1)


LLADA2_CONFIG: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "eos_token_id": 3,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "moe_intermediate_size": 32,
    "n_group": 4,
    "norm_head": False,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_shared_experts": 1,
    "pad_token_id": 3,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 600000,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "vocab_size": VOCAB,
}


def llada2_state(c: dict[str, Any]) -> State:
    rng = np.random.default_rng(11)
    d, hd, e = c["hidden_size"], c["head_dim"], c["moe_intermediate_size"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (d,)}
    shapes |= {"model.word_embeddings": (VOCAB, d), "lm_head": (VOCAB, d)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm": (d,),
            layer + "post_attention_layernorm": (d,),
            layer + "attention.query_key_value": ((heads + 2 * kv) * hd, d),
            layer + "attention.query_layernorm": (hd,),
            layer + "attention.key_layernorm": (hd,),
            layer + "attention.dense": (d, heads * hd),
        }
        mlps = {layer + "mlp": c["intermediate_size"]}
        if i >= c["first_k_dense_replace"]:
            shapes[layer + "mlp.gate"] = (c["num_experts"], d)
            mlps = {f"{layer}mlp.experts.{n}": e for n in range(c["num_experts"])}
            mlps[layer + "mlp.shared_experts"] = e * c["num_shared_experts"]
        for name, width in mlps.items():
            shapes |= {f"{name}.gate_proj": (width, d), f"{name}.up_proj": (width, d), f"{name}.down_proj": (d, width)}
    state = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        state[f"{name}.weight"] = noise + np.float32(len(shape) == 1)
        if name.endswith("mlp.gate"):  # large enough to change which experts are chosen
            state[f"{name}.expert_bias"] = rng.standard_normal(shape[0]).astype(np.float32) * np.float32(0.3)
    return state


def llada2_logits(state: State, c: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """The forward pass of LLaDA2 as described for its published checkpoints, float64, every row seeing all."""
    w = {name.removesuffix(".weight"): tensor.astype(np.float64) for name, tensor in state.items()}
    length, hd, heads, kv = len(tokens), c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name]

    def rotate(x: np.ndarray) -> np.ndarray:
        dims = int(hd * c["partial_rotary_factor"])
        angles = np.arange(length)[:, None] * c["rope_theta"] ** (-2.0 * np.arange(dims // 2) / dims)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., : dims // 2], x[..., dims // 2 : dims]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., dims:]], axis=-1)

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        gate = x @ w[f"{name}.gate_proj"].T
        return (gate / (1 + np.exp(-gate)) * (x @ w[f"{name}.up_proj"].T)) @ w[f"{name}.down_proj"].T

    def mixture(x: np.ndarray, name: str) -> np.ndarray:
        scores = 1 / (1 + np.exp(-(x @ w[f"{name}.gate"].T)))
        ranked = scores + w[f"{name}.gate.expert_bias"]
        out = mlp(x, f"{name}.shared_experts")
        for row in range(length):
            groups = ranked[row].reshape(c["n_group"], -1)
            kept = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(axis=1))[: c["topk_group"]]
            visible = np.full_like(groups, -np.inf)
            visible[kept] = groups[kept]
            chosen = np.argsort(-visible.reshape(-1))[: c["num_experts_per_tok"]]
            weights = scores[row, chosen] / scores[row, chosen].sum() * c["routed_scaling_factor"]
            for expert, weight in zip(chosen, weights, strict=True):
                out[row] += weight * mlp(x[row : row + 1], f"{name}.experts.{expert}")[0]
        return out

    x = w["model.word_embeddings"][tokens]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        h = norm(x, layer + "input_layernorm")
        qkv = (h @ w[layer + "attention.query_key_value"].T).reshape(length, heads + 2 * kv, hd)
        q, k, v = np.split(qkv, [heads, heads + kv], axis=1)
        q, k = rotate(norm(q, layer + "attention.query_layernorm")), rotate(norm(k, layer + "attention.key_layernorm"))
        out = np.empty((length, heads, hd))
        for head in range(heads):
            group = head // (heads // kv)
            scores = q[:, head] @ k[:, group].T / np.sqrt(hd)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
        x = x + out.reshape(length, -1) @ w[layer + "attention.dense"].T
        h = norm(x, layer + "post_attention_layernorm")
        x = x + (mlp if i < c["first_k_dense_replace"] else mixture)(h, layer + "mlp")
    return norm(x, "model.norm") @ w["lm_head"].T


def llada2_checkpoint(folder: Path) -> Made:
    state = llada2_state(LLADA2_CONFIG)
    _write(folder, state, LLADA2_CONFIG)
    return Made(folder, state, LLADA2_CONFIG, lambda tokens: llada2_logits(state, LLADA2_CONFIG, tokens))


def _case(name: str, head: str, fields: dict[str, Any], **how: Any) -> Callable[[Path], Made]:
    return lambda folder: transformers_checkpoint(folder, name, head, fields, **how)


_MHA = {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_MINERU = {"vision_model.blocks.0.mlp.weight": np.ones((2, 3), "f4"), "vision_abstractor.x": np.ones(3, "f4")}
CHECKPOINTS: dict[str, Callable[[Path], Made]] = {
    "llada": _case(
        "Llama", "ForCausalLM", DECODER | _MHA,
        renamed=llada_name, stated=llada_config(n_kv_heads=4, weight_tying=False, mask_token_id=5, eos_token_id=9),
    ),
    "illada": _case(
        "Llama", "ForCausalLM", DECODER | _MHA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
        renamed=llada_name, stated=llada_config(n_kv_heads=2, weight_tying=True, eos_token_id=[9, 10]),
    ),
    "dream": _case(
        "Qwen2", "ForCausalLM", DECODER, stated=with_type("Dream", mask_token_id=7, pad_token_id=3, eos_token_id=3)
    ),
    "fast-dllm-v2": _case("Qwen2", "ForCausalLM", DECODER, stated=with_type("Fast_dLLM_Qwen", bd_size=16)),
    "a2d-llama": _case("Llama", "ForCausalLM", DECODER, stated=with_type("a2d-llama")),
    "qwen3": _case("Qwen3", "ForCausalLM", QWEN3),
    "qwen3-tied": _case("Qwen3", "ForCausalLM", QWEN3 | {"tie_word_embeddings": True}),
    "sdar": _case("Qwen3", "ForCausalLM", QWEN3, stated=with_type("sdar", block_size=8, eos_token_id=4)),
    "mineru": _case(
        "Qwen3", "ForCausalLM", QWEN3, more=_MINERU, renamed=lambda name: "language_model." + name,
        stated=lambda config: {
            "architectures": ["MinerUDiffusionForConditionalGeneration"],
            "model_type": "mineru_diffusion",
            "mask_token_id": 6,
            "text_config": config | {"model_type": "sdar"},
            "vision_config": {"model_type": "qwen2_vl"},
        },
    ),
    "qwen3moe": _case("Qwen3Moe", "ForCausalLM", QWEN3 | EXPERTS | {"norm_topk_prob": True}),
    "sdar-moe": _case(
        "Qwen3Moe", "ForCausalLM", QWEN3 | EXPERTS | {"norm_topk_prob": True}, stated=with_type("sdar_moe")
    ),
    "rnd1": _case(
        "Qwen3Moe", "ForCausalLM", QWEN3 | EXPERTS | {"norm_topk_prob": True},
        stated=lambda config: with_type("rnd1", mask_token_id=8)(
            {name: value for name, value in config.items() if name != "norm_topk_prob"}
        ),
    ),
    "llada-moe": _case(
        "Qwen3Moe", "ForCausalLM",
        DECODER | EXPERTS | {"norm_topk_prob": False, "head_dim": 16, "rope_theta": 50000.0, "rms_norm_eps": 1e-5},
        stated=llada_moe_config,
    ),
    "llada2": llada2_checkpoint,
    "ministral3": _case("Ministral3", "ForCausalLM", DECODER | {"head_dim": 32, "rope_parameters": YARN}),
    "nemotron": _case(
        "Ministral3", "ForCausalLM", DECODER | {"head_dim": 32, "rope_parameters": YARN},
        renamed=nemotron_name, stated=with_type("nemotron_labs_diffusion", mask_token_id=11, block_size=32),
    ),
    "bert": _case("Bert", "ForMaskedLM", ENCODER | {"type_vocab_size": 2, "layer_norm_eps": 1e-12}),
    "roberta": _case("Roberta", "ForMaskedLM", ENCODER | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-r": _case("XLMRoberta", "ForMaskedLM", ENCODER | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-r-xl": _case("XLMRobertaXL", "ForMaskedLM", ENCODER | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": _case(
        "DistilBert", "ForMaskedLM",
        {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 80},
    ),
    "modernbert": _case(
        "ModernBert", "ForMaskedLM",
        ENCODER | {
            "num_hidden_layers": 5, "local_attention": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
            "cls_token_id": 2, "sep_token_id": 3,
        },
    ),
}  # fmt: skip
