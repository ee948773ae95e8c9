"""Tokenizers built from GGUF arrays: against llama.cpp's own expectations, recorded ids, and a slow reference."""

import functools
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_metadata import read, smollm2, tiny_bpe, tiny_spm

from localdiff.errors import ModelFileError, OptionError
from localdiff.text import TextStream, Tokenizer
from localdiff.text.pretokenizers import BY_NAME, TABLE
from localdiff.text.spm import SpmEncoder

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = json.loads((Path(__file__).parent / "data" / "tokenizer_goldens.json").read_text())
KINDS = ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3")
UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
MARKUP = st.lists(
    st.sampled_from(
        [
            "<s>",
            "</s>",
            "<unk>",
            "<|im_start|>",
            "<|im_end|>",
            "[MASK]",
            "<",
            "|",
            ">",
            "im_",
            "he",
            "llo",
            " ",
            "\n",
            "é",
        ]
    )
).map("".join)


@functools.lru_cache
def metadata(data_dir: Path, kind: str) -> dict[str, Any]:
    return smollm2() if kind == "smollm2" else read(data_dir / "tokenizers" / f"ggml-vocab-{kind}.gguf")


@functools.lru_cache
def tokenizer(data_dir: Path, kind: str) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(data_dir, kind))


def composed(text: str) -> str:
    """What the tokenizers of some models make of a text first, and llama.cpp does not."""
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_ids_of_llama_cpp(data_dir: Path, kind: str) -> None:
    base = data_dir / "tokenizers" / f"ggml-vocab-{kind}.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = [int(word) for word in line.split()]
        assert tokenizer(data_dir, kind).encode(text, add_bos=False) == ids, text
        assert tokenizer(data_dir, kind).decode(ids) == text


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_recorded_ids(data_dir: Path, kind: str) -> None:
    for text, ids in zip(GOLDENS["texts"], GOLDENS["files"][kind], strict=True):
        if kind != "qwen2" or composed(text) == text:
            assert tokenizer(data_dir, kind).encode(text, add_bos=False) == ids, text
        assert tokenizer(data_dir, kind).decode(ids) == text


@pytest.mark.parametrize("pre", GOLDENS["pre_tokenizers"])
def test_recorded_ids_per_pretokenizer(data_dir: Path, pre: str) -> None:
    changed = Tokenizer.from_gguf(metadata(data_dir, "gpt-2") | {"tokenizer.ggml.pre": pre})
    for text, ids in zip(GOLDENS["pre_texts"], GOLDENS["pre_tokenizers"][pre], strict=True):
        if not BY_NAME[pre].nfc or composed(text) == text:
            assert changed.encode(text, add_bos=False) == ids, text


def test_every_row_was_recorded_or_is_a_files_own() -> None:
    seen = {*GOLDENS["pre_tokenizers"], "llama-bpe"}
    assert [row.names for row in TABLE if not seen.intersection(row.names)] == []
    assert len(BY_NAME) == sum(len(row.names) for row in TABLE)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back(data_dir: Path, kind: str) -> None:
    subject = tokenizer(data_dir, kind)
    spaced = subject.space_prefix

    @settings(max_examples=300, deadline=None)
    @given(UNICODE | MARKUP)
    def check(text: str) -> None:
        text = text.replace("\u2581", " ") if spaced else text  # U+2581 is how these vocabularies write a space
        text = composed(text) if kind == "qwen2" else text
        ids = subject.encode(text, add_bos=False)
        assert not any(subject.is_special(token) for token in ids)
        assert subject.decode(ids) == text
        assert subject.decode(ids, continues=True) == (" " + text if spaced and text else text)
        stream = TextStream(subject)
        shown = [stream.push([token]) for token in ids]
        assert "".join(shown) + stream.finish() == text
        assert all("\ufffd" not in part or "\ufffd" in text for part in shown)

    check()


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_control_tokens_never_come_from_text(data_dir: Path, kind: str) -> None:
    subject = tokenizer(data_dir, kind)
    named = [text for text in subject.special_texts if subject.token_id(text) is not None]
    assert named
    for text in named:
        for around in (text, f"x{text}", f"{text}{text}", f" {text} y\n"):
            assert not any(subject.is_special(token) for token in subject.encode(around, add_bos=False)), around
        parsed = subject.encode(f"a{text}b", add_bos=False, parse_special=True)
        assert subject.token_id(text) in parsed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        " " * 200_000 + "a",
        " \n" * 100_000,
        "<" * 200_000,
        "🦙" * 50_000,
        "<|im_end|>" * 20_000,
        "\0" * 100_000,
    ],
    ids=["letter", "spaces", "lines", "marks", "llamas", "control", "nul"],
)
def test_long_texts(data_dir: Path, kind: str, text: str) -> None:
    subject = tokenizer(data_dir, kind)
    assert subject.decode(subject.encode(text, add_bos=False)) == text


