"""The length head: the engine's against torch's own module on every kind of body, files, the tokens of an answer.

Hidden states are transformers', the head is the one that adapt trains; the engine has both from a GGUF file only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import FAMILIES, HEADS, VOCAB, make_model, metadata_of, tensors_of, write_gguf
from emulated import DEVICES, PLUGIN
from tiny import tiny_checkpoint

from localdiff.convert import convert
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import Cancelled, EngineError, ModelFileError
from localdiff.quantize import quantize

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from localdiff.adapt.length_head import LengthHead  # noqa: E402
from localdiff.convert.length_head import FILE as LENGTH_HEAD  # noqa: E402
from localdiff.convert.length_head import ROWS  # noqa: E402

CLASSES = 130  # more than the vocabulary
BODIES = ("BERT", "XLM-R", "XLM-R XL", "ModernBERT", "DiffuGPT", "LLaDA")


def fresh_head(dim: int = 48, heads: int = HEADS, ffn: int = 72, classes: int = CLASSES, seed: int = 0) -> LengthHead:
    torch.manual_seed(seed)
    head = LengthHead(dim, heads, ffn, classes).eval()
    with torch.no_grad():
        for parameter in head.parameters():  # norms and biases too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


def file_tensors(head: LengthHead) -> dict[str, np.ndarray]:
    state = head.state_dict()
    return {row.target: state[row.source].numpy() for row in ROWS}


def expected_logits(family: Any, model: Any, head: LengthHead, tokens: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    mask = {} if family.is_encoder else {"attention_mask": torch.zeros(1, 1, len(tokens), len(tokens))}
    with torch.no_grad():
        hidden = model.base_model(ids, **mask).last_hidden_state
        return head(hidden, torch.ones_like(ids, dtype=torch.bool))[0].numpy()


def open_on(path: Path, device: str, **options: Any) -> EngineModel:
    where = {"device": PLUGIN} if device == "cuda" else {"isa": device}
    with File.open(path) as file:
        return EngineModel(file, **where, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's file with the tensors of a head, which `changed` may replace; None leaves one out."""
    folder = tmp_path_factory.mktemp("lengths")

    def get(name: str, **changed: np.ndarray | None) -> tuple[Path, Any, LengthHead]:
        family, head = FAMILIES[name], fresh_head()
        model, path = make_model(family), folder / f"{name} {len(list(folder.iterdir()))}.gguf"
        replaced = {f"length_head.{key.replace('__', '.')}": value for key, value in changed.items()}
        tensors = tensors_of(family, model) | file_tensors(head) | replaced
        kept = {key: value for key, value in tensors.items() if value is not None}
        write_gguf(path, family.arch, metadata_of(family, model), kept)
        return path, model, head

    return get


