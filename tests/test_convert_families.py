"""Conversion of every family: tensors and metadata against expectations written by hand, logits against transformers.

Each case is a tiny random checkpoint in its published layout (family_checkpoints.py). The expectations share nothing
with the converter: they start from the names in the file and spell out what llama.cpp's files hold.
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
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from tiny import VOCAB

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


def read(path: Path) -> State:
    return {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


# Where every tensor belongs


def interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows 2j and 2j+1 of a head come from its rows j and j + half."""
    size = len(tensor) // heads
    order = [h * size + j + part * (size // 2) for h in range(heads) for j in range(size // 2) for part in (0, 1)]
    return tensor[order]


DECODER = {
    r"model\.embed_tokens\.weight": "token_embd.weight",
    r"model\.norm\.weight": "output_norm.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": "blk.{}.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)": "blk.{}.attn_{}.{}",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight": "blk.{}.attn_{}_norm.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}.weight",
    r"model\.layers\.(\d+)\.mlp\.gate\.weight": "blk.{}.ffn_gate_inp.weight",
    r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}_exps.weight",
}
LLADA = {
    r"model\.transformer\.wte\.weight": "token_embd.weight",
    r"model\.transformer\.ln_f\.weight": "output_norm.weight",
    r"model\.transformer\.ff_out\.weight": "output.weight",
    r"model\.transformer\.blocks\.(\d+)\.attn_norm\.weight": "blk.{}.attn_norm.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_norm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.transformer\.blocks\.(\d+)\.([qkv])_proj\.weight": "blk.{}.attn_{}.weight",
    r"model\.transformer\.blocks\.(\d+)\.attn_out\.weight": "blk.{}.attn_output.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_proj\.weight": "blk.{}.ffn_gate.weight",
    r"model\.transformer\.blocks\.(\d+)\.up_proj\.weight": "blk.{}.ffn_up.weight",
    r"model\.transformer\.blocks\.(\d+)\.ff_out\.weight": "blk.{}.ffn_down.weight",
}
MINERU = {"language_model\\." + source: target for source, target in DECODER.items()} | {
    r"vision_model\..*": "",
    r"vision_abstractor\..*": "",
}
NEMOTRON = {
    source.replace("model", "encoder").replace("lm_head", "diffusion_head"): target
    for source, target in DECODER.items()
}
LLADA2 = DECODER | {
    r"model\.word_embeddings\.weight": "token_embd.weight",
    r"model\.layers\.(\d+)\.attention\.query_key_value\.weight": "blk.{}.attn_qkv.weight",
    r"model\.layers\.(\d+)\.attention\.query_layernorm\.weight": "blk.{}.attn_q_norm.weight",
    r"model\.layers\.(\d+)\.attention\.key_layernorm\.weight": "blk.{}.attn_k_norm.weight",
    r"model\.layers\.(\d+)\.attention\.dense\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp\.gate\.expert_bias": "blk.{}.exp_probs_b.bias",
    r"model\.layers\.(\d+)\.mlp\.shared_experts\.(gate|up|down)_proj\.weight": "blk.{}.ffn_{}_shexp.weight",
}
LAYER = r"encoder\.layer\.(\d+)\."
BERT_BODY = {
    r"embeddings\.word_embeddings\.weight": "token_embd.weight",
    r"embeddings\.position_embeddings\.weight": "position_embd.weight",
    r"embeddings\.token_type_embeddings\.weight": "token_types.weight",
    r"embeddings\.LayerNorm\.(weight|bias)": "token_embd_norm.{}",
    LAYER + r"attention\.self\.(q|k|v)[a-z]+\.(weight|bias)": "blk.{}.attn_{}.{}",
    LAYER + r"attention\.output\.dense\.(weight|bias)": "blk.{}.attn_output.{}",
    LAYER + r"attention\.output\.LayerNorm\.(weight|bias)": "blk.{}.attn_output_norm.{}",
    LAYER + r"intermediate\.dense\.(weight|bias)": "blk.{}.ffn_up.{}",
    LAYER + r"output\.dense\.(weight|bias)": "blk.{}.ffn_down.{}",
    LAYER + r"output\.LayerNorm\.(weight|bias)": "blk.{}.layer_output_norm.{}",
    # XLM-R XL
    LAYER + r"attention\.self_attn_layer_norm\.(weight|bias)": "blk.{}.attn_norm.{}",
    LAYER + r"LayerNorm\.(weight|bias)": "blk.{}.ffn_norm.{}",
    r"encoder\.LayerNorm\.(weight|bias)": "output_norm.{}",
}
BERT = {"bert\\." + source: target for source, target in BERT_BODY.items()} | {
    r"cls\.predictions\.transform\.dense\.(weight|bias)": "mlm_dense.{}",
    r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)": "mlm_norm.{}",
    r"cls\.predictions\.bias": "output.bias",
}
ROBERTA = {"roberta\\." + source: target for source, target in BERT_BODY.items()} | {
    r"lm_head\.dense\.(weight|bias)": "mlm_dense.{}",
    r"lm_head\.layer_norm\.(weight|bias)": "mlm_norm.{}",
    r"lm_head\.bias": "output.bias",
}
DISTIL_LAYER = r"distilbert\.transformer\.layer\.(\d+)\."
DISTILBERT = {
    r"distilbert\.embeddings\.word_embeddings\.weight": "token_embd.weight",
    r"distilbert\.embeddings\.position_embeddings\.weight": "position_embd.weight",
    r"distilbert\.embeddings\.LayerNorm\.(weight|bias)": "token_embd_norm.{}",
    DISTIL_LAYER + r"attention\.([qkv])_lin\.(weight|bias)": "blk.{}.attn_{}.{}",
    DISTIL_LAYER + r"attention\.out_lin\.(weight|bias)": "blk.{}.attn_output.{}",
    DISTIL_LAYER + r"sa_layer_norm\.(weight|bias)": "blk.{}.attn_output_norm.{}",
    DISTIL_LAYER + r"ffn\.lin1\.(weight|bias)": "blk.{}.ffn_up.{}",
    DISTIL_LAYER + r"ffn\.lin2\.(weight|bias)": "blk.{}.ffn_down.{}",
    DISTIL_LAYER + r"output_layer_norm\.(weight|bias)": "blk.{}.layer_output_norm.{}",
    r"vocab_transform\.(weight|bias)": "mlm_dense.{}",
    r"vocab_layer_norm\.(weight|bias)": "mlm_norm.{}",
    r"vocab_projector\.bias": "output.bias",
}
MODERNBERT = {
    r"model\.embeddings\.tok_embeddings\.weight": "token_embd.weight",
    r"model\.embeddings\.norm\.weight": "token_embd_norm.weight",
    r"model\.final_norm\.weight": "output_norm.weight",
    r"model\.layers\.(\d+)\.attn_norm\.weight": "blk.{}.attn_norm.weight",
    r"model\.layers\.(\d+)\.attn\.Wqkv\.weight": "blk.{}.attn_qkv.weight",
    r"model\.layers\.(\d+)\.attn\.Wo\.weight": "blk.{}.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp_norm\.weight": "blk.{}.ffn_norm.weight",
    r"model\.layers\.(\d+)\.mlp\.Wi\.weight": "blk.{}.ffn_up.weight",
    r"model\.layers\.(\d+)\.mlp\.Wo\.weight": "blk.{}.ffn_down.weight",
    r"head\.dense\.weight": "mlm_dense.weight",
    r"head\.norm\.weight": "mlm_norm.weight",
    r"decoder\.bias": "output.bias",
}
NAMES = {
    "llada": LLADA,
    "illada": LLADA,
    "mineru": MINERU,
    "nemotron": NEMOTRON,
    "llada2": LLADA2,
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-r": ROBERTA,
    "xlm-r-xl": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
}
INTERLEAVED = ("llada", "illada", "a2d-llama", "ministral3", "nemotron")
CUT = ("roberta", "xlm-r", "xlm-r-xl")  # their positions begin after the padding token, id 1
KV_HEADS = {"llada": 4}


