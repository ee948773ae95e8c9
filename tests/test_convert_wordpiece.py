"""Checkpoints whose tokenizer is BERT's vocab.txt alone: against transformers' tokenizer of the same file, and what is
inferred, with a notice, where the folder says too little."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from family_checkpoints import CHECKPOINTS
from gguf_values import read_metadata
from real_models import rxnfp_folder
from tiny import VOCAB
from tokenizers import Tokenizer

from localdiff.convert import convert
from localdiff.errors import ModelFileError
from localdiff.text import Tokenizer as OurTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "un", "##aff", "##able", "##s", "café", "cafe", "1", "##9", "!", ",", "[", "中", "##文", "i"]
CAPITALS = [*WORDS, "The", "Cat", "CAFÉ"]
TEXT = "The cats, unaffable!  CAFÉ café 19 [MASK] 中文 I İ \u200b\u00a0the\tcat [UNK] dog"
REACTION = r"\[[^\]]+\]|Br|Cl|>>|%\d\d|."  # how the reactions of rxnfp are published: atom by atom


def folder_of(tmp_path: Path, words: list[str], config: dict[str, Any] | None, end: str = "\n") -> Path:
    """A tiny BERT with a vocab.txt in the place of its tokenizer.json."""
    folder = tmp_path / "hf"
    CHECKPOINTS["bert"](folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    pieces = [*SPECIAL, *words]
    pieces += [f"[unused{index}]" for index in range(VOCAB - len(pieces))]
    (folder / "vocab.txt").write_bytes((end.join(pieces) + end).encode())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [
    {"do_lower_case": True}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": True, "tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizer"},
])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_vocab_txt_is_read_as_transformers_does(config: dict[str, Any], end: str, tmp_path: Path) -> None:
    report = convert(folder_of(tmp_path, CAPITALS, config, end), tmp_path / "out.gguf")
    assert not [notice for notice in report.notices if "vocab.txt" in notice]
    found = read_metadata(tmp_path / "out.gguf")
    written = Tokenizer.from_str(found["tokenizer.huggingface.json"])
    vocab = {piece: index for index, piece in enumerate(SPECIAL + CAPITALS)}
    options = {name: value for name, value in config.items() if name != "tokenizer_class"}
    expected = transformers.BertTokenizer(vocab=vocab, **options)
    assert written.encode(TEXT).ids == expected(TEXT)["input_ids"]
    assert found["tokenizer.ggml.model"] == "bert"
    ids = {"mask": 4, "cls": 2, "seperator": 3, "unknown": 1, "padding": 0}
    assert {name: found[f"tokenizer.ggml.{name}_token_id"] for name in ids} == ids
    ours = OurTokenizer.from_gguf(found)
    plain = TEXT.replace("[MASK]", "").replace("[UNK]", "")  # text never gives a control token
    assert [token for token in ours.encode(plain) if token > 3] == [
        token for token in expected(plain)["input_ids"] if token > 3
    ]


def test_capitals_tell_whether_text_is_lowercased(tmp_path: Path) -> None:
    for words, said, first in ((WORDS, "no capitals, so text is lowercased", "the"), (CAPITALS, "capitals, so", "The")):
        folder = tmp_path / first
        folder.mkdir()
        report = convert(folder_of(folder, words, None), folder / "out.gguf")
        assert any(said in notice for notice in report.notices)
        written = Tokenizer.from_str(read_metadata(folder / "out.gguf")["tokenizer.huggingface.json"])
        assert written.encode("The").tokens == ["[CLS]", first, "[SEP]"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[CLS]", "[CLX]"), "has no \\[CLS\\], which BERT's tokenizer needs"),
        (lambda text: text.replace("cat\n", "the\n"), "1 of its 320 lines are empty or stand there twice"),
        (lambda text: text.replace("cat\n", "\n"), "1 of its 320 lines are empty"),
        (lambda text: text + "more\n", "token ids reach 320, but the embedding has 320 rows"),
    ],
)
def test_what_is_no_vocabulary_of_bert_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, WORDS, None)
    path = folder / "vocab.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ModelFileError, match=message):
        convert(folder, tmp_path / "out.gguf")
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ModelFileError, match="byte 0 is not UTF-8"):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_vocabulary_without_marks_is_cut_anywhere(tmp_path: Path) -> None:
    """rxnfp as it is published: no tokenizer.json, no tokenizer_config.json, atoms without ##."""
    report = convert(rxnfp_folder(), tmp_path / "out.gguf")
    assert any("goes on within a word (##)" in notice for notice in report.notices)
    assert report.spec is not None
    tokenizer = OurTokenizer.from_gguf(read_metadata(tmp_path / "out.gguf"))
    pieces = (rxnfp_folder() / "vocab.txt").read_text().split("\n")
    assert report.spec.mask_token == pieces.index("[MASK]")
    long = "CC(=O)OCl.[Na+].C[C@@H](Br)c1ccccc1>>CC#N" + "C" * 200
    for text in (long, "CCBr>>CC=C", "[nH]1cccc1"):
        found = [token for token in tokenizer.encode(text) if pieces[token] not in SPECIAL]
        assert [pieces[token] for token in found] == re.findall(REACTION, text)
