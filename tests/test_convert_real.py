"""Real checkpoints in their published folders: one that is converted and runs, two that are refused and say why.

The packages hold models only; none of their code is imported.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_models import iglm_folder, minilm_folder, rxnfp_folder, rxnmapper_folder
from tokenizers import Tokenizer, models, pre_tokenizers

import localdiff
from localdiff.convert import convert
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import ModelFileError


def test_a_bert_of_2019_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    """Weights in a torch file from before the zip format, a config.json without model_type, WordPiece."""
    import transformers

    folder = rxnfp_folder()
    pieces = (folder / "vocab.txt").read_text().split("\n")
    vocab = {piece: index for index, piece in enumerate(pieces) if piece}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    report = convert(folder, tmp_path / "out.gguf", type="f32", tokenizer=tmp_path / "tokenizer.json")
    assert report.arch == "bert"
    assert report.spec is not None
    assert report.spec.mask_token == vocab["[MASK]"]
    assert report.spec.logit_shift is False

    config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    config._attn_implementation = "eager"
    model = transformers.BertForMaskedLM(config).eval()
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    assert not model.load_state_dict(kept, strict=False).unexpected_keys
    tokens = np.random.default_rng(5).integers(5, len(vocab), 120, dtype=np.int32)
    tokens[::6] = vocab["[MASK]"]
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    with File.open(tmp_path / "out.gguf") as file:
        session = EngineModel(file).session(slot_length=len(tokens))
        found = session.logits([Request(tokens=tokens, score=np.arange(len(tokens), dtype=np.int32))])[0]
        session.close()
    # twelve layers in float32 on both sides
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_gpt2_of_antibodies_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    """A torch file of 2022 and a vocabulary of amino acids that lies elsewhere."""
    import transformers

    folder, vocab = iglm_folder(), iglm_folder().parent / "vocab.txt"
    report = convert(folder, tmp_path / "out.gguf", type="f32", tokenizer=vocab, diffusion="mask=4,shift=1")
    assert report.arch == "gpt2"
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    pieces = vocab.read_text().split()
    with localdiff.load(tmp_path / "out.gguf", math="exact") as loaded:
        tokens = loaded.tokenize("EVQLVESGGGLVQPGRSLRLSCAAS")
        assert [pieces[token] for token in tokens if token > 4] == list("EVQLVESGGGLVQPGRSLRLSCAAS")
        found = loaded.logits(tokens, attention="causal")
    with torch.no_grad():
        expected = model(torch.tensor(tokens)[None]).logits[0].numpy()
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_sentence_encoder_is_refused_for_its_missing_head(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has no masked-LM head"):
        convert(minilm_folder(), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_an_albert_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="model_type 'albert' cannot be converted: its layers share one set"):
        convert(rxnmapper_folder(), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