@pytest.mark.parametrize("kind", ["qwen2", "llama-spm"])
def test_a_megabyte(data_dir: Path, kind: str) -> None:
    draw = random.Random(3)
    text = "".join(draw.choice(GOLDENS["texts"]) for _ in range(20_000))[:1_000_000].replace("\u2581", " ")
    text = composed(text)
    assert tokenizer(data_dir, kind).decode(tokenizer(data_dir, kind).encode(text)) == text


def slow_spm(pieces: dict[str, tuple[float, int]], text: str) -> list[int]:
    """The definition, quadratic: merge the best pair, leftmost among equals, until none is a piece."""
    symbols = list(text)
    while True:
        pairs = [
            (-pieces[a + b][0], i)
            for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
            if a + b in pieces
        ]
        if not pairs:
            return [pieces[symbol][1] for symbol in symbols]
        place = min(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=2, max_size=5), st.sampled_from([-1.0, -2.0, -3.0, -4.0, 0.5]), max_size=25
    ),
    st.text("abc", max_size=100),
)
def test_spm_merging_is_the_definition_ties_included(scores: dict[str, float], text: str) -> None:
    named = {"a": -9.0, "b": -9.0, "c": -9.0} | scores
    pieces = {piece: (score, token) for token, (piece, score) in enumerate(named.items())}
    encoder = SpmEncoder(pieces, [-1] * 256, None)
    assert encoder.encode(text) == slow_spm(pieces, text)
    assert encoder.encode(text) == slow_spm(pieces, text)  # from the cache


def test_small_vocabularies() -> None:
    bpe = Tokenizer.from_gguf(tiny_bpe())
    assert (bpe.vocab_size, bpe.bos, bpe.eos, bpe.eot, bpe.mask, bpe.pad) == (263, 260, 261, 261, 262, None)
    assert bpe.encode("hello") == [259]
    assert bpe.encode("") == []
    assert bpe.encode("hello", add_bos=True) == [260, 259]
    assert bpe.encode("[MASK]hello<|im_end|>", parse_special=True) == [262, 259, 261]
    assert bpe.decode([260, 259, 261]) == "hello"
    assert bpe.decode([260, 259, 261], skip_special=False) == "<|im_start|>hello<|im_end|>"
    assert [bpe.token_id("hell"), bpe.token_id("nothing")] == [258, None]
    assert bpe.is_special(262)
    assert not bpe.is_special(259)

    spm = Tokenizer.from_gguf(tiny_spm())
    assert spm.encode("") == [1]
    assert spm.encode("a", add_bos=False) == [spm.token_id("\u2581a")]
    assert [spm.piece(token) for token in spm.encode("abaé", add_bos=False)] == [b" ", b"aba", b"\xc3", b"\xa9"]
    assert spm.encode("<s>")[1:] != [1]
    assert Tokenizer.from_gguf(tiny_spm(**{"tokenizer.ggml.add_bos_token": False})).encode("") == []


def test_half_a_character_waits_and_bad_bytes_become_replacement_characters() -> None:
    subject = Tokenizer.from_gguf(tiny_spm())
    first, second = (subject.token_id(f"<0x{byte:02X}>") for byte in "é".encode())
    assert first is not None
    assert second is not None
    stream = TextStream(subject)
    assert [stream.push([first]), stream.push([second]), stream.push([first]), stream.finish()] == [
        "",
        "é",
        "",
        "\ufffd",
    ]
    assert subject.decode([second, first, second, first]) == "\ufffdé\ufffd"


