"""The tokenizer of a checkpoint as GGUF metadata: `tokenizer.huggingface.json` verbatim and `tokenizer.ggml.*`.

Byte-level BPE becomes the model `gpt2` with tokens and merges, BPE with byte fallback `llama` with scores (the negated
ranks of the merges), WordPiece `bert`, Unigram `t5` with its character map. These arrays cannot say everything that the
JSON says, so readers should prefer the JSON; what the arrays leave out becomes a notice. Not here: other kinds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from ..errors import ModelFileError, OptionError
from ..text.pretokenizers import DIGIT, GPT2, find_row
from .checkpoint import read_json
from .llama2c import llama2c_tokenizer
from .wordpiece import is_wordpiece, special_tokens, wordpiece_json

_SPACE = "\u2581"
# our name -> key of tokenizer.ggml; "seperator" is how the format spells it
_SPECIAL_KEYS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask", "sep": "seperator", "cls": "cls"
}  # fmt: skip
_JSON_ONLY = "readers that know tokenizer.ggml.* alone will give other tokens"


@dataclass(frozen=True)
class TokenizerFiles:
    text: str  # tokenizer.json
    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    chat_template: str | None = None
    origin: str = "tokenizer.json"
    files: tuple[Path, ...] = ()
    notices: tuple[str, ...] = ()


def load_tokenizer(source: Path) -> TokenizerFiles:
    """`source` is an HF folder, a tokenizer.json, a vocab.txt of BERT's kind or the tokenizer file of llama2.c."""
    if source.is_file() and source.suffix not in (".json", ".txt"):
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
    read = (path, config_path, template_path)
    named = source.is_file() and source.suffix == ".txt"
    if named or (source.is_dir() and not path.is_file() and is_wordpiece(folder, config)):
        vocab = source if named else folder / "vocab.txt"
        text, notices = wordpiece_json(vocab, config)
        return TokenizerFiles(text, special_tokens(config), template, str(vocab), (vocab, *read), tuple(notices))
    text = path.read_text(encoding="utf-8") if path.is_file() else _convert_slow(folder, source)
    return TokenizerFiles(text, config, template, str(path), read)


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
        return _metadata(files, model_config, rows)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{files.origin}: is not a tokenizer.json: {error!r:.300}") from None


def _metadata(
    files: TokenizerFiles, model_config: Mapping[str, Any], rows: int
) -> tuple[dict[str, Any], list[str]]:
    tokenizer = json.loads(files.text)
    kind = _kind(tokenizer)
    described = _KINDS[kind](tokenizer) if kind in _KINDS else None
    vocab = {} if described is None else described.vocab
    added: list[dict[str, Any]] = tokenizer.get("added_tokens") or []
    tokens, types = _tokens(files.origin, vocab, added, rows) if vocab else ([], [])
    if described is None or not vocab:
        raise ModelFileError(
            f"{files.origin}: tokenizer model {kind if vocab or described is None else 'without tokens'}, which is not "
            "supported; supported: byte-capable BPE, WordPiece and Unigram"
        )
    for index in range(rows):
        if types[index] == gguf.TokenType.NORMAL and described.is_byte(tokens[index]):
            types[index] = int(gguf.TokenType.BYTE)
    if described.unknown in vocab:
        types[vocab[described.unknown]] = int(gguf.TokenType.UNKNOWN)
    ids = {text: index for index, text in enumerate(tokens)}
    written = [described.spell(text, types[index]) for index, text in enumerate(tokens)]
    record: dict[str, Any] = {
        "tokenizer.ggml.model": described.model,
        "tokenizer.ggml.pre": described.pre,
        "tokenizer.ggml.tokens": written,
        "tokenizer.ggml.token_type": types,
        **described.keys,
    }
    if described.score is not None:
        record["tokenizer.ggml.scores"] = [described.score(text) for text in tokens]
    notices = [*files.notices, *described.notices]

    special = {name: _special_id(name, files, model_config, ids) for name in _SPECIAL_KEYS}
    if special["unk"] is None:
        special["unk"] = ids.get(described.unknown or "")
    first, last = _framing(tokenizer)
    if special["bos"] is None:  # of masked language models cls is what a text begins with
        special["bos"] = special["cls"]
    for name, key in _SPECIAL_KEYS.items():
        if special[name] is not None:
            record[f"tokenizer.ggml.{key}_token_id"] = special[name]
    for flag, framed, role in (
        ("add_bos_token", first, "bos"), ("add_eos_token", last, "eos"), ("add_sep_token", last, "sep")
    ):  # fmt: skip
        stated = files.config.get(flag)
        inferred = framed is not None and ids.get(framed) is not None and ids.get(framed) == special[role]
        if role != "sep" or (inferred and not record["tokenizer.ggml.add_eos_token"]):
            record[f"tokenizer.ggml.{flag}"] = stated if isinstance(stated, bool) else inferred
    if isinstance(files.chat_template, str):
        record["tokenizer.chat_template"] = files.chat_template
    record["tokenizer.huggingface.json"] = files.text
    if rows > len(vocab.keys() | {token["content"] for token in added}):
        notices.append(f"the embedding has {rows} rows; those without a token are unused [PAD] tokens")
    return record, notices


