"""Reading a vocabulary out of the arrays `tokenizer.ggml.*`, the only description that other people's files have.

Five kinds, named as llama.cpp names them: gpt2 (byte-level BPE), llama (SentencePiece BPE), gemma4 (BPE of characters,
with bytes for what it lacks), bert (WordPiece) and t5 (Unigram with a character map). The last three are rebuilt as the
tokenizer.json that such a model has, and read by huggingface.py. What the arrays leave to convention is decided here:
lower case, the unknown token, composed characters.
Everything comes from a file and is checked before use. Not here: control tokens in templates, decoding.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

from localdiff.errors import ModelFileError
from localdiff.text import huggingface
from localdiff.text.pretokenizers import BY_NAME
from localdiff.text.spm import SpmEncoder
from localdiff.text.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    array,
    byte_value,
    guarded,
)

_WORD_LENGTH = 100  # characters; longer words are unknown to every published WordPiece tokenizer


def from_ggml(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of `tokenizer.ggml.*`; ModelFileError where it is damaged or of a kind that is not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _KINDS:
        found = "has no tokenizer.ggml.model" if kind is None else f"has a tokenizer of kind {kind!r:.80}"
        raise ModelFileError(
            f"the file {found}, expected 'gpt2' (byte-level BPE), 'llama' (SentencePiece BPE), 'gemma4' (BPE with "
            "bytes), 'bert' (WordPiece), 't5' (Unigram) or a tokenizer.huggingface.json; convert the model again with "
            "localdiff convert"
        )
    texts: list[str] = array(metadata, "tokenizer.ggml.tokens", str)
    if not texts:
        raise ModelFileError("tokenizer.ggml.tokens is empty; convert the model again")
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    _expect_each_once(texts)
    types = [NORMAL] * len(texts)
    if "tokenizer.ggml.token_type" in metadata:
        types = array(metadata, "tokenizer.ggml.token_type", int, len(texts))
    return _KINDS[kind](metadata, texts, types)


def _expect_each_once(texts: list[str]) -> None:
    if len(set(texts)) != len(texts):
        seen: set[str] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise ModelFileError(f"tokenizer.ggml.tokens has {twice!r} twice, expected each token once")


def _byte_level(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    import tokenizers

    name = metadata.get("tokenizer.ggml.pre", "default")
    row = BY_NAME.get(name) if isinstance(name, str) else None
    if row is None:
        raise ModelFileError(
            f"tokenizer.ggml.pre is {name!r:.80}, expected one of {', '.join(sorted(BY_NAME))}; "
            "convert the model with localdiff convert, which also writes tokenizer.huggingface.json"
        )
    if metadata.get("tokenizer.ggml.add_space_prefix", False) is True:
        raise ModelFileError("tokenizer.ggml.add_space_prefix is true, expected false with byte-level BPE")
    vocab = {text: token for token, text in enumerate(texts) if types[token] not in (CONTROL, UNKNOWN)}
    merges = _merges(metadata, vocab)
    model = guarded(
        "tokenizer.ggml.merges", lambda: tokenizers.models.BPE(vocab, merges, ignore_merges=row.ignore_merges)
    )
    backend = tokenizers.Tokenizer(model)
    if row.nfc:
        backend.normalizer = tokenizers.normalizers.NFC()
    split, cut = tokenizers.pre_tokenizers.Split, tokenizers.Regex
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split(cut(pattern), "isolated") for pattern in row.patterns]
        + [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )

    def encode(text: str, first: bool) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    return Vocabulary(texts, types, "bytes", row.add_bos, space_prefix=False, split_added=True, encode=encode)


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """In order of rank, those whose parts and result are tokens."""
    merges: list[tuple[str, str]] = []
    for merge in dict.fromkeys(array(metadata, "tokenizer.ggml.merges", str)):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ModelFileError(f"tokenizer.ggml.merges holds {merge!r}, expected two tokens with a space between")
        if left + right in vocab and left in vocab and right in vocab:
            merges.append((left, right))
    return merges


def _characters(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    vocab = {text: token for token, text in enumerate(texts)}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": _merges(metadata, vocab),
        "unk_token": texts[_unknown(metadata, texts, types, "<unk>")],
        "fuse_unk": True,
        "byte_fallback": True,
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", False) is True
    steps = [{"type": "Prepend", "prepend": SPACE}, space] if prefix else [space]
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    spec = _spec(model, {"type": "Sequence", "normalizers": steps}, None, decoder, texts, types)
    found = huggingface.from_spec("tokenizer.ggml.tokens", spec, len(texts))
    return dataclasses.replace(found, add_bos=True)


def _sentencepiece(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    scores = _scores(metadata, len(texts))
    pieces: dict[str, tuple[float, int]] = {}
    byte_ids = [-1] * 256
    unknown = None
    for token, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if kind == BYTE:
            value = byte_value(text)
            if value is None:
                raise ModelFileError(f"tokenizer.ggml.tokens has the byte token {text!r}, expected <0x00> to <0xFF>")
            byte_ids[value] = token
        elif kind == UNKNOWN:
            unknown = token if unknown is None else unknown
        elif kind != CONTROL:
            pieces[text] = (scores[token], token)
    encoder = SpmEncoder(pieces, byte_ids, unknown)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is True

    def encode(text: str, first: bool) -> list[int]:
        return encoder.encode((SPACE if prefix else "") + text.replace(" ", SPACE))

    return Vocabulary(texts, types, "spaces", True, space_prefix=prefix, split_added=True, encode=encode)


def _word_piece(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    """Such files write "word" as U+2581 and the word, and "##tail" as the tail alone."""
    unknown = _unknown(metadata, texts, types, "[UNK]")
    words = [_word(text, token == unknown or types[token] == CONTROL) for token, text in enumerate(texts)]
    _expect_each_once(words)
    ordinary = [word for token, word in enumerate(words) if types[token] == NORMAL and not word.startswith("[")]
    lower = metadata.get("tokenizer.ggml.normalizer.lowercase")
    if lower is None:  # vocabularies with capitals have thousands of them, those without hardly a stray one
        lower = sum(word != word.lower() for word in ordinary) * 100 <= len(ordinary)
    model = {
        "type": "WordPiece",
        "unk_token": words[unknown],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": _WORD_LENGTH,
        "vocab": {word: token for token, word in enumerate(words)},
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": metadata.get("tokenizer.ggml.normalizer.strip_accents"),
        "lowercase": lower,
    }
    spec = _spec(model, normalizer, {"type": "BertPreTokenizer"}, {"type": "WordPiece"}, words, types)
    found = huggingface.from_spec("tokenizer.ggml.tokens", spec, len(words))
    return dataclasses.replace(found, add_bos=True)


def _word(text: str, named: bool) -> str:
    if text.startswith(SPACE):
        return text[1:] or text
    # older files leave every text in brackets as it is, newer ones only control tokens
    return text if named or (text.startswith("[") and text.endswith("]")) else "##" + text


def _unigram(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    scores = _scores(metadata, len(texts))
    unknown = _unknown(metadata, texts, types, "<unk>")
    unused = {texts[token] for token, kind in enumerate(types) if kind == UNUSED}
    # The score of an unknown character follows from the lowest score, so rows without a token must not count.
    entries = [[text, 0.0 if text in unused else score] for text, score in zip(texts, scores, strict=True)]
    model = {"type": "Unigram", "unk_id": unknown, "vocab": entries, "byte_fallback": BYTE in types}
    normalizer = None
    if "tokenizer.ggml.precompiled_charsmap" in metadata:
        charsmap = array(metadata, "tokenizer.ggml.precompiled_charsmap", int)
        if charsmap:
            signed = [value & 0xFF for value in charsmap]  # some writers store int8
            normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(signed)).decode()}
    scheme = "always" if metadata.get("tokenizer.ggml.add_space_prefix", False) is True else "never"
    steps: list[dict[str, Any]] = [{"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme}]
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False) is True:
        steps.insert(0, {"type": "WhitespaceSplit"})
    cut = {"type": "Sequence", "pretokenizers": steps}
    spec = _spec(model, normalizer, cut, {**steps[-1], "split": True}, texts, types)
    return huggingface.from_spec("tokenizer.ggml.tokens", spec, len(texts), unused)


_KINDS = {
    "gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _characters, "bert": _word_piece, "t5": _unigram
}  # fmt: skip


def _spec(
    model: dict[str, Any], normalizer: Any, cut: Any, decoder: Any, texts: list[str], types: list[int]
) -> dict[str, Any]:
    """A tokenizer.json whose added tokens are those of type CONTROL and USER_DEFINED."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": texts[token], "special": kind == CONTROL, **flags}
        for token, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": cut, "decoder": decoder,
        "model": model,
    }  # fmt: skip


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores = array(metadata, "tokenizer.ggml.scores", (float, int), count)
    if any(score != score for score in scores):
        raise ModelFileError("tokenizer.ggml.scores holds a NaN, expected numbers; convert the model again")
    return scores


def _unknown(metadata: Mapping[str, Any], texts: list[str], types: list[int], usual: str) -> int:
    """The id of the unknown token: as stated, else the one of that type, else the one with the usual text."""
    stated = metadata.get("tokenizer.ggml.unknown_token_id")
    if isinstance(stated, int) and 0 <= stated < len(texts):
        return stated
    candidates = [token for token, text in enumerate(texts) if types[token] == UNKNOWN or text == usual]
    if not candidates:
        raise ModelFileError(
            f"the file has no tokenizer.ggml.unknown_token_id, expected the id of the token {usual!r}; "
            "convert the model again"
        )
    return candidates[0]