def test_a_user_defined_token_keeps_its_neighbours() -> None:
    spm = tiny_spm()
    added = spm | {
        "tokenizer.ggml.tokens": [*spm["tokenizer.ggml.tokens"], "<b>"],
        "tokenizer.ggml.token_type": [*spm["tokenizer.ggml.token_type"], 4],
        "tokenizer.ggml.scores": [*spm["tokenizer.ggml.scores"], 0.0],
    }
    subject = Tokenizer.from_gguf(added)
    ids = subject.encode("a<b>a <b> b", add_bos=False)
    assert ids.count(subject.token_id("<b>")) == 2  # type: ignore[arg-type]
    assert subject.decode(ids) == "a<b>a <b> b"


def test_a_role_or_a_known_end_makes_a_user_defined_token_a_control_token() -> None:
    types = [1] * 260 + [4] * 3
    subject = Tokenizer.from_gguf(tiny_bpe(**{"tokenizer.ggml.token_type": types}))
    for text in ("<|im_start|>", "<|im_end|>", "[MASK]"):
        assert len(subject.encode(text)) == len(text)


@pytest.mark.parametrize("bad", ["\ud800", "fine until \udfff here"])
def test_lone_surrogates_are_refused(bad: str) -> None:
    for made in (tiny_bpe(), tiny_spm()):
        with pytest.raises(OptionError, match="lone surrogate"):
            Tokenizer.from_gguf(made).encode(bad)


def test_wrong_ids_and_missing_bos_are_refused() -> None:
    subject = Tokenizer.from_gguf(tiny_bpe(**{"tokenizer.ggml.bos_token_id": 2**32 - 1}))
    for token in (-1, 263, 2**40):
        with pytest.raises(OptionError, match="outside the vocabulary"):
            subject.decode([token])
        with pytest.raises(OptionError, match="outside the vocabulary"):
            subject.piece(token)
    with pytest.raises(OptionError, match="no bos token"):
        subject.encode("x", add_bos=True)


G = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({}, "has no tokenizer.ggml.model"),
        ({f"{G}model": "rwkv"}, "kind 'rwkv'"),
        ({f"{G}model": 3}, "kind 3"),
        (tiny_bpe(**{f"{G}pre": "rot13"}), "'rot13', expected one of"),
        (tiny_bpe(**{f"{G}tokens": None}), "no tokenizer.ggml.tokens"),
        (tiny_bpe(**{f"{G}tokens": []}), "is empty"),
        (tiny_bpe(**{f"{G}tokens": "abc"}), "is str, expected an array"),
        (tiny_bpe(**{f"{G}tokens": ["a", "a"]}), "'a' twice"),
        (tiny_bpe(**{f"{G}tokens": ["a", 3]}), "of type int"),
        (tiny_bpe(**{f"{G}token_type": [1]}), "1 values, expected 263"),
        (tiny_bpe(**{f"{G}merges": None}), "no tokenizer.ggml.merges"),
        (tiny_bpe(**{f"{G}merges": ["ab"]}), "expected two tokens"),
        (tiny_bpe(**{f"{G}merges": ["a b c"]}), "expected two tokens"),
        (tiny_bpe(**{f"{G}bos_token_id": 263}), "expected a token id from 0 to 262"),
        (tiny_bpe(**{f"{G}mask_token_id": True}), "expected a token id"),
        (tiny_bpe(**{f"{G}mask_token_id": "5"}), "expected a token id"),
        (tiny_bpe(**{f"{G}bos_token_id": None, f"{G}add_bos_token": True}), "names no bos token"),
        (tiny_bpe(**{f"{G}add_space_prefix": True}), "expected false"),
        (tiny_spm(**{f"{G}scores": None}), "no tokenizer.ggml.scores"),
        (tiny_spm(**{f"{G}scores": [0.0]}), "1 values, expected"),
        (tiny_spm(**{f"{G}scores": [float("nan")] * 267}), "NaN"),
        (tiny_spm(**{f"{G}token_type": [6] * 267}), "byte token '<unk>'"),
    ],
)
def test_damaged_descriptions_are_refused(made: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelFileError, match=match):
        Tokenizer.from_gguf(made)


def test_importing_is_light() -> None:
    code = "import sys, localdiff.text; print(sorted({'tokenizers', 'minijinja'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