@dataclass(frozen=True)
class _Described:
    """What a tokenizer.json says, for the arrays.

    model, pre   tokenizer.ggml.model and .pre
    vocab        text -> id, without added tokens
    unknown      text of the unknown token
    keys         further metadata
    score        of a text, None where the kind has no scores
    spell        (text, token type) -> text as the kind writes it
    is_byte      whether a text is a byte piece
    """

    model: str
    vocab: dict[str, int]
    unknown: str | None = None
    pre: str = "default"
    keys: dict[str, Any] = field(default_factory=dict)
    score: Callable[[str], float] | None = None
    spell: Callable[[str, int], str] = lambda text, kind: text
    is_byte: Callable[[str], bool] = lambda text: False
    notices: tuple[str, ...] = ()


def _kind(tokenizer: Mapping[str, Any]) -> str:
    model = tokenizer["model"]
    kind = str(model.get("type", "BPE"))
    if kind != "BPE":
        return kind
    if "ByteLevel" in _types(tokenizer.get("pre_tokenizer")) + _types(tokenizer.get("decoder")):
        return "byte-level BPE"
    return "BPE with byte fallback" if model.get("byte_fallback") else "BPE without byte level or byte fallback"


def _byte_level(tokenizer: Mapping[str, Any]) -> _Described:
    model = tokenizer["model"]
    merges = _merges(model)
    if any(" " in part for pair in merges for part in pair):
        raise ValueError("a merge holds a space, which a byte-level tokenizer cannot have")
    normalizers = [kind for kind in _types(tokenizer.get("normalizer")) if kind != "Sequence"]
    nfc, ignore_merges = "NFC" in normalizers, bool(model.get("ignore_merges"))
    row = find_row(_patterns(tokenizer), nfc, ignore_merges)
    notices = []
    if row is None:
        notices.append(f"the pre-tokenizer is none of the known ones; tokenizer.ggml.pre is 'default', so {_JSON_ONLY}")
    elif (row.nfc, row.ignore_merges) != (nfc, ignore_merges) or set(normalizers) - {"NFC"}:
        notices.append(f"tokenizer.ggml.pre '{row.names[0]}' is not quite this tokenizer, so {_JSON_ONLY}")
    if any(part.get("add_prefix_space") for part in _parts(tokenizer.get("pre_tokenizer"))):
        notices.append(f"tokenizer.ggml.* cannot ask for a space before the text, so {_JSON_ONLY}")
    keys = {"tokenizer.ggml.merges": [" ".join(pair) for pair in merges]} if merges else {}
    pre = "default" if row is None else row.names[0]
    return _Described("gpt2", dict(model["vocab"]), model.get("unk_token"), pre, keys, notices=tuple(notices))


def _sentencepiece(tokenizer: Mapping[str, Any]) -> _Described:
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(model)):
        ranks.setdefault("".join(pair), rank)
    return _Described(
        "llama",
        dict(model["vocab"]),
        model.get("unk_token"),
        keys={"tokenizer.ggml.add_space_prefix": _adds_space(tokenizer)},
        score=lambda text: -float(ranks[text] + 1) if text in ranks else 0.0,
        is_byte=_is_byte,
    )


