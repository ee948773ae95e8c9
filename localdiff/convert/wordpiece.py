"""A tokenizer.json from the vocab.txt of BERT, one piece per line: WordPiece as BERT states it.

What such folders leave open is inferred and told: whether text is lowercased (from capitals in the vocabulary), and how
words are cut where no piece is marked as going on within a word (`##`): then anywhere, the longest piece first.
Not here: vocabularies of other tokenizer classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError

CLASSES = frozenset(
    name + fast for name in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer") for fast in ("", "Fast")
)
_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_MARK = "##"
_LONGEST_WORD = 100  # characters; BERT's
_ENDLESS = 1 << 20


def is_wordpiece(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder's tokenizer is a vocab.txt that is read here. config: of tokenizer_config.json."""
    others = any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json"))
    named = config.get("tokenizer_class") or "BertTokenizer"
    return (folder / "vocab.txt").is_file() and not others and named in CLASSES


def wordpiece_json(path: Path, config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The text of a tokenizer.json, and what was inferred. Raises ModelFileError where the vocabulary is not BERT's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = _read(path)
    special = {name: _text(config.get(f"{name}_token", usual)) for name, usual in _SPECIAL.items()}
    for name in ("unk", "cls", "sep"):
        if special[name] not in vocab:
            raise ModelFileError(
                f"{path}: has no {special[name]}, which BERT's tokenizer needs; name a tokenizer.json with --tokenizer"
            )
    notices = []
    words = [piece for piece in vocab if piece not in special.values() and piece[0] + piece[-1] != "[]"]
    lowercase = config.get("do_lower_case")
    if not isinstance(lowercase, bool):
        lowercase = not any(character.isupper() for piece in words for character in piece)
        what = "no capitals, so text is lowercased" if lowercase else "capitals, so text keeps its own"
        notices.append(f"do_lower_case is not stated; {path.name} holds {what}")
    marked = any(piece.startswith(_MARK) and piece != _MARK for piece in words)
    if not marked:
        notices.append(
            f"no piece of {path.name} goes on within a word ({_MARK}), so text is cut at white space and then "
            "anywhere, the longest piece first; name a tokenizer.json with --tokenizer if that is wrong"
        )
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab,
            unk_token=special["unk"],
            continuing_subword_prefix=_MARK if marked else "",
            max_input_chars_per_word=_LONGEST_WORD if marked else _ENDLESS,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
        strip_accents=config.get("strip_accents"),
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if marked else pre_tokenizers.WhitespaceSplit()
    ends = [(special[name], vocab[special[name]]) for name in ("sep", "cls")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.decoder = decoders.WordPiece(prefix=_MARK)
    present = [text for text in special.values() if text in vocab]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in present])
    return tokenizer.to_str(), notices


def special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The names of special tokens that hold where tokenizer_config.json names none."""
    return {f"{name}_token": text for name, text in _SPECIAL.items()} | dict(config)


def _read(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path}: byte {error.start} is not UTF-8; it is not a vocabulary of BERT's kind"
        ) from None
    pieces = [line.removesuffix("\r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    vocab = {piece: index for index, piece in enumerate(pieces) if piece}
    if len(vocab) != len(pieces):
        raise ModelFileError(
            f"{path}: {len(pieces) - len(vocab)} of its {len(pieces)} lines are empty or stand there twice, expected "
            "one piece per line; name a tokenizer.json with --tokenizer"
        )
    return vocab


def _text(stated: Any) -> str:
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else json.dumps(stated)