def prompt_of(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(5, VOCAB, length, dtype=np.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BODIES)
def test_the_engines_logits_are_those_of_torch(name: str, device: str, files: Any) -> None:
    path, model, head = files(name)
    engine = open_on(path, device)
    assert engine.info.lengths == CLASSES
    with engine.session(slots=2, slot_length=40, threads=1) as session:
        for prompt in (prompt_of(1), prompt_of(33)) if device != "cuda" else (prompt_of(7),):
            expected = expected_logits(FAMILIES[name], model, head, prompt)
            found = session.lengths(prompt, slot=1)
            assert found.shape == (CLASSES,)
            assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_a_head_changes_nothing_else_and_depends_on_nothing_else(files: Any) -> None:
    path, _, _ = files("XLM-R")
    rows = np.arange(12, dtype=np.int32)
    request = Request(prompt_of(12), rows, slot=1)
    with open_on(path, "scalar") as engine, open_on(path, "scalar", plan=True) as planned:
        with engine.session(slots=2, slot_length=40, threads=1) as session:
            alone = session.lengths(prompt_of(9))
            logits = session.logits([request])[0]
            saved = session.state(12, slot=1)
            assert np.array_equal(session.lengths(prompt_of(9)), alone)
            assert session.state(12, slot=1) == saved
            # its pass leaves the prompt computed, as any other does
            session.logits([Request(prompt_of(12), rows[:1], slot=0, compute=rows)])
            session.lengths(prompt_of(12), slot=1)
            assert session.state(12, slot=1) == saved
            assert np.array_equal(session.logits([request])[0], logits)
            assert session.timings().forwards == 6
        with engine.session(slots=2, slot_length=40, threads=2) as session:
            assert np.array_equal(session.lengths(prompt_of(9)), alone)
        assert planned.info.lengths == CLASSES
        assert planned.plan(slot_length=40, threads=1) == engine.plan(slot_length=40, threads=1)
        with engine.session(slot_length=40, threads=1) as session:
            for prompt, sentence in (
                (np.empty(0, np.int32), "length is 0"),
                (prompt_of(41), "length is 41"),
                (np.array([VOCAB], np.int32), "outside the vocabulary"),
            ):
                with pytest.raises(EngineError, match=sentence):
                    session.lengths(prompt)
            with pytest.raises(EngineError, match="slot is 1, expected 0 to 0"):
                session.lengths(prompt_of(3), slot=1)
            session.cancel()
            with pytest.raises(Cancelled):
                session.lengths(prompt_of(3))
            assert np.array_equal(session.lengths(prompt_of(9)), alone)


def test_heads_that_do_not_fit_are_refused(files: Any, tmp_path: Path) -> None:
    wide = np.zeros((72, 50), np.float32)
    with pytest.raises(ModelFileError, match=r"length_head.dense.weight: shape \[72, 50\], expected \[72, 48\]"):
        open_on(files("XLM-R", dense__weight=wide)[0], "scalar")
    with pytest.raises(ModelFileError, match="lacks: length_head.ffn_down.weight, length_head.layer_output_norm.bias"):
        open_on(files("XLM-R", ffn_down__weight=None, layer_output_norm__bias=None)[0], "scalar")
    with pytest.raises(ModelFileError, match="the layers 4 of 12 and 2 of keys; convert the model without the head"):
        open_on(files("Stable-DiffCoder")[0], "scalar")
    with pytest.raises(ModelFileError, match="does not use: length_head.attn_qkv.weight"):
        open_on(files("XLM-R", classes__weight=None)[0], "scalar")
    absent = {row.target.removeprefix("length_head.").replace(".", "__"): None for row in ROWS}
    with open_on(files("XLM-R", **absent)[0], "scalar") as engine, engine.session() as session:
        assert engine.info.lengths == 0
        with pytest.raises(EngineError, match="has no length head; give the number of tokens"):
            session.lengths(prompt_of(3))


def test_a_checkpoints_head_goes_into_the_file_and_takes_its_types(tmp_path: Path) -> None:
    def converted(name: str, type: str = "f32") -> Path:
        return convert(tmp_path / "hf", tmp_path / f"{name}.gguf", type=type).path

    tiny_checkpoint("llama", tmp_path / "hf", num_key_value_heads=4)
    plain = File.open(converted("plain")).tensors
    save_file(fresh_head(64, 4, 160).state_dict(), tmp_path / "hf" / LENGTH_HEAD)
    whole = converted("whole")
    added = {each.name: each.shape for each in File.open(whole).tensors[len(plain) :]}
    assert added == {name: array.shape for name, array in file_tensors(fresh_head(64, 4, 160)).items()}
    before = quantize(tmp_path / "plain.gguf", tmp_path / "less.gguf", type="q4_k_m").path
    after = quantize(whole, tmp_path / "small.gguf", type="q4_k_m").path
    types = {each.name: each.type for each in File.open(after).tensors}
    assert {name: types[name] for name in types if name not in added} == {
        each.name: each.type for each in File.open(before).tensors
    }
    assert types["length_head.attn_qkv.weight"] == "Q5_0"  # in place of q4_k, which takes rows of 256
    assert types["length_head.attn_output_norm.weight"] == "F32"
    with open_on(whole, "scalar") as exact, open_on(after, "scalar") as small:
        found = [engine.session(slot_length=9, threads=1).lengths(prompt_of(9)) for engine in (exact, small)]
        assert 0 < np.abs(found[0] - found[1]).max() < 0.5

    save_file(fresh_head(64, 4, 128).state_dict(), tmp_path / "hf" / LENGTH_HEAD)
    wrong = r"(?s)not those of this model's length head.*linear1.weight: shape \[128, 64\]"
    with pytest.raises(ModelFileError, match=wrong):
        converted("wrong")
    tiny_checkpoint("llama", tmp_path / "hf")
    with pytest.raises(ModelFileError, match="as many heads of keys as of queries"):
        converted("grouped")
    made = {"hf", "plain.gguf", "whole.gguf", "less.gguf", "small.gguf"}
    assert {path.name for path in tmp_path.iterdir()} == made
