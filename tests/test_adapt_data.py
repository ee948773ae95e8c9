"""Reading, packing and ordering of training text, and the sentences for text that cannot be used."""

import gzip
import json
import lzma

import numpy as np
import pytest
from tiny import tiny_tokenizer

from localdiff.adapt import AdaptOptions
from localdiff.adapt.data import PackedData, held_out_sequences, load_tokens
from localdiff.adapt.reading import read_documents
from localdiff.errors import OptionError

pytest.importorskip("transformers", reason="transformers is not installed")
END = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


DOCUMENTS = ["One cat.\nTwo mice.", "A river, a mill.", "The end"]
PLAIN = "\n<|endoftext|>\n".join(DOCUMENTS) + "\n<|endoftext|>\n\n<|endoftext|>\n"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_documents_of_every_form_are_the_same(tmp_path, name):
    text = "\n".join(json.dumps({"text": text}) for text in DOCUMENTS) if ".jsonl" in name else PLAIN
    write = {".xz": lzma.compress, ".gz": gzip.compress}.get(name[-3:], bytes)
    (tmp_path / name).write_bytes(write(text.encode()))
    assert list(read_documents(tmp_path / name)) == DOCUMENTS


def test_documents_are_joined_with_the_end_token_and_files_named_twice_count_twice(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text(PLAIN, encoding="utf-8")
    tokens, name = load_tokens([path], tokenizer, END, tmp_path / "tokens")
    expected = [token for text in DOCUMENTS for token in [*tokenizer.encode(text).ids, END]]
    assert tokens.tolist() == expected
    assert tokens.dtype == np.uint16
    assert load_tokens([path], tokenizer, END, tmp_path / "tokens")[1] == name
    twice, other = load_tokens([path, path], tokenizer, END, tmp_path / "tokens")
    assert twice.tolist() == expected * 2
    assert other != name


def test_special_tokens_spelled_in_the_text_stay_text(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("a <mask> in the text, and <|endoftext|> in a line", encoding="utf-8")
    tokens, _ = load_tokens([path], tokenizer, END, tmp_path / "tokens")
    assert tokens.tolist().count(END) == 1
    assert tokenizer.token_to_id("<mask>") not in tokens
    assert tokenizer.decode(tokens[:-1].tolist()) == path.read_text()


def sequences(data, first, count):
    return data.batch(first, count).tokens.numpy()


def test_an_epoch_visits_every_sequence_once_and_order_depends_only_on_the_index():
    tokens = np.arange(1003, dtype=np.uint16)
    data = PackedData(tokens, 10, seed=3)
    first = sequences(data, 0, data.per_epoch)
    starts = np.sort(first[:, 0])
    assert first.shape == (99, 10)
    assert (np.diff(starts) == 10).all()
    assert (np.diff(first, axis=1) == 1).all()
    second = sequences(data, data.per_epoch, data.per_epoch)
    assert not np.array_equal(first, second)
    again = PackedData(tokens, 10, seed=3)
    assert np.array_equal(sequences(again, 150, 7), sequences(data, 150, 7))
    assert np.array_equal(sequences(again, 0, 99), first)
    assert not np.array_equal(sequences(PackedData(tokens, 10, seed=4), 0, 99), first)
    assert sequences(PackedData(tokens[:10], 10, seed=0), 0, 3).tolist() == [list(range(10))] * 3


def test_held_out_sequences_are_spread_over_the_text():
    rows = held_out_sequences(np.arange(105, dtype=np.uint16), 10, 3).tokens
    assert rows[:, 0].tolist() == [0, 40, 90]
    assert len(held_out_sequences(np.arange(25, dtype=np.uint16), 10, 8).tokens) == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.txt", None, "no such file"),
        ("a.pdf", b"x", "expected .txt or .jsonl"),
        ("a.txt", b"", "the file holds no text"),
        ("a.txt", b"good\n\xff\xfebad\n", "not UTF-8 text near line 2"),
        ("a.txt.xz", b"not xz at all", "compressed file is damaged"),
        ("a.txt.gz", gzip.compress(b"some text of a story" * 9)[:-12], "compressed file is damaged"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "wrong"}\n', "line 2 is not a JSON object"),
        ("a.jsonl", b"[1, 2\n", "line 1 is not a JSON object"),
    ],
)
def test_bad_text_is_refused_with_one_sentence(tmp_path, tokenizer, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=sentence) as caught:
        load_tokens([path], tokenizer, END, tmp_path / "tokens")
    assert str(path) in str(caught.value)
    assert not list(tmp_path.glob("tokens/*"))


def test_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(OptionError, match="5 tokens of text, too short for one sequence of 8"):
        PackedData(np.arange(5), 8, seed=0)
    with pytest.raises(OptionError, match="too short for one sequence of 8"):
        held_out_sequences(np.arange(5), 8, 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"method": "magic"}, "--method is 'magic', expected one of diffugpt, mdlm"),
        ({"mask_id": 3}, "exclude each other"),
        ({"base": None}, "give either a base checkpoint or --shape"),
        ({"block_length": 8}, "--block-length has no meaning with --method diffugpt"),
        ({"method": "rdm", "weight": "1/t"}, "--weight is '1/t', but --method rdm knows linear or constant"),
        ({"method": "bd3lm", "anneal_steps": 9}, "--anneal-steps has no meaning with --method bd3lm"),
        ({"length_head": True}, "--length-head has no meaning with --method diffugpt"),
        ({"method": "rdm", "length_head": True}, "--length-head has no meaning without --instruct"),
        ({"pad_token": "<pad>"}, "--pad-token has no meaning without --instruct"),
        ({"instruct": True, "stream": 64}, "--stream is for running text"),
        ({"instruct": True, "template": "chat", "sep_token": "="}, "--sep-token belongs to the plain template"),
        ({"data": ("hub:stories",)}, "--data hub:stories can only be streamed; add --stream"),
        ({"lora_alpha": 8.0}, "have no meaning without --lora"),
        ({"base": None, "shape": "smoke", "tokenizer": "t.json", "lora": 4}, "--lora trains beside the weights"),
        ({"data": ()}, "no training text"),
        ({"output": ""}, "no output folder"),
        ({"batch": 0}, "--batch is 0, expected 1 or more"),
        ({"steps": 1.5}, "--steps is 1.5, expected a whole number"),
        ({"lr": float("nan")}, "--lr is nan, expected 0 to 1"),
        ({"lr": 0}, "--lr is 0"),
        ({"length": 1}, "--length is 1"),
        ({"schedule": "step"}, "--schedule is 'step', expected one of cosine, constant"),
        ({"method": "ar"}, "--mask-token has no meaning with --method ar"),
        ({"base": None, "shape": "smoke", "method": "ar", "mask_token": None}, "needs a tokenizer"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(wrong, sentence):
    right = {"base": "model", "output": "out", "data": ("a.txt",), "mask_token": "<mask>"}
    AdaptOptions(**right)
    with pytest.raises(OptionError, match=sentence):
        AdaptOptions(**{**right, **wrong})
    with pytest.raises(TypeError):
        AdaptOptions(**right, stepps=3)
