"""The tokenizer of a checkpoint as GGUF metadata: `tokenizer.huggingface.json` verbatim and `tokenizer.ggml.*`.

Byte-level BPE becomes the model `gpt2` with tokens and merges; BPE with byte fallback becomes `llama` with scores,
which are the negated ranks of the merges. The second form cannot say everything the first can, so
readers should prefer the first. Not here: Unigram and WordPiece tokenizers, which the supported families do not use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from ..errors import ModelFileError, OptionError
from .checkpoint import read_json
from .llama2c import llama2c_tokenizer

_SPACE = "\u2581"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# what a byte-level tokenizer does before its merges -> tokenizer.ggml.pre
_PRE_TOKENIZERS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL,): "llama-bpe",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,): "qwen2",
}
# our name -> key of tokenizer.ggml; "seperator" is how the format spells it
_SPECIAL_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask", "sep": "seperator"}


@dataclass(frozen=True)
class TokenizerFiles:
    text: str  # tokenizer.json
    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    chat_template: str | None = None
    origin: str = "tokenizer.json"
    files: tuple[Path, ...] = ()


def load_tokenizer(source: Path) -> TokenizerFiles:
    """`source` is an HF folder, a tokenizer.json or the tokenizer file of llama2.c."""
    if source.is_file() and source.suffix != ".json":
        return TokenizerFiles(llama2c_tokenizer(source).to_str(), origin=str(source), files=(source,))
    folder = source if source.is_dir() else source.parent
    path = folder / "tokenizer.json" if source.is_dir() else source
    config_path, template_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(config_path) if config_path.is_file() else {}
    template = config.get("chat_template")
    if template_path.is_file():
        template = template_path.read_text(encoding="utf-8")
    if isinstance(template, list):  # several by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    text = path.read_text(encoding="utf-8") if path.is_file() else _convert_slow(folder, source)
    return TokenizerFiles(text, config, template, str(path), (path, config_path, template_path))


def _convert_slow(folder: Path, source: Path) -> str:
    slow = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / name).is_file()]
    if not source.is_dir() or not slow:
        raise OptionError(f"{source}: has no tokenizer.json; name the tokenizer's file or folder with --tokenizer")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ModelFileError(
            f"{folder}: has {slow[0]} but no tokenizer.json; install localdiff[train] to convert it"
        ) from None
    try:
        return str(
            AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True).backend_tokenizer.to_str()
        )
    except Exception as error:  # transformers raises whatever its converters meet
        raise ModelFileError(f"{folder}: {slow[0]} cannot be converted to a tokenizer.json: {error}") from None


def vocabulary_metadata(
    files: TokenizerFiles, model_config: Mapping[str, Any], rows: int
) -> tuple[dict[str, Any], list[str]]:
    """The metadata and notices. `rows` is the number of embedding rows; rows without a token become unused `[PAD]`s."""
    try:
        tokenizer = json.loads(files.text)
        model = tokenizer["model"]
        vocab: dict[str, int] = dict(model["vocab"]) if model.get("type", "BPE") == "BPE" else {}
        added: list[dict[str, Any]] = tokenizer.get("added_tokens") or []
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{files.origin}: is not a tokenizer.json: {error!r}") from None
    byte_level = "ByteLevel" in _types(tokenizer.get("pre_tokenizer")) + _types(tokenizer.get("decoder"))
    if not vocab or not (byte_level or model.get("byte_fallback")):
        kind = model.get("type", "BPE") + ("" if not vocab else " without byte level or byte fallback")
        raise ModelFileError(
            f"{files.origin}: tokenizer model {kind}, which is not supported; supported: byte-capable BPE"
        )

    tokens, types = _tokens(files.origin, vocab, added, rows, byte_level, model.get("unk_token"))
    ids = {text: index for index, text in enumerate(tokens)}
    record: dict[str, Any] = {"tokenizer.ggml.model": "gpt2" if byte_level else "llama"}
    notices: list[str] = []
    if byte_level:
        pre = _pre_tokenizer(tokenizer)
        if pre == "default":
            notices.append("the pre-tokenizer is none of the known ones; tokenizer.ggml.pre is 'default'")
        record["tokenizer.ggml.pre"] = pre
    else:
        record["tokenizer.ggml.pre"] = "default"
        record["tokenizer.ggml.add_space_prefix"] = _adds_space(tokenizer)
    record["tokenizer.ggml.tokens"] = tokens
    record["tokenizer.ggml.token_type"] = types
    if byte_level and merges:
        if any(" " in part for pair in merges for part in pair):
            raise ModelFileError(f"{files.origin}: a merge holds a space, which a byte-level tokenizer cannot have")
        record["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    if not byte_level:
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), rank)
        record["tokenizer.ggml.scores"] = [-float(ranks[text] + 1) if text in ranks else 0.0 for text in tokens]

    special = {name: _special_id(name, files, model_config, ids) for name in _SPECIAL_KEYS}
    if special["unk"] is None:
        special["unk"] = ids.get(model.get("unk_token") or "")
    for name, key in _SPECIAL_KEYS.items():
        if special[name] is not None:
            record[f"tokenizer.ggml.{key}_token_id"] = special[name]
    first, last = _framing(tokenizer)
    for flag, framed, token in (("add_bos_token", first, special["bos"]), ("add_eos_token", last, special["eos"])):
        stated = files.config.get(flag)
        inferred = framed is not None and ids.get(framed) == token
        record[f"tokenizer.ggml.{flag}"] = stated if isinstance(stated, bool) else inferred
    if isinstance(files.chat_template, str):
        record["tokenizer.chat_template"] = files.chat_template
    record["tokenizer.huggingface.json"] = files.text
    if rows > len(vocab.keys() | {token["content"] for token in added}):
        notices.append(f"the embedding has {rows} rows; those without a token are unused [PAD] tokens")
    return record, notices


def _tokens(
    origin: str, vocab: Mapping[str, int], added: list[dict[str, Any]], rows: int, byte_level: bool, unknown: str | None
) -> tuple[list[str], list[int]]:
    kinds = gguf.TokenType
    highest = max([*vocab.values(), *(token["id"] for token in added)])
    if highest >= rows:
        raise ModelFileError(
            f"{origin}: token ids reach {highest}, but the embedding has {rows} rows; the tokenizer is another model's"
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(kinds.UNUSED)] * rows
    for text, index in vocab.items():
        tokens[index], types[index] = text, int(kinds.NORMAL)
        if not byte_level and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[index] = int(kinds.BYTE)
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(kinds.CONTROL if token.get("special") else kinds.USER_DEFINED)
    if not byte_level and unknown is not None and unknown in vocab:
        types[vocab[unknown]] = int(kinds.UNKNOWN)
    return tokens, types


def _special_id(
    name: str, files: TokenizerFiles, model_config: Mapping[str, Any], ids: Mapping[str, int]
) -> int | None:
    """From tokenizer_config.json by text, else from config.json by id (the first where it lists several)."""
    stated = files.config.get(f"{name}_token")
    text = stated.get("content") if isinstance(stated, dict) else stated
    if isinstance(text, str) and text in ids:
        return ids[text]
    found = model_config.get(f"{name}_token_id")
    if isinstance(found, list):
        found = found[0] if found else None
    return found if isinstance(found, int) and 0 <= found < len(ids) else None


def _parts(component: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer, normalizer, decoder or post-processor as a flat list."""
    if not isinstance(component, dict):
        return []
    for name in ("pretokenizers", "normalizers", "decoders", "processors"):
        if component.get("type") == "Sequence" and name in component:
            return [part for inner in component[name] for part in _parts(inner)]
    return [component]


def _types(component: Any) -> list[str]:
    return [str(part.get("type")) for part in _parts(component)]


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    steps: list[str] = []
    for part in _parts(tokenizer.get("pre_tokenizer")):
        kind = part.get("type")
        if kind == "ByteLevel":
            steps += ["words"] if part.get("use_regex", True) else []
        elif kind == "Digits" and part.get("individual_digits"):
            steps.append("digits")
        elif kind == "Split" and "Regex" in part.get("pattern", {}):
            steps.append(part["pattern"]["Regex"])
        else:
            steps.append(f"another: {kind}")
    return _PRE_TOKENIZERS.get(tuple(steps), "default")


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    for part in _parts(tokenizer.get("normalizer")):
        if part.get("type") == "Prepend" and part.get("prepend") == _SPACE:
            return True
    for part in _parts(tokenizer.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            return bool(part.get("prepend_scheme", "always") != "never")
    return False


def _framing(tokenizer: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and after one text."""
    for part in _parts(tokenizer.get("post_processor")):
        if part.get("type") == "TemplateProcessing" and part.get("single"):
            ends = [piece.get("SpecialToken", {}).get("id") for piece in part["single"]]
            return ends[0], ends[-1]
    return None, None
