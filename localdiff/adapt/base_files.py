"""Bases from single files: GGUF (weights dequantised to f32, row orders undone) and llama2.c checkpoints.

Tensor names and layouts come from the tables of the converter, read backwards; nothing is listed twice. A GGUF without
`tokenizer.huggingface.json` gets its tokenizer from `tokenizer.ggml.*` where that is byte-level BPE; other kinds ask
for --tokenizer. Not here: RoPE scaling other than linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from ..convert.families import FAMILIES
from ..convert.family import Family, FloatArray, Row, Sizes, transpose
from ..convert.gguf_file import open_gguf
from ..convert.llama2c import read_llama2c
from ..convert.rope import half_split_rows
from ..errors import ModelFileError
from ..text.pretokenizers import BY_NAME
from ..text.vocabulary import CONTROL, UNKNOWN, USER_DEFINED
from .base import Base, checked, end_token_of, load_tokenizer

# GGUF architecture -> HF class, prefix of the body's tensor names there, config field -> metadata key
_LLAMA_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_GPT2_FIELDS = {
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "model.", _LLAMA_FIELDS),
    "qwen2": ("Qwen2ForCausalLM", "model.", _LLAMA_FIELDS),
    "gpt2": ("GPT2LMHeadModel", "transformer.", _GPT2_FIELDS),
}


def load_llama2c(path: Path, tokenizer: str | None) -> Base:
    if tokenizer is None:
        raise ModelFileError(f"{path}: a llama2.c checkpoint holds no tokenizer; name its file with --tokenizer")
    config, arrays = read_llama2c(path)
    pieces = load_tokenizer(Path(tokenizer))
    fields = {name: value for name, value in config.items() if name != "architectures"}
    model = _build("LlamaForCausalLM", fields, arrays, path)
    end = end_token_of(pieces, {}, config["eos_token_id"], path)
    return checked(Base(model, pieces, end), path)


def load_gguf(path: Path, tokenizer: str | None) -> Base:
    reader = open_gguf(path)
    metadata = {key: entry.contents() for key, entry in reader.fields.items() if not key.startswith("GGUF.")}
    arch = metadata.get("general.architecture")
    if arch not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelFileError(f"{path}: architecture {arch} cannot be trained here; expected one of {known}")
    name, prefix, _ = _ARCHITECTURES[arch]
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if "rope_freqs.weight" in stored:
        raise ModelFileError(f"{path}: its RoPE frequencies are scaled by a table; adapt from the HF folder instead")
    head = "output.weight" in stored
    config = _config(arch, metadata, path, tied=not head)
    family = FAMILIES[arch]
    heads = int(metadata[f"{arch}.attention.head_count"])
    sizes = {"heads": heads, "kv_heads": int(metadata.get(f"{arch}.attention.head_count_kv", heads))}
    arrays: dict[str, FloatArray] = {}
    for row, layer in _rows(family, int(metadata[f"{arch}.block_count"])):
        tensor = stored.pop(row.target.format(i=layer), None)
        if tensor is not None:  # what is missing is told by _build
            arrays[prefix + row.source.format(i=layer)] = _undo(row, _dequantized(tensor), sizes)
    if head:
        arrays["lm_head.weight"] = _dequantized(stored.pop("output.weight"))
    if stored:
        raise ModelFileError(f"{path}: present and unused: {', '.join(sorted(stored))}")
    for kind in ("attention", "mlp"):  # Llama states biases by kind, all or none
        part = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}[kind]
        config[f"{kind}_bias"] = f"{prefix}layers.0.{part}.bias" in arrays
    config["vocab_size"] = len(arrays[prefix + family.embedding[0]])
    model = _build(name, config, arrays, path)
    pieces = load_tokenizer(Path(tokenizer)) if tokenizer else _tokenizer(metadata, path)
    roles = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    named = {f"{role}_token": pieces.id_to_token(token) for role, token in roles.items() if isinstance(token, int)}
    if "tokenizer.chat_template" in metadata:
        named["chat_template"] = metadata["tokenizer.chat_template"]
    return checked(Base(model, pieces, end_token_of(pieces, named, roles["eos"], path), named), path)


def _config(arch: str, metadata: Mapping[str, Any], path: Path, tied: bool) -> dict[str, Any]:
    _, _, keys = _ARCHITECTURES[arch]
    missing = [f"{arch}.{key}" for key in keys.values() if f"{arch}.{key}" not in metadata]
    if missing:
        raise ModelFileError(f"{path}: lacks {', '.join(missing)}, which an {arch} model needs")
    config: dict[str, Any] = {field: metadata[f"{arch}.{key}"] for field, key in keys.items()}
    config |= {"tie_word_embeddings": tied, "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id")}
    config["eos_token_id"] = metadata.get("tokenizer.ggml.eos_token_id")
    if keys is _GPT2_FIELDS:
        return config
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = metadata.get(f"{arch}.attention.head_count_kv", heads)
    if arch == "llama":
        config["head_dim"] = metadata.get(f"{arch}.attention.key_length", config["hidden_size"] // heads)
    rope = {"rope_type": "default", "rope_theta": metadata.get(f"{arch}.rope.freq_base", 10000.0)}
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": metadata[f"{arch}.rope.scaling.factor"]}
    elif scaling != "none":
        raise ModelFileError(f"{path}: RoPE scaling '{scaling}' cannot be trained here; expected none or linear")
    return config | {"rope_parameters": rope}


def _rows(family: Family, layers: int) -> list[tuple[Row, int]]:
    embedding = Row(family.embedding[0], "token_embd.weight", ("vocab", "dim"))
    layered = [(row, layer) for layer in range(layers) for row in family.layer_rows]
    return [(row, 0) for row in (embedding, *family.rows)] + layered


def _undo(row: Row, tensor: FloatArray, sizes: Sizes) -> FloatArray:
    """Reverse `row.change`: the transposes of GPT-2 and Llama's reordering of Q and K rows."""
    if row.change is None:
        return tensor
    if row.change is transpose:
        return transpose(tensor, sizes)
    return half_split_rows(tensor, sizes["heads" if "attn_q." in row.target else "kv_heads"])


def _dequantized(tensor: Any) -> FloatArray:
    try:
        return np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError:
        kind = tensor.tensor_type.name.lower()
        raise ModelFileError(f"{tensor.name} is stored as {kind}, which cannot be decoded; use another file") from None


def _build(name: str, config: dict[str, Any], arrays: Mapping[str, FloatArray], path: Path) -> Any:
    family = getattr(transformers, name)
    model = family(family.config_class(**config)).float()
    weights = {key: torch.from_numpy(np.array(array, np.float32)) for key, array in arrays.items()}
    if config["tie_word_embeddings"]:
        body = model.get_input_embeddings()
        weights["lm_head.weight"] = next(weights[key] for key in weights if model.get_submodule(key[:-7]) is body)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: its tensors do not fit {name}: {error}") from None
    return model


def _tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    source = metadata.get("tokenizer.huggingface.json")
    if source is not None:
        return Tokenizer.from_str(source)
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or name not in BY_NAME:
        found = f"kind {kind!r}, pre-tokenizer {name!r}"
        raise ModelFileError(
            f"{path}: its tokenizer ({found}) cannot be rebuilt; name a tokenizer.json with --tokenizer"
        )
    row = BY_NAME[name]
    texts, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {text: token for token, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=row.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in row.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for text, type in zip(texts, metadata["tokenizer.ggml.token_type"], strict=True):
        if type in (CONTROL, UNKNOWN, USER_DEFINED):
            special = type != USER_DEFINED
            tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    return tokenizer
