"""Conversion of every family: tensors and metadata against expectations written by hand, logits against transformers.

Each case is a tiny random checkpoint in its published layout (family_checkpoints.py); what its file must hold is in
family_expectations.py, which shares nothing with the converter.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_checkpoints import CHECKPOINTS, YARN, Made, State
from family_expectations import METADATA, RECORDS, expected_tensors
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from gguf_values import finish, read_metadata, read_tensors
from tiny import VOCAB, assert_refused

from localdiff.convert import convert
from localdiff.convert.families import FAMILIES
from localdiff.convert.family import Config
from localdiff.convert.record import find_record
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import ModelFileError
from localdiff.presets import PRESETS
from localdiff.spec import DiffusionSpec


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Made, Path]]:
    """case -> (checkpoint, its f32 file), made once."""
    made: dict[str, tuple[Made, Path]] = {}

    def get(case: str) -> tuple[Made, Path]:
        if case not in made:
            folder = tmp_path_factory.mktemp("family")
            checkpoint = CHECKPOINTS[case](folder / case)
            convert(checkpoint.folder, folder / "f32.gguf", type="f32")
            made[case] = checkpoint, folder / "f32.gguf"
        return made[case]

    return get


# What the file holds


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_tensor_is_where_it_belongs(converted: Any, case: str) -> None:
    checkpoint, path = converted(case)
    found, expected = read_tensors(path), expected_tensors(case, checkpoint.state)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_key(converted: Any, case: str) -> None:
    _, path = converted(case)
    found, record = read_metadata(path), RECORDS[case]
    arch = found["general.architecture"]
    expected: dict[str, Any] = METADATA[case] | {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": case,
        "general.file_type": 0,
        "general.quantization_version": 2,
    }
    if record is not None:
        fields = {
            f"{arch}.attention.causal": False,
            "diffusion.shift_logits": record.logit_shift,
            "localdiff.attention": record.attention,
            "localdiff.block_length": record.block_length,
            "localdiff.canvas_max": 0,
            "localdiff.process": "absorbing",
            "localdiff.decoder": record.decoder,
            "localdiff.steps": record.steps,
            "localdiff.threshold": record.threshold,
            "localdiff.temperature": record.temperature,
            "localdiff.top_p": record.top_p,
            "localdiff.stop_token_ids": list(record.stop_tokens) or None,
            "localdiff.pad_token_id": record.pad_token,
        }
        expected |= {key: value for key, value in fields.items() if value is not None}
        assert found["tokenizer.ggml.mask_token_id"] == record.mask_token
    assert DiffusionSpec.from_gguf(found) == record
    kept = {k: v for k, v in found.items() if not k.startswith("tokenizer.") or k in expected}
    assert kept.keys() == expected.keys()
    for key, value in expected.items():
        assert kept[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
        assert type(kept[key]) is type(value), key
    assert found["tokenizer.huggingface.json"] == (converted(case)[0].folder / "tokenizer.json").read_text()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_published_checkpoints_get_their_preset_whole(model_type: str, tmp_path: Path) -> None:
    """A config.json and a tokenizer that state nothing leave the preset as it is."""
    family = FAMILIES[model_type]
    preset = family.model_types[model_type]
    described = {"general.architecture": family.arch, "general.name": "any"}
    spec, notices = find_record(preset, Config({}, "config.json"), described, tmp_path, None)
    assert spec == (PRESETS[preset] if preset else None)
    assert notices == ()


def test_the_mask_token_is_found_by_its_text_where_nothing_names_it(tmp_path: Path) -> None:
    described = {"general.architecture": "qwen3", "tokenizer.ggml.tokens": ["a", "b", "<|MASK|>"]}
    config = Config({"eos_token_id": 1}, "config.json")
    spec, notices = find_record("sdar", config, described, tmp_path, None)
    assert spec == dataclasses.replace(PRESETS["sdar"], mask_token=2, stop_tokens=(1,), pad_token=None)
    assert notices == ()
    described["tokenizer.ggml.mask_token_id"] = 0  # which the tokenizer names
    assert find_record("sdar", config, described, tmp_path, None)[0] == dataclasses.replace(spec, mask_token=0)
    named = Config({"eos_token_id": 1, "mask_token_id": [1]}, "config.json")
    assert find_record("sdar", named, described, tmp_path, None)[0] == dataclasses.replace(spec, mask_token=1)


def test_ways_to_run_one_body_are_told_apart_by_the_name(tmp_path: Path) -> None:
    config = Config({}, "config.json")
    for preset, name, found in (
        ("modernbert", "ModernBERT-base-chat-v0.1", "modernbert-chat"),
        ("a2d", "Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d-bd3lm"),
        ("bert", "diffullama", "bert"),  # another mask token: the name is a coincidence
    ):
        described = {"general.architecture": "any", "general.name": name}
        spec, notices = find_record(preset, config, described, tmp_path, None)
        assert spec == PRESETS[found]
        assert len(notices) == (found != preset)
        assert all(f"{name} is taken for {found} by its name" in notice for notice in notices)
        # what the user names wins over both, and single values over that
        spec, notices = find_record(preset, config, described, tmp_path, f"{preset},steps=3")
        assert spec == dataclasses.replace(PRESETS[preset], steps=3)
        assert notices == ()


def test_models_on_bodies_of_others_are_recognised_by_their_name(converted: Any, tmp_path: Path) -> None:
    """Stable-DiffCoder, DiffuLLaMA and Open-dCoder are plain Llama and Qwen2 to their config.json."""
    folder = converted("qwen3")[0].folder
    report = convert(folder, tmp_path / "out.gguf", name="TraDo-8B", diffusion="mask=1,stop=,pad=0")
    assert report.spec == dataclasses.replace(PRESETS["sdar"], mask_token=1, stop_tokens=(), pad_token=0)
    report = convert(folder, tmp_path / "out.gguf", name="TraDo-8B")
    assert report.spec == dataclasses.replace(PRESETS["sdar"], mask_token=1, stop_tokens=(), pad_token=None)
    assert any("TraDo-8B is taken for sdar by its name" in notice for notice in report.notices)


# Logits


def supported_architectures(folder: Path) -> list[str]:
    writer = GGUFWriter(folder / "none.gguf", "none")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    finish(writer)
    with File.open(folder / "none.gguf") as file, pytest.raises(ModelFileError) as caught:
        EngineModel(file)
    return str(caught.value).rpartition("supported: ")[2].split(", ")


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_logits_of_the_engine_equal_transformers(converted: Any, case: str, tmp_path: Path) -> None:
    checkpoint, path = converted(case)
    arch = read_metadata(path)["general.architecture"]
    tokens = np.random.default_rng(3).integers(2, VOCAB, 37, dtype=np.int32)
    with File.open(path) as file:
        if arch not in supported_architectures(tmp_path):
            with pytest.raises(ModelFileError, match=f"architecture '{arch}' is not supported"):
                EngineModel(file)
            pytest.skip(f"the engine has no architecture {arch}")
        model = EngineModel(file, threads=2)
        session = model.session(slot_length=len(tokens), threads=2)
        rows = np.arange(len(tokens), dtype=np.int32)
        found = session.logits([Request(tokens=tokens, score=rows, attention="full")])[0]
        session.close()
        model.close()
    expected = checkpoint.logits(tokens)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# Storage


def test_experts_are_quantised_one_by_one_and_the_router_not(converted: Any, tmp_path: Path) -> None:
    checkpoint, path = converted("llada2")
    convert(checkpoint.folder, tmp_path / "q8.gguf", type="q8_0")
    whole = read_tensors(path)
    for tensor in GGUFReader(tmp_path / "q8.gguf").tensors:
        kind = tensor.tensor_type.name
        if "ffn_gate_inp" in tensor.name or "exp_probs_b" in tensor.name or "norm" in tensor.name:
            assert kind == "F32", tensor.name
        else:
            assert kind == "Q8_0", tensor.name
            error = np.abs(dequantize(tensor.data, tensor.tensor_type) - whole[tensor.name])
            assert error.max() <= np.abs(whole[tensor.name]).max() * 5e-3, tensor.name


def test_one_expert_is_held_at_a_time(converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localdiff.convert import driver

    sizes = []
    encode = driver.encode
    monkeypatch.setattr(
        driver, "encode", lambda name, tensor, kind: sizes.append(tensor.shape) or encode(name, tensor, kind)
    )
    checkpoint, _ = converted("qwen3moe")
    convert(checkpoint.folder, tmp_path / "out.gguf")
    assert all(len(shape) <= 2 for shape in sizes)
    assert sizes.count((32, 64)) >= 2 * 2 * 8  # gate and up of two layers


# Names of other versions


def edited(checkpoint: Made, folder: Path, rename: Callable[[str], str], more: State | None = None) -> Path:
    from safetensors.numpy import save_file

    shutil.copytree(checkpoint.folder, folder)
    (folder / "model.safetensors").unlink()
    state = {rename(name): np.ascontiguousarray(tensor) for name, tensor in checkpoint.state.items()}
    save_file(state | (more or {}), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("case", "rename"),
    [
        ("bert", lambda name: re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)),
        ("bert", lambda name: re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)),
        ("bert", lambda name: name.removeprefix("bert.")),
        ("bert", lambda name: name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")),
        ("xlm-r", lambda name: name.replace("lm_head.bias", "lm_head.decoder.bias")),
        ("distilbert", lambda name: name.removeprefix("distilbert.")),
        ("modernbert", lambda name: name.removeprefix("model.")),
        ("llada", lambda name: name.removeprefix("model.")),
        ("mineru", lambda name: name.replace("language_model.model.", "model.language_model.")),
    ],
)  # fmt: skip
def test_other_spellings_give_the_same_file(
    converted: Any, tmp_path: Path, case: str, rename: Callable[[str], str]
) -> None:
    checkpoint, path = converted(case)
    convert(edited(checkpoint, tmp_path / case, rename), tmp_path / "out.gguf", type="f32")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_the_oldest_checkpoints_are_told_by_their_tensors(converted: Any, tmp_path: Path, case: str) -> None:
    """Their config.json has neither model_type nor architectures."""
    checkpoint, path = converted(case)
    folder = tmp_path / case
    shutil.copytree(checkpoint.folder, folder)
    config = {name: value for name, value in checkpoint.config.items() if name not in ("model_type", "architectures")}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "out.gguf", type="f32")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("case", "without", "older"),
    [
        (
            "modernbert",
            ("rope_parameters", "layer_types"),
            {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        ),
        ("rnd1", ("rope_parameters",), {"rope_theta": 1000000.0, "rope_scaling": False, "sliding_window": False}),
        ("nemotron", ("rope_parameters",), {"rope_scaling": YARN, "rope_theta": 1000000.0}),
        ("qwen3moe", ("num_local_experts",), {"num_experts": 8}),
    ],
)
def test_older_spellings_of_the_configuration(
    converted: Any, tmp_path: Path, case: str, without: tuple[str, ...], older: dict[str, Any]
) -> None:
    checkpoint, path = converted(case)
    folder = tmp_path / case
    shutil.copytree(checkpoint.folder, folder)
    assert all(name in checkpoint.config for name in without)
    config = {name: value for name, value in checkpoint.config.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(config | older))
    convert(folder, tmp_path / "out.gguf", type="f32")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()


def test_what_a_checkpoint_holds_beside_the_model_is_left_out(converted: Any, tmp_path: Path) -> None:
    checkpoint, path = converted("bert")
    embedding = checkpoint.state["bert.embeddings.word_embeddings.weight"]
    more = {
        "bert.embeddings.position_ids": np.arange(80)[None],
        "bert.pooler.dense.weight": np.zeros((64, 64), "f4"),
        "bert.pooler.dense.bias": np.zeros(64, "f4"),
        "cls.seq_relationship.weight": np.zeros((2, 64), "f4"),
        "cls.seq_relationship.bias": np.zeros(2, "f4"),
        "cls.predictions.decoder.weight": embedding.copy(),
        "cls.predictions.decoder.bias": checkpoint.state["cls.predictions.bias"].copy(),
    }
    convert(edited(checkpoint, tmp_path / "bert", lambda name: name, more), tmp_path / "out.gguf", type="f32")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()
    more["cls.predictions.decoder.bias"] = np.zeros(VOCAB, "f4")
    with pytest.raises(ModelFileError, match="cls.predictions.bias and cls.predictions.decoder.bias differ"):
        convert(edited(checkpoint, tmp_path / "other", lambda name: name, more), tmp_path / "none.gguf")


# Refusals


@pytest.mark.parametrize(
    ("case", "edit", "message"),
    [
        ("llada", {"block_type": "sequential"}, "block_type is 'sequential'"),
        ("llada", {"rope": False}, "rope is False"),
        ("llada", {"include_bias": True}, "include_bias is True"),
        ("llada", {"activation_type": "swiglu"}, "activation_type is 'swiglu'"),
        ("llada", {"d_model": 66}, "d_model is 66, expected a multiple of the 4 heads"),
        ("dream", {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_parameters": None}, "RoPE scaling 'yarn'"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3moe", {"mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected a whole number from 1 to 8"),
        ("llada-moe", {"moe_layer_freq": [0, 1]}, "moe_layer_freq is [0, 1]"),
        ("llada-moe", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias is True"),
        ("llada-moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size is 64"),
        ("llada-moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llada2", {"score_function": "softmax"}, "score_function is 'softmax'"),
        ("llada2", {"use_qk_norm": False}, "use_qk_norm is False"),
        ("llada2", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1"),
        ("llada2", {"n_group": 3}, "n_group is 3, expected a divisor of the 8 experts"),
        ("llada2", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1, expected 2 or more"),
        ("ministral3", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings is 2, expected more than 2"),
        ("distilbert", {"activation": "relu"}, "activation is 'relu'"),
        ("modernbert", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 5}, "layer_types is no repetition"),
        ("bert", {"model_type": "albert"}, "model_type 'albert' cannot be converted: its layers share one set"),
        ("sdar", {"eos_token_id": "x"}, "eos_token_id is 'x', expected a token id"),
        (
            "qwen3",
            {"quantization_config": {"load_in_4bit": True}, "_name_or_path": "owner/model"},
            "packed by bitsandbytes, which loses what a GGUF type could keep; convert the bf16 original, owner/model,",
        ),
        (
            "qwen3",
            {"quantization_config": {"quant_method": "gptq"}, "_name_or_path": "x/diffusionfamily_-_diffullama-4bits"},
            "packed by gptq, which loses what a GGUF type could keep; "
            "convert the bf16 original, diffusionfamily/diffullama,",
        ),
    ],
)
def test_configurations_that_cannot_be_honoured(
    converted: Any, tmp_path: Path, case: str, edit: dict[str, Any], message: str
) -> None:
    assert_refused(converted(case)[0].folder, tmp_path, edit, message)


@pytest.mark.parametrize("case", ["bert", "xlm-r", "distilbert", "modernbert"])
def test_an_encoder_without_its_head_is_refused_in_one_sentence(converted: Any, tmp_path: Path, case: str) -> None:
    from safetensors.numpy import save_file

    checkpoint = converted(case)[0]
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint.folder, folder)
    heads = ("cls.", "lm_head.", "vocab_", "head.", "decoder.")
    state = {name: np.ascontiguousarray(t) for name, t in checkpoint.state.items() if not name.startswith(heads)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match="has no masked-LM head .* expected a ...ForMaskedLM checkpoint") as caught:
        convert(folder, tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)


def test_missing_experts_are_all_named(converted: Any, tmp_path: Path) -> None:
    checkpoint = converted("qwen3moe")[0]
    gone = "model.layers.1.mlp.experts.3."
    folder = edited(checkpoint, tmp_path / "hf", lambda name: name.replace(gone, "model.layers.1.mlp.experts.x."))
    with pytest.raises(ModelFileError) as caught:
        convert(folder, tmp_path / "out.gguf")
    assert "expected and missing (3): layers.1.mlp.experts.3.gate_proj.weight" in str(caught.value)
    assert "present and unused (3): model.layers.1.mlp.experts.x." in str(caught.value)