def expected_tensors(case: str, state: State) -> State:
    out: dict[str, list[np.ndarray]] = {}
    # experts come in the order of their numbers, not of their names
    for source in sorted(state, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split(".")]):
        matches = [(re.fullmatch(pattern, source), target) for pattern, target in NAMES.get(case, DECODER).items()]
        found, target = next((found, target) for found, target in matches if found)
        name = target.format(*found.groups())
        tensor = state[source]
        if case in INTERLEAVED and re.search(r"attn_[qk]\.", name):
            tensor = interleave(tensor, 4 if "attn_q." in name else KV_HEADS.get(case, 2))
        if case in CUT and name == "position_embd.weight":
            tensor = tensor[2:]
        if name:
            out.setdefault(name, []).append(tensor)
    return {name: np.stack(parts) if "_exps" in name else parts[0] for name, parts in out.items()}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_tensor_is_where_it_belongs(converted: Any, case: str) -> None:
    checkpoint, path = converted(case)
    found, expected = read(path), expected_tensors(case, checkpoint.state)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


# Metadata


def body(arch: str, **more: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": 16,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }
    named = {key.replace("__", "."): value for key, value in more.items()}
    return {f"{arch}.{key}": value for key, value in (keys | named).items() if value is not None}


WIDE = {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 32}
QWEN3 = WIDE | {"rope__freq_base": 1000000.0}
EXPERTS = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_weights_norm": True,
}
LLADA_KEYS = {"attention__layer_norm_rms_epsilon": 1e-5, "rope__freq_base": 500000.0}
MISTRAL = QWEN3 | {
    "attention__layer_norm_rms_epsilon": 1e-5,
    "attention__temperature_scale": 0.1,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 16.0,
    "rope__scaling__original_context_length": 16,
    "rope__scaling__yarn_beta_fast": 32.0,
    "rope__scaling__yarn_beta_slow": 1.0,
    "rope__scaling__yarn_log_multiplier": 1.0,
}
ENCODER = {
    "block_count": 3,
    "context_length": 80,
    "attention__head_count_kv": 4,
    "attention__layer_norm_rms_epsilon": None,
    "attention__layer_norm_epsilon": 1e-5,
    "attention__causal": False,
    "rope__dimension_count": None,
    "rope__freq_base": None,
}