def _word_piece(tokenizer: Mapping[str, Any]) -> _Described:
    model = tokenizer["model"]
    mark = model.get("continuing_subword_prefix", "##")
    normalizer = next((part for part in _parts(tokenizer.get("normalizer")) if part["type"] == "BertNormalizer"), None)
    notices = []
    if normalizer is None or mark != "##" or _types(tokenizer.get("pre_tokenizer")) != ["BertPreTokenizer"]:
        notices.append(f"the normalizer and pre-tokenizer are not those of BERT, so {_JSON_ONLY}")
    keys = {
        f"tokenizer.ggml.normalizer.{name}": bool(normalizer[name])
        for name in ("lowercase", "strip_accents")
        if normalizer is not None and normalizer.get(name) is not None
    }

    def spell(text: str, kind: int) -> str:  # words begin with U+2581, the rest of a word has no mark
        if kind not in (gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED) or (text[:1] + text[-1:] == "[]"):
            return text
        return text.removeprefix(mark) if text.startswith(mark) and text != mark else _SPACE + text

    vocab, unknown = dict(model["vocab"]), model.get("unk_token")
    return _Described("bert", vocab, unknown, keys=keys, spell=spell, notices=tuple(notices))


def _unigram(tokenizer: Mapping[str, Any]) -> _Described:
    model = tokenizer["model"]
    scores = {text: float(score) for text, score in model["vocab"]}
    parts = _parts(tokenizer.get("normalizer"))
    charsmap = next((part["precompiled_charsmap"] for part in parts if part["type"] == "Precompiled"), "")
    squeezes = any(part["type"] == "Replace" and part["pattern"] == {"Regex": " {2,}"} for part in parts)
    keys: dict[str, Any] = {
        "tokenizer.ggml.add_space_prefix": _adds_space(tokenizer),
        "tokenizer.ggml.remove_extra_whitespaces": squeezes
        or "WhitespaceSplit" in _types(tokenizer.get("pre_tokenizer")),
    }
    if charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = list(base64.b64decode(charsmap, validate=True))
    known = {"Precompiled", "Replace", "Strip"}
    notices = (f"its normalizer is more than a character map, so {_JSON_ONLY}",)
    return _Described(
        "t5",
        {text: index for index, (text, _) in enumerate(model["vocab"])},
        None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0],
        keys=keys,
        score=lambda text: scores.get(text, 0.0),
        is_byte=_is_byte if model.get("byte_fallback") else lambda text: False,
        notices=notices if {part["type"] for part in parts} - known else (),
    )


_KINDS = {
    "byte-level BPE": _byte_level,
    "BPE with byte fallback": _sentencepiece,
    "WordPiece": _word_piece,
    "Unigram": _unigram,
}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _tokens(
    origin: str, vocab: Mapping[str, int], added: list[dict[str, Any]], rows: int
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
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(kinds.CONTROL if token.get("special") else kinds.USER_DEFINED)
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


def _patterns(tokenizer: Mapping[str, Any]) -> list[str]:
    """The regular expressions by which text is cut; one that no table has for a step of another kind."""
    found: list[str] = []
    for part in _parts(tokenizer.get("pre_tokenizer")):
        kind, pattern = part.get("type"), part.get("pattern", {})
        # "Removed" and inverted keeps the matches alone, which cover the text in every known tokenizer
        whole = (part.get("behavior"), bool(part.get("invert"))) in (("Isolated", False), ("Removed", True))
        if kind == "ByteLevel":
            found += [GPT2] if part.get("use_regex", True) else []
        elif kind == "Digits" and part.get("individual_digits"):
            found.append(DIGIT)
        elif kind == "Split" and whole and "Regex" in pattern:
            found.append(pattern["Regex"])
        else:
            found.append(f"another: {kind}")
    return found


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
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            return part["cls"][0], part["sep"][0]
    return None, None
