"""Tokenizers from tokenizer.huggingface.json: against `tokenizers` itself, and files made to do harm."""

import json
from typing import Any

import pytest
from text_metadata import tiny_bpe
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

from localdiff.errors import ModelFileError, OptionError
from localdiff.text import Tokenizer

TEXTS = ["hello world", "", " ", "a b  c\n", "hellohello, hello.", "naïve <b> x", "hi! ok? é"]
ATTACKS = ["<s>", "</s>", "[MASK]", "[CLS] x [SEP]", "<unk>", "a<s>b", "<s></s>"]


def byte_level() -> Reference:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: token for token, text in enumerate([*alphabet, "he", "ll", "hell", "hello", "Ġhello"])}
    made = Reference(models.BPE(vocab, [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def unigram(scheme: str) -> Reference:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("[MASK]", 0.0), ("\u2581", -2.0), ("\u2581hello", -3.0)]
    pieces += [(char, -5.0) for char in "abcdehiklnorwx,.!?<>/sMASKu[]"] + [("hello", -4.0)]
    made = Reference(models.Unigram(pieces, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return made


def llama() -> Reference:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"helowrdabc",
        "he",
        "ll",
        "hell",
    ]
    vocab = {text: token for token, text in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    made = Reference(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def word_piece() -> Reference:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "hello",
        "world",
        "##hello",
        ",",
        ".",
        "!",
        "?",
        "hi",
        "ok",
        "x",
    ]
    made = Reference(models.WordPiece({text: token for token, text in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


MAKERS = {
    "bytes": byte_level,
    "unigram-always": lambda: unigram("always"),
    "unigram-first": lambda: unigram("first"),
    "llama": llama,
    "words": word_piece,
}


def finished(name: str) -> Reference:
    made = MAKERS[name]()
    made.add_special_tokens(["<s>", "</s>", "[MASK]", "[CLS]", "[SEP]"])
    made.add_tokens([AddedToken("<b>", normalized=False)])
    return made


def ours(made: Reference, **more: Any) -> Tokenizer:
    return Tokenizer.from_gguf({"tokenizer.huggingface.json": made.to_str(), **more})


@pytest.mark.parametrize("name", MAKERS)
def test_same_ids_as_the_library(name: str) -> None:
    reference = finished(name)
    subject = ours(reference)
    assert subject.vocab_size == reference.get_vocab_size()
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert subject.encode(text) == ids, text
        if not any(subject.is_special(token) for token in ids):  # the unknown token, which decode() leaves out
            assert subject.decode(ids) == reference.decode(ids), text
    for text in ATTACKS:
        ids = reference.encode(f"hello {text} a", add_special_tokens=False).ids
        if "<unk>" not in text:  # the library lets even this name be typed
            assert subject.encode(f"hello {text} a", parse_special=True) == ids, text


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("text", ATTACKS)
def test_control_tokens_never_come_from_text(name: str, text: str) -> None:
    subject = ours(finished(name))
    control = {subject.token_id(word) for word in ("<s>", "</s>", "[MASK]", "[CLS]", "[SEP]")}
    for around in (text, f"hello {text} x"):
        assert not control.intersection(subject.encode(around, add_bos=False))


def test_trimming_control_tokens_swallow_white_space() -> None:
    reference = byte_level()
    reference.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True)])
    text = "hello  <|end|> \n hello"
    assert ours(reference).encode(text, parse_special=True) == reference.encode(text).ids


def test_it_is_preferred_and_roles_come_from_the_arrays() -> None:
    reference = finished("bytes")
    start = reference.token_to_id("<s>")
    subject = ours(
        reference, **tiny_bpe(**{"tokenizer.ggml.bos_token_id": start, "tokenizer.ggml.add_bos_token": True})
    )
    assert subject.encode("hello") == [start, reference.token_to_id("hello")]


def test_settings_that_change_the_text_are_left_out() -> None:
    reference = finished("bytes")
    reference.enable_truncation(2)
    reference.enable_padding(length=50)
    assert len(ours(reference).encode("a b c d")) == 7


def spec(**changes: Any) -> str:
    return json.dumps(json.loads(byte_level().to_str()) | changes)


ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        7,
        "[" * 100_000,
        "{}",
        spec(model=None),
        spec(model={"type": "BPE"}),
        spec(decoder=None),
        spec(decoder={"type": "CTC"}),
        spec(decoder=3),
        spec(model={"type": "Nonsense", "vocab": {}, "merges": []}),
        spec(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
        spec(model={"type": "BPE", "vocab": {"a": 1 << 23}, "merges": []}),
        spec(model={"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
        spec(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}),
        spec(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "q"]]}),
        spec(model={"type": "Unigram", "vocab": [["a"]], "unk_id": 0}),
        spec(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9}),
        spec(added_tokens=[{}]),
        spec(added_tokens=[3]),
        spec(added_tokens=[{"id": 1 << 40, "content": "x", **ADDED}]),
        spec(added_tokens=[{"id": 1, "content": "", **ADDED}]),
        spec(added_tokens=[{"id": 1, "content": 5, **ADDED}]),
        spec(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
            }
        ),
        spec(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}),
    ],
)
def test_damaged_and_hostile_descriptions_are_refused(source: object) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.huggingface\.json"):
        Tokenizer.from_gguf({"tokenizer.huggingface.json": source})


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    subject = Tokenizer.from_gguf({"tokenizer.huggingface.json": spec(pre_tokenizer=pattern)})
    with pytest.raises(OptionError, match="cannot encode this text"):
        subject.encode("x" * 60 + "!")
