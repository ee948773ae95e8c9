"""The checkpoints that training starts from: HF folders, GGUF files and llama2.c checkpoints give the same model."""

import json

import pytest
from tiny import SHAPES, TEXT, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from localdiff.adapt.base import from_scratch, load_base  # noqa: E402
from localdiff.convert import convert  # noqa: E402
from localdiff.errors import ModelFileError, OptionError  # noqa: E402

LILY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


def test_stories260k_tells_its_story(data_dir):
    base = load_base(data_dir / "models" / "stories260K.bin", str(data_dir / "models" / "stories260K.tok512.bin"))
    torch.set_num_threads(1)
    tokens = [1]
    with torch.no_grad():
        for _ in range(60):
            tokens.append(int(base.model.eval()(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert base.tokenizer.decode(tokens).startswith(LILY)
    assert (base.end_token, base.vocabulary, base.context) == (2, 512, 512)
    with pytest.raises(ModelFileError, match="holds no tokenizer; name its file with --tokenizer"):
        load_base(data_dir / "models" / "stories260K.bin", None)


@pytest.mark.parametrize("arch", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_gives_back_the_model_it_was_made_from(arch, tied, tmp_path):
    model = tiny_checkpoint(arch, tmp_path / "hf", tie_word_embeddings=tied)
    convert(tmp_path / "hf", tmp_path / "model.gguf", type="f32")
    base = load_base(tmp_path / "model.gguf", None)
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.model.eval()(tokens).logits, model(tokens).logits, rtol=1e-5, atol=2e-5)
    assert base.tokenizer.decode(base.tokenizer.encode(TEXT[1]).ids) == TEXT[1]
    assert (base.end_token, base.context, base.vocabulary) == (0, 128, 320)
    tied_head = base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight
    assert tied_head == tied


def test_a_quantised_gguf_is_dequantised(tmp_path):
    model = tiny_checkpoint("llama", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf", type="q8_0")
    base = load_base(tmp_path / "model.gguf", None)
    name = "model.layers.1.self_attn.q_proj.weight"
    found, expected = base.model.state_dict()[name], model.state_dict()[name]
    assert 0 < (found - expected).abs().max() < expected.abs().max() / 100


def test_a_tokenizer_is_rebuilt_from_the_arrays_of_a_gguf(tmp_path):
    import gguf

    from localdiff.adapt.base_files import _tokenizer

    tiny_checkpoint("llama", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf", type="f16")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    metadata = {key: entry.contents() for key, entry in fields.items()}
    whole = _tokenizer(metadata, tmp_path)
    del metadata["tokenizer.huggingface.json"]
    rebuilt = _tokenizer(metadata, tmp_path)
    for text in TEXT:
        assert rebuilt.encode(text).ids == whole.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == text
    assert rebuilt.encode("<mask>").ids == whole.encode("<mask>").ids
    with pytest.raises(ModelFileError, match="cannot be rebuilt; name a tokenizer.json"):
        _tokenizer({"tokenizer.ggml.model": "llama"}, tmp_path)


def test_scratch_models_take_the_tokenizers_vocabulary(tmp_path):
    tiny_checkpoint("llama", tmp_path / "hf")
    tokenizer = str(tmp_path / "hf" / "tokenizer.json")
    base = from_scratch("smoke", tokenizer, length=48, seed=3)
    assert (base.vocabulary, base.context, base.end_token) == (320, 48, 0)
    same = from_scratch("smoke", tokenizer, length=48, seed=3)
    weights, again = base.model.state_dict(), same.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    shape = {"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    assert from_scratch(str(tmp_path / "shape.json"), tokenizer, length=0, seed=0).context == 16
    with pytest.raises(OptionError, match="neither a JSON file nor a named size"):
        from_scratch("huge", tokenizer, length=0, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent", None, "no such file or folder"),
        ("weights.pt", b"PK", "expected an HF folder, a .gguf or a llama2.c .bin"),
        ("bad.gguf", b"GGUF\x03\x00", "not a whole GGUF file"),
        ("bad.bin", b"\x00" * 40, "llama2.c"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, data_dir, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=sentence):
        load_base(path, str(data_dir / "models" / "stories260K.tok512.bin"))
