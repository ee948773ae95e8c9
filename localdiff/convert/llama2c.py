"""Reader of llama2.c checkpoints (the v0 layout) and of their tokenizer files, as HF-named numpy arrays; without torch.

A v0 file is seven int32 (dim, hidden_dim, layers, heads, kv_heads, vocab, max_seq_len; a negative vocab announces a
head of its own), then float32 tensors with the layers stacked, then the two RoPE tables. Q and K rows are in
interleaved-RoPE order there; they are returned in the half-split order of HF Llama. Not here: the versioned layouts
("ak42"), int8 files.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from ..errors import ModelFileError
from .rope import half_split_rows

FloatArray = npt.NDArray[np.float32]

_HEADER = struct.Struct("<7i")
_MAGIC_VERSIONED = 0x616B3432  # "ak42", the first word of the versioned layouts
_ROPE_BASE = 10000.0
_BOS, _EOS = 1, 2
_SPACE = "\u2581"  # SentencePiece's visible space; llama2.c stores a plain one


def read_llama2c(path: Path) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Read a v0 checkpoint: (config as in an HF Llama config.json, tensors under their HF names).

    Arrays are float32, writable, mapped copy-on-write where no reordering was needed. Raises ModelFileError.
    """
    size = path.stat().st_size if path.is_file() else -1
    if size < _HEADER.size:
        found = "no such file" if size < 0 else f"{size} bytes"
        raise ModelFileError(f"{path}: {found}, expected a llama2.c checkpoint of at least {_HEADER.size} bytes")
    with path.open("rb") as file:
        header = _HEADER.unpack(file.read(_HEADER.size))
    if header[0] == _MAGIC_VERSIONED:
        raise ModelFileError(f"{path}: a versioned llama2.c file, only the v0 layout is read; export it as version 0")
    dim, hidden, layers, heads, kv_heads, signed_vocab, length = header
    vocab, tied = abs(signed_vocab), signed_vocab > 0
    limits = {"dim": dim, "hidden_dim": hidden, "layers": layers, "heads": heads, "kv_heads": kv_heads}
    limits |= {"vocab": vocab, "max_seq_len": length}
    for name, value in limits.items():
        if not 1 <= value <= 1 << 24:
            raise ModelFileError(f"{path}: {name} is {value}, expected 1 or more; this is not a llama2.c v0 checkpoint")
    if dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise ModelFileError(
            f"{path}: dim {dim}, {heads} heads and {kv_heads} KV heads do not divide; it is not a llama2.c v0 file"
        )
    head_dim = dim // heads
    kv_dim = head_dim * kv_heads
    layout: list[tuple[str, tuple[int, ...]]] = [
        ("embedding", (vocab, dim)),
        ("input_layernorm", (layers, dim)),
        ("self_attn.q_proj", (layers, dim, dim)),
        ("self_attn.k_proj", (layers, kv_dim, dim)),
        ("self_attn.v_proj", (layers, kv_dim, dim)),
        ("self_attn.o_proj", (layers, dim, dim)),
        ("post_attention_layernorm", (layers, dim)),
        ("mlp.gate_proj", (layers, hidden, dim)),
        ("mlp.down_proj", (layers, dim, hidden)),
        ("mlp.up_proj", (layers, hidden, dim)),
        ("norm", (dim,)),
        ("cosines", (length, head_dim // 2)),
        ("sines", (length, head_dim // 2)),
    ]
    if not tied:
        layout.append(("head", (vocab, dim)))
    counts = [_product(shape) for _, shape in layout]
    expected = _HEADER.size + 4 * sum(counts)
    if size != expected:
        raise ModelFileError(f"{path}: {size} bytes, but its header asks for {expected}; the file is damaged or not v0")

    values: FloatArray = np.memmap(path, dtype="<f4", mode="c", offset=_HEADER.size)
    parts: dict[str, FloatArray] = {}
    start = 0
    for (name, shape), count in zip(layout, counts, strict=True):
        parts[name] = values[start : start + count].reshape(shape)
        start += count
    _check_rope_tables(path, parts.pop("cosines"), parts.pop("sines"))

    tensors = {"model.embed_tokens.weight": parts.pop("embedding"), "model.norm.weight": parts.pop("norm")}
    if not tied:
        tensors["lm_head.weight"] = parts.pop("head")
    for name, stacked in parts.items():
        for layer in range(layers):
            tensor = stacked[layer]
            if name == "self_attn.q_proj":
                tensor = half_split_rows(tensor, heads)
            elif name == "self_attn.k_proj":
                tensor = half_split_rows(tensor, kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": _ROPE_BASE,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": _BOS,
        "eos_token_id": _EOS,
    }
    return config, tensors


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """The pieces of a llama2.c tokenizer file and their scores; spaces and control pieces as SentencePiece has them."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file, expected a llama2.c tokenizer (tokenizer.bin)")
    data = path.read_bytes()
    pieces: list[tuple[str, float]] = []
    offset = 4  # the first word is the longest piece in bytes
    while offset < len(data):
        if offset + 8 > len(data):
            raise ModelFileError(f"{path}: cut off at byte {offset}, expected another piece of the tokenizer")
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8
        if not 0 <= length <= len(data) - offset:
            raise ModelFileError(f"{path}: piece {len(pieces)} claims {length} bytes at byte {offset}, beyond the end")
        try:
            text = data[offset : offset + length].decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{path}: piece {len(pieces)} is not UTF-8; it is not a llama2.c tokenizer") from None
        offset += length
        control = {_BOS: "<s>", _EOS: "</s>"}.get(len(pieces))
        pieces.append((control or text.replace(" ", _SPACE), score))
    if len(pieces) <= _EOS or len({text for text, _ in pieces}) != len(pieces):
        raise ModelFileError(f"{path}: {len(pieces)} pieces, expected distinct ones that begin with <unk>, <s>, </s>")
    return pieces


def llama2c_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a llama2.c tokenizer file: SentencePiece BPE with byte fallback; encoding prepends <s>.

    Where two different pairs give the same piece in overlapping places, SentencePiece takes the left one and this
    takes the pair that was listed first; no other difference is known.
    """
    pieces = read_pieces(path)
    ids = {text: index for index, (text, _) in enumerate(pieces)}
    pairs: list[tuple[float, str, str]] = []
    for text, score in pieces[3:]:
        if text.startswith("<0x"):
            continue
        pairs += [(score, text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]
    pairs.sort(key=lambda pair: -pair[0])  # stable: equal scores stay in vocabulary order
    model = models.BPE(
        vocab=ids, merges=[(a, b) for _, a, b in pairs], unk_token=pieces[0][0], fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", _BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text, _ in pieces[:3]])
    return tokenizer


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result


def _check_rope_tables(path: Path, cosines: FloatArray, sines: FloatArray) -> None:
    """The tables are recomputed by every runtime, so they must hold what the stated base gives."""
    length, half = cosines.shape
    angles = np.outer(np.arange(length), _ROPE_BASE ** (-np.arange(half) / half))
    if not (np.allclose(cosines, np.cos(angles), atol=1e-3) and np.allclose(sines, np.sin(angles), atol=1e-3)):
        raise ModelFileError(f"{path}: its RoPE tables differ from those of base {_ROPE_BASE:g}, which v0 models use")
