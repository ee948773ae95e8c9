"""The other sources of a conversion: llama2.c checkpoints and GGUF files; and the tokenizers that come along."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from gguf_values import finish, read_metadata
from reference import Reference, visible_to
from tiny import VOCAB, tiny_checkpoint
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from localdiff.convert import convert
from localdiff.convert.llama2c import llama2c_tokenizer, read_llama2c
from localdiff.convert.rope import half_split_rows, interleaved_rows
from localdiff.errors import ModelFileError, OptionError
from localdiff.spec import DiffusionSpec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    tiny_checkpoint("llama", folder, num_hidden_layers=1)
    return folder


# llama2.c


def llama2c_file(path: Path, *, vocab: int = 40, tied: bool = False, length: int = 8) -> dict[str, np.ndarray]:
    """Write a random v0 file, tensor after tensor in the order of the format; returns them."""
    rng = np.random.default_rng(0)
    dim, hidden, layers, heads, kv = 16, 24, 2, 4, 2
    shapes = {
        "embedding": (vocab, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, dim // heads * kv, dim),
        "wv": (layers, dim // heads * kv, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
    }
    tensors = {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    angles = np.outer(np.arange(length), 1 / 10000.0 ** (np.arange(0, dim // heads, 2) / (dim // heads)))
    tensors |= {"cos": np.cos(angles).astype("<f4"), "sin": np.sin(angles).astype("<f4")}
    if not tied:
        tensors["head"] = rng.standard_normal((vocab, dim)).astype("<f4")
    header = struct.pack("<7i", dim, hidden, layers, heads, kv, vocab if tied else -vocab, length)
    path.write_bytes(header + b"".join(tensor.tobytes() for tensor in tensors.values()))
    return tensors


def llama2c_pieces(path: Path, count: int = 40) -> None:
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(8)), " a", "ab"]
    pieces += [chr(ord("a") + i) for i in range(25)] + [" ", "é"]
    data = struct.pack("<i", 9)
    for rank, piece in enumerate(pieces[:count]):
        data += struct.pack("<fi", -float(rank), len(piece.encode())) + piece.encode()
    path.write_bytes(data)


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_tensors_keep_their_row_order_in_the_file(tmp_path: Path, tied: bool) -> None:
    raw = llama2c_file(tmp_path / "model.bin", tied=tied)
    llama2c_pieces(tmp_path / "tok.bin")
    report = convert(tmp_path / "model.bin", tmp_path / "out.gguf", type="f32", tokenizer=tmp_path / "tok.bin")
    found = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(tmp_path / "out.gguf").tensors}
    expected = {"token_embd.weight": raw["embedding"], "output_norm.weight": raw["rms_final"]}
    if not tied:
        expected["output.weight"] = raw["head"]
    names = {"rms_att": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    names |= {"rms_ffn": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    for theirs, ours in names.items():
        for layer in range(2):
            expected[f"blk.{layer}.{ours}.weight"] = raw[theirs][layer]
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert report.name == "model"
    assert read_metadata(tmp_path / "out.gguf")["llama.rope.freq_base"] == 10000.0


def test_row_orders_undo_each_other() -> None:
    rng = np.random.default_rng(1)
    for shape in ((24, 5), (24,)):
        tensor = rng.standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(half_split_rows(interleaved_rows(tensor, 3), 3), tensor)
        np.testing.assert_array_equal(interleaved_rows(tensor, 3)[:4], tensor[[0, 4, 1, 5]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20], "20 bytes, expected a llama2.c checkpoint of at least 28 bytes"),
        (lambda data: data[:-4], "but its header asks for"),
        (lambda data: data + b"1234", "but its header asks for"),
        (lambda data: struct.pack("<i", -1) + data[4:], "dim is -1"),
        (lambda data: struct.pack("<i", 2**31 - 1) + data[4:], "dim is 2147483647"),
        (lambda data: data[:12] + struct.pack("<i", 3) + data[16:], "3 heads and 2 KV heads do not divide"),
        (lambda data: struct.pack("<i", 0x616B3432) + data[4:], "a versioned llama2.c file"),
        (lambda data: data[: -4 * 4 - 40 * 64] + b"\0" * 16 + data[-40 * 64 :], "its RoPE tables differ"),
    ],
)
def test_damaged_llama2c_files(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "model.bin"
    llama2c_file(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFileError, match=message):
        read_llama2c(path)


def test_damaged_llama2c_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    llama2c_pieces(path)
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], "beyond the end"),
        (whole + b"\0\0", "cut off at byte"),
        (whole[:8] + struct.pack("<i", -5) + whole[12:], "piece 0 claims -5 bytes"),
        (whole + struct.pack("<fi", 0.0, 1) + b"\xff", "piece 40 is not UTF-8"),
        (whole + struct.pack("<fi", 0.0, 1) + b"a", "expected distinct ones"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            llama2c_tokenizer(path)


def test_stories260k_continues_as_it_should(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "models"
    tokens_file = folder / "stories260K.tok512.bin"
    convert(folder / "stories260K.bin", tmp_path / "out.gguf", type="f32", tokenizer=tokens_file)
    model = Reference(tmp_path / "out.gguf")
    tokens = [1]
    for _ in range(46):
        ends = visible_to("causal", len(tokens))
        tokens.append(int(model.logits(np.array(tokens), ends)[-1].argmax()))
    tokenizer = Tokenizer.from_str(read_metadata(tmp_path / "out.gguf")["tokenizer.huggingface.json"])
    expected = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    assert tokenizer.decode(tokens).startswith(expected)


def test_stories260k_tokenizer_as_metadata(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "models"
    tokens_file = folder / "stories260K.tok512.bin"
    convert(folder / "stories260K.bin", tmp_path / "out.gguf", tokenizer=tokens_file)
    found = read_metadata(tmp_path / "out.gguf")
    tokens, types, scores = (found[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores"))
    assert found["tokenizer.ggml.model"] == "llama"
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert types[:4] == [2, 3, 3, 6]
    assert set(types[259:]) == {1}
    # merged pieces keep the order of the scores they had
    merged = [score for token, score in zip(tokens[259:], scores[259:], strict=True) if len(token) > 1]
    assert merged == sorted(merged, reverse=True)
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert found["tokenizer.ggml.add_space_prefix"] is True
    tokenizer = llama2c_tokenizer(tokens_file)
    for text in ("Once upon a time", "hé 🙂\n tabs\t", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


# GGUF files


def test_a_gguf_file_gets_a_record_and_keeps_all_else(checkpoint: Path, tmp_path: Path) -> None:
    for kind in ("q4_0", "bf16"):
        convert(checkpoint, tmp_path / "plain.gguf", type=kind)
        report = convert(tmp_path / "plain.gguf", tmp_path / "dlm.gguf", diffusion="mask=1,shift=1,canvas=64,stop=0")
        before, after = GGUFReader(tmp_path / "plain.gguf"), GGUFReader(tmp_path / "dlm.gguf")
        assert len(before.tensors) == len(after.tensors)
        for a, b in zip(before.tensors, after.tensors, strict=True):
            assert (a.name, a.shape.tolist(), a.tensor_type) == (b.name, b.shape.tolist(), b.tensor_type)
            assert a.data.tobytes() == b.data.tobytes()
        old, new = read_metadata(tmp_path / "plain.gguf"), read_metadata(tmp_path / "dlm.gguf")
        spec = DiffusionSpec(1, True, canvas_max=64, stop_tokens=(0,))
        assert new == old | spec.to_gguf("llama")
        assert {key: after.fields[key].types for key in old} == {key: before.fields[key].types for key in old}
        assert report.spec == spec
        assert report.name == old["general.name"]
    changed = convert(tmp_path / "dlm.gguf", tmp_path / "again.gguf", diffusion="shift=0,stop=", name="other")
    assert changed.spec == DiffusionSpec(1, False, canvas_max=64)
    assert DiffusionSpec.from_gguf(read_metadata(tmp_path / "again.gguf")) == changed.spec
    assert read_metadata(tmp_path / "again.gguf")["general.name"] == "other"


def test_unusual_gguf_files_are_copied_faithfully(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "in.gguf", "some-arch")
    writer.add_custom_alignment(128)
    writer.add_key_value("x.list", [1, -2], GGUFValueType.ARRAY, GGUFValueType.INT16)
    writer.add_float64("x.double", 0.1)
    writer.add_uint64("x.wide", 2**40)
    writer.add_tensor("token_embd.weight", np.arange(21, dtype=np.float32).reshape(7, 3))
    writer.add_tensor("cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    finish(writer)
    convert(tmp_path / "in.gguf", tmp_path / "out.gguf", diffusion="mask=6,shift=0")
    before, after = GGUFReader(tmp_path / "in.gguf"), GGUFReader(tmp_path / "out.gguf")
    assert after.alignment == 128
    assert all(tensor.data_offset % 128 == 0 for tensor in after.tensors)
    for a, b in zip(before.tensors, after.tensors, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    old, new = read_metadata(tmp_path / "in.gguf"), read_metadata(tmp_path / "out.gguf")
    assert {key: new[key] for key in old} == old
    assert after.fields["x.list"].types == before.fields["x.list"].types


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "has no diffusion record; give --diffusion"),
        ({"diffusion": "mask=1,shift=1", "type": "q8_0"}, OptionError, "so --type cannot be honoured"),
        ({"diffusion": "mask=1,shift=1", "tokenizer": Path("x")}, OptionError, "so --tokenizer cannot be honoured"),
        ({"diffusion": "mask=320,shift=1"}, OptionError, "mask_token is 320, but the vocabulary has 320 tokens"),
        ({"diffusion": "mask=1"}, OptionError, "shift="),
    ],
)
def test_gguf_options_that_cannot_be_honoured(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    convert(checkpoint, tmp_path / "plain.gguf")
    with pytest.raises(error, match=message):
        convert(tmp_path / "plain.gguf", tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()


def test_damaged_and_foreign_files(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "plain.gguf")
    whole = (tmp_path / "plain.gguf").read_bytes()
    source, out = tmp_path / "in", tmp_path / "out.gguf"
    for data in (whole[:4], whole[:30], whole[: len(whole) // 2], whole[:-1000]):
        source.write_bytes(data)
        with pytest.raises(ModelFileError, match="is not a whole GGUF file"):
            convert(source, out, diffusion="mask=1,shift=1")
    source.write_bytes(b"hello")
    with pytest.raises(OptionError, match="is not a GGUF file; if it is a llama2.c checkpoint"):
        convert(source, out)
    with pytest.raises(ModelFileError, match="no such file or folder"):
        convert(tmp_path / "absent", out)
    with pytest.raises(OptionError, match="name the folder that holds its config.json"):
        convert(checkpoint / "model.safetensors", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, expected a JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds a LoRA adapter"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 90), "is not a safetensors file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json; name the tokenizer's file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a tokenizer.json"),
        (lambda folder: (folder / "localdiff.json").write_text("{}"), "the diffusion record has no mask_token"),
    ],
)
def test_damaged_folders(checkpoint: Path, tmp_path: Path, prepare: Any, message: str) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    prepare(folder)
    with pytest.raises((ModelFileError, OptionError), match=message):
        convert(folder, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_torch_files_that_need_code_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"hook": pytest.raises}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="asks for '_pytest.raises.raises'"):
        convert(folder, tmp_path / "out.gguf")


# Tokenizers


def converted_vocabulary(checkpoint: Path, tmp_path: Path, tokenizer: Tokenizer, **config: Any) -> dict[str, Any]:
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "out.gguf")
    return read_metadata(tmp_path / "out.gguf")


def test_byte_level_tokenizer_as_metadata(checkpoint: Path, tmp_path: Path) -> None:
    report = convert(checkpoint, tmp_path / "out.gguf")
    found = read_metadata(tmp_path / "out.gguf")
    text = (checkpoint / "tokenizer.json").read_text()
    tokenizer = Tokenizer.from_str(text)
    assert found["tokenizer.huggingface.json"] == text
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    size = tokenizer.get_vocab_size()
    assert size <= VOCAB
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens[:size] == [tokenizer.id_to_token(i) for i in range(size)]
    assert tokens[size:] == [f"[PAD{i}]" for i in range(size, VOCAB)]
    assert found["tokenizer.ggml.token_type"] == [3, 3] + [1] * (size - 2) + [5] * (VOCAB - size)
    merges = json.loads(text)["model"]["merges"]
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    assert found["tokenizer.ggml.bos_token_id"] == found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.mask_token_id"] == 1
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert any("unused [PAD]" in notice for notice in report.notices) == (size < VOCAB)


def test_rows_beyond_the_tokenizer_are_padded_and_too_few_refused(tmp_path: Path) -> None:
    tiny_checkpoint("gpt2", tmp_path / "wide", vocab_size=VOCAB + 7, n_layer=1)
    report = convert(tmp_path / "wide", tmp_path / "out.gguf")
    found = read_metadata(tmp_path / "out.gguf")
    assert len(found["tokenizer.ggml.tokens"]) == found["gpt2.vocab_size"] == VOCAB + 7
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{VOCAB + 6}]"
    assert found["tokenizer.ggml.token_type"][-7:] == [5] * 7
    assert any("327 rows" in notice for notice in report.notices)
    tiny_checkpoint("gpt2", tmp_path / "narrow", vocab_size=200, n_layer=1)
    with pytest.raises(ModelFileError, match="but the embedding has 200 rows"):
        convert(tmp_path / "narrow", tmp_path / "none.gguf")


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pre", "steps"),
    [
        ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "dbrx",  # "llama-bpe" takes whole words without merging
            [
                pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
        (
            "deepseek-r1-qwen",  # "qwen2" composes characters first
            [
                pre_tokenizers.Split(Regex(LLAMA3_PATTERN.replace("{1,3}", "")), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
        ("default", [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
)
def test_pre_tokenizers_are_recognised(checkpoint: Path, tmp_path: Path, pre: str, steps: list[Any]) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert converted_vocabulary(checkpoint, tmp_path, tokenizer)["tokenizer.ggml.pre"] == pre


def test_special_tokens_and_chat_template(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={chr(97 + i): i for i in range(10)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<b>", special=True), AddedToken("<e>", special=True)])
    tokenizer.add_tokens([AddedToken("tool")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 10)])
    found = converted_vocabulary(
        checkpoint,
        tmp_path,
        tokenizer,
        bos_token={"content": "<b>"},
        eos_token="<e>",
        pad_token="tool",
        chat_template=[{"name": "other", "template": "x"}, {"name": "default", "template": "{{ messages }}"}],
    )
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [10, 11, 12]
    assert "tokenizer.ggml.mask_token_id" not in found
    assert found["tokenizer.ggml.token_type"][9:14] == [1, 3, 3, 4, 5]
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_other_tokenizer_models_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    for tokenizer, message in (
        (Tokenizer(models.WordLevel({"a": 0}, "a")), "tokenizer model WordLevel, which is not supported"),
        (Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), "BPE without byte level or byte fallback"),
    ):
        tokenizer.save(str(folder / "tokenizer.json"))
        with pytest.raises(ModelFileError, match=message):
            convert(folder, tmp_path / "out.gguf")


def test_a_byte_fallback_tokenizer_without_space_prefix(checkpoint: Path, tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<0x0A>": 1, "\u2581": 2, "a": 3, "b": 4, "ab": 5, "\u2581ab": 6}
    merges = [("a", "b"), ("\u2581", "ab")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    found = converted_vocabulary(checkpoint, tmp_path, tokenizer, add_bos_token=True)
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.token_type"][:7] == [2, 6, 1, 1, 1, 1, 1]
    assert found["tokenizer.ggml.scores"][:7] == [0, 0, 0, 0, 0, -1, -2]
    assert found["tokenizer.ggml.unknown_token_id"] == 0


def test_a_slow_tokenizer_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    fast = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(fast["model"]["vocab"]))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in fast["model"]["merges"])
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    convert(folder, tmp_path / "out.gguf")
    tokenizer = Tokenizer.from_str(read_metadata(tmp_path / "out.gguf")["tokenizer.huggingface.json"])
    text = "The cat buys 12 eggs."
    assert tokenizer.encode(text).ids == Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids


def test_torch_is_not_needed(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\nfrom localdiff.convert import convert\n"
        f"convert(Path({str(checkpoint)!r}), Path({str(tmp_path / 'out.gguf')!r}), type='q8_0')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
    assert (tmp_path / "out.gguf").exists()