def mlm(norm: str = "post", types: int | None = None) -> dict[str, Any]:
    facts = {"localdiff.norm": norm, "localdiff.head": "mlm"}
    return facts | ({"tokenizer.ggml.token_type_count": types} if types else {})


METADATA: dict[str, dict[str, Any]] = {
    "llada": body("llada", **LLADA_KEYS, attention__head_count_kv=4),
    "illada": body("llada", **LLADA_KEYS),
    "dream": body("dream"),
    "fast-dllm-v2": body("qwen2"),
    "a2d-llama": body("llama"),
    "qwen3": body("qwen3", **QWEN3),
    "qwen3-tied": body("qwen3", **QWEN3),
    "sdar": body("qwen3", **QWEN3),
    "mineru": body("qwen3", **QWEN3),
    "qwen3moe": body("qwen3moe", **QWEN3, **EXPERTS),
    "sdar-moe": body("qwen3moe", **QWEN3, **EXPERTS),
    "rnd1": body("rnd1", **QWEN3, **EXPERTS),
    "llada-moe": body(
        "llada-moe",
        **EXPERTS | {"expert_weights_norm": False},
        attention__layer_norm_rms_epsilon=1e-5,
        rope__freq_base=50000.0,
    ),
    "llada2": body(
        "bailingmoe2",
        attention__key_length=16,
        attention__value_length=16,
        rope__dimension_count=8,
        rope__freq_base=600000.0,
        block_count=3,
        **EXPERTS | {"expert_used_count": 3},
        leading_dense_block_count=1,
        expert_shared_count=1,
        expert_shared_feed_forward_length=32,
        expert_group_count=4,
        expert_group_used_count=2,
        expert_gating_func=2,
        expert_weights_scale=2.5,
    ),
    "ministral3": body("mistral3", **MISTRAL),
    "nemotron": body("mistral3", **MISTRAL),
    "bert": body("bert", **ENCODER | {"attention__layer_norm_epsilon": 1e-12}) | mlm(types=2),
    "roberta": body("bert", **ENCODER | {"context_length": 78}) | mlm(types=1),
    "xlm-r": body("bert", **ENCODER | {"context_length": 78}) | mlm(types=1),
    "xlm-r-xl": body("bert", **ENCODER | {"context_length": 78}) | mlm("pre", types=1),
    "distilbert": body("bert", **ENCODER | {"attention__layer_norm_epsilon": 1e-12}) | mlm(),
    "modernbert": body(
        "modern-bert",
        **ENCODER | {"block_count": 5, "rope__dimension_count": 16, "rope__freq_base": 160000.0},
        rope__freq_base_swa=10000.0,
        rope__scaling__type="none",
        attention__sliding_window=16,
        attention__sliding_window_pattern=3,
        hidden_activation="gelu",
    )
    | mlm("pre"),
}
BLOCKS = {"attention": "block_causal", "decoder": "threshold"}
# The ids come from config.json, or, for the mask, from the tokenizer, whose mask token is 1.
RECORDS: dict[str, DiffusionSpec | None] = {
    "llada": DiffusionSpec(5, False, decoder="llada", stop_tokens=(9,)),
    "illada": DiffusionSpec(1, False, decoder="llada", stop_tokens=(9, 10)),
    "dream": DiffusionSpec(
        7, True, decoder="topk", steps=512, temperature=0.2, top_p=0.95, stop_tokens=(3,), pad_token=3
    ),
    "fast-dllm-v2": DiffusionSpec(1, True, **BLOCKS, block_length=16, threshold=0.9),
    "a2d-llama": DiffusionSpec(1, False, decoder="llada", stop_tokens=(2,)),
    "qwen3": None,
    "qwen3-tied": None,
    "sdar": DiffusionSpec(1, False, **BLOCKS, block_length=8, threshold=0.9, stop_tokens=(4,)),
    "mineru": DiffusionSpec(6, False, **BLOCKS, block_length=32, threshold=0.95, temperature=1.0),
    "qwen3moe": None,
    "sdar-moe": DiffusionSpec(1, False, **BLOCKS, block_length=4, threshold=0.9),
    "rnd1": DiffusionSpec(8, True, decoder="topk", steps=256, temperature=0.01),
    "llada-moe": DiffusionSpec(1, False, decoder="llada", stop_tokens=(9,)),
    "llada2": DiffusionSpec(1, False, **BLOCKS, block_length=32, threshold=0.95, stop_tokens=(3,), pad_token=3),
    "ministral3": None,
    "nemotron": DiffusionSpec(11, False, **BLOCKS, block_length=32, threshold=0.9, stop_tokens=(2,), pad_token=11),
    "bert": DiffusionSpec(1, False, decoder="topk", temperature=0.0, pad_token=0),
    "roberta": DiffusionSpec(1, False, decoder="topk", temperature=0.0, stop_tokens=(2,), pad_token=1),
    "xlm-r": DiffusionSpec(1, False, decoder="topk", temperature=0.0, steps=50, stop_tokens=(2,), pad_token=1),
    "xlm-r-xl": DiffusionSpec(1, False, decoder="topk", temperature=0.0, steps=50, stop_tokens=(2,), pad_token=1),
    "distilbert": DiffusionSpec(1, False, decoder="topk", temperature=0.0, pad_token=0),
    "modernbert": DiffusionSpec(1, False, decoder="topk", temperature=0.0, stop_tokens=(3,), pad_token=0),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_key(converted: Any, case: str) -> None:
    _, path = converted(case)
    found, record = metadata(path), RECORDS[case]
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
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with File.open(folder / "none.gguf") as file, pytest.raises(ModelFileError) as caught:
        EngineModel(file)
    return str(caught.value).rpartition("supported: ")[2].split(", ")


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_logits_of_the_engine_equal_transformers(converted: Any, case: str, tmp_path: Path) -> None:
    checkpoint, path = converted(case)
    arch = metadata(path)["general.architecture"]
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
    whole = read(path)
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
        ("bert", {"model_type": "diffusion_gemma"}, "model_type 'diffusion_gemma' cannot be converted: its canvas"),
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
    folder = tmp_path / "hf"
    shutil.copytree(converted(case)[0].folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(ModelFileError) as caught:
        convert(folder, tmp_path / "out.gguf")
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


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
