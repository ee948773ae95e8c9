"""Conversion of HF checkpoints: every tensor against a formula written by hand, metadata exactly, logits end to end.

The formulas here share nothing with the converter: the order of Q and K rows is spelled out index by index, block
formats by their definition. Tokenizers, other sources and interrupted writes are in the other test_convert files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf_values import read_metadata, read_tensors
from reference import Reference, visible_to
from tiny import VOCAB, assert_refused, hf_logits, tiny_checkpoint

from localdiff.convert import convert
from localdiff.errors import ModelFileError, OptionError
from localdiff.spec import RECORD_FILE, DiffusionSpec

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2-untied-inner": {"tie_word_embeddings": False, "n_inner": 96},
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"head_dim": 32, "num_key_value_heads": 4},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
    "llama-llama3": {"rope_parameters": LLAMA3},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    made = {}
    for variant, overrides in VARIANTS.items():
        folder = tmp_path_factory.mktemp("checkpoint") / variant
        made[variant] = (folder, tiny_checkpoint(variant.split("-")[0], folder, **overrides))
    return made


def interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows 2j and 2j+1 of a head come from its rows j and j + half."""
    size = len(tensor) // heads
    out = np.empty_like(tensor)
    for head in range(heads):
        for j in range(size // 2):
            out[head * size + 2 * j] = tensor[head * size + j]
            out[head * size + 2 * j + 1] = tensor[head * size + j + size // 2]
    return out


def expected_tensors(model: Any) -> dict[str, np.ndarray]:
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    out: dict[str, np.ndarray] = {}
    if config.model_type == "gpt2":
        out["token_embd.weight"] = state["transformer.wte.weight"]
        out["position_embd.weight"] = state["transformer.wpe.weight"]
        blocks = {
            "ln_1": "attn_norm",
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "ln_2": "ffn_norm",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        }
        for i in range(config.n_layer):
            for theirs, ours in blocks.items():
                out[f"blk.{i}.{ours}.weight"] = state[f"transformer.h.{i}.{theirs}.weight"].T
                out[f"blk.{i}.{ours}.bias"] = state[f"transformer.h.{i}.{theirs}.bias"]
        out["output_norm.weight"] = state["transformer.ln_f.weight"]
        out["output_norm.bias"] = state["transformer.ln_f.bias"]
    else:
        out["token_embd.weight"] = state["model.embed_tokens.weight"]
        out["output_norm.weight"] = state["model.norm.weight"]
        blocks = {
            "input_layernorm": "attn_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for i in range(config.num_hidden_layers):
            for theirs, ours in blocks.items():
                for part in ("weight", "bias"):
                    tensor = state.get(f"model.layers.{i}.{theirs}.{part}")
                    if tensor is not None and config.model_type == "llama" and ours in heads:
                        tensor = interleave(tensor, heads[ours])
                    if tensor is not None:
                        out[f"blk.{i}.{ours}.{part}"] = tensor
    if not config.tie_word_embeddings:
        out["output.weight"] = state["lm_head.weight"]
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_where_it_belongs(checkpoints: Any, tmp_path: Path, variant: str) -> None:
    folder, model = checkpoints[variant]
    convert(folder, tmp_path / "out.gguf", type="f32")
    found, expected = read_tensors(tmp_path / "out.gguf"), expected_tensors(model)
    factors = found.pop("rope_freqs.weight", None)
    assert (factors is not None) == (variant == "llama-llama3")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_the_file_equal_transformers(checkpoints: Any, tmp_path: Path, variant: str, kind: str) -> None:
    folder, model = checkpoints[variant]
    convert(folder, tmp_path / "out.gguf", type="f32")
    tokens = np.random.default_rng(3).integers(0, VOCAB, 100)
    ends = visible_to(kind, len(tokens))
    expected = hf_logits(model, tokens, ends)
    found = Reference(tmp_path / "out.gguf").logits(tokens, ends)
    # float32 against float64 over two layers; the worst of these models shows 4e-6
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_llama3_factors_follow_the_three_zones(checkpoints: Any, tmp_path: Path) -> None:
    convert(checkpoints["llama-llama3"][0], tmp_path / "out.gguf", type="f32")
    factors = read_tensors(tmp_path / "out.gguf")["rope_freqs.weight"]
    expected = []
    for j in range(8):  # head_dim 16
        wave = 2 * np.pi * 10000.0 ** (2 * j / 16)
        if wave < 64 / 4.0:
            expected.append(1.0)
        elif wave > 64 / 1.0:
            expected.append(8.0)
        else:
            smooth = (64 / wave - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 8.0 + smooth))
    assert len({round(value, 3) for value in expected}) >= 3  # all zones occur
    np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_metadata_of_gpt2(checkpoints: Any, tmp_path: Path) -> None:
    convert(checkpoints["gpt2"][0], tmp_path / "out.gguf", type="q8_0")
    found = read_metadata(tmp_path / "out.gguf")
    assert {key: value for key, value in found.items() if not key.startswith("tokenizer.")} == {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": "gpt2",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "gpt2.context_length": 128,
        "gpt2.embedding_length": 64,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.head_count_kv": 4,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5, rel=1e-6),
        "gpt2.vocab_size": VOCAB,
    }


def test_metadata_of_llama_with_wide_heads_and_linear_scaling(checkpoints: Any, tmp_path: Path) -> None:
    for variant, extra in (
        ("llama-wide-heads", {"attention.key_length": 32, "attention.value_length": 32}),
        ("llama-linear", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    ):
        convert(checkpoints[variant][0], tmp_path / "out.gguf", name="a name")
        found = read_metadata(tmp_path / "out.gguf")
        wide = variant == "llama-wide-heads"
        expected = {
            "general.architecture": "llama",
            "general.type": "model",
            "general.name": "a name",
            "general.file_type": 1,
            "general.quantization_version": 2,
            "llama.context_length": 128,
            "llama.embedding_length": 64,
            "llama.block_count": 2,
            "llama.feed_forward_length": 160,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 4 if wide else 2,
            "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6, rel=1e-6),
            "llama.rope.dimension_count": 32 if wide else 16,
            "llama.rope.freq_base": 10000.0 if wide else 5000.0,
            "llama.vocab_size": VOCAB,
        } | {f"llama.{key}": value for key, value in extra.items()}
        assert {key: value for key, value in found.items() if not key.startswith("tokenizer.")} == expected


def test_record_of_an_adapted_checkpoint_is_written_and_overridden(checkpoints: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    shutil.copytree(checkpoints["qwen2"][0], folder)
    spec = DiffusionSpec(1, True, canvas_max=64, decoder="random-keep", steps=16, stop_tokens=(0,), pad_token=5)
    (folder / RECORD_FILE).write_text(spec.to_json())
    report = convert(folder, tmp_path / "out.gguf")
    found = read_metadata(tmp_path / "out.gguf")
    assert report.spec == spec == DiffusionSpec.from_gguf(found)
    assert found["qwen2.attention.causal"] is False
    assert found["localdiff.stop_token_ids"] == [0]
    report = convert(folder, tmp_path / "out.gguf", diffusion="mask=7,shift=0")
    assert report.spec == DiffusionSpec.from_gguf(read_metadata(tmp_path / "out.gguf"))
    assert report.spec is not None
    assert (report.spec.mask_token, report.spec.logit_shift) == (7, False)


def test_plain_checkpoint_gets_no_record_unless_told(checkpoints: Any, tmp_path: Path) -> None:
    folder = checkpoints["gpt2"][0]
    report = convert(folder, tmp_path / "out.gguf")
    assert report.spec is None
    assert any("without a diffusion record" in notice for notice in report.notices)
    assert DiffusionSpec.from_gguf(read_metadata(tmp_path / "out.gguf")) is None
    assert convert(folder, tmp_path / "out.gguf", diffusion="mask=1,shift=1").spec == DiffusionSpec(1, True)
    # the tokenizer of the checkpoint names its mask token
    assert convert(folder, tmp_path / "out.gguf", diffusion="shift=1").spec == DiffusionSpec(1, True)
    with pytest.raises(OptionError, match="mask_token is 10541, but the vocabulary has 320 tokens"):
        convert(folder, tmp_path / "other.gguf", diffusion="diffugpt-s,mask=10541")
    assert not (tmp_path / "other.gguf").exists()


def blocks_of(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(-1, 32)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_stored_types_and_their_errors(checkpoints: Any, tmp_path: Path, kind: str) -> None:
    import torch

    folder, model = checkpoints["llama"]
    report = convert(folder, tmp_path / "out.gguf", type=kind)
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    found = read_tensors(tmp_path / "out.gguf")
    for name, tensor in expected_tensors(model).items():
        head = name == "output.weight"  # q6_k, which these rows of 64 do not divide into
        wanted = "f32" if tensor.ndim == 1 else "q8_0" if head and kind.startswith("q4") else kind
        assert types[name] == wanted, name
        if wanted == "f32":
            np.testing.assert_array_equal(found[name], tensor)
        elif wanted == "f16":
            np.testing.assert_array_equal(found[name], tensor.astype(np.float16).astype(np.float32))
        elif wanted == "bf16":
            rounded = torch.from_numpy(tensor.copy()).to(torch.bfloat16).float().numpy()
            np.testing.assert_array_equal(found[name], rounded)
        else:  # no worse than rounding each value of a block to steps that reach its largest one
            values = blocks_of(tensor)
            largest = np.abs(values).max(1)
            quantum = {"q8_0": largest / 127, "q4_0": largest / 8, "q4_1": np.ptp(values, axis=1) / 15}[wanted]
            error = np.sqrt(np.square(blocks_of(found[name]) - values).mean(1))
            assert (error <= 0.5 * quantum + largest * 1e-3).all(), name
    assert sum(report.types.values()) == len(types)
    assert report.file_bytes == (tmp_path / "out.gguf").stat().st_size
    assert report.parameters == sum(p.numel() for p in model.parameters())


def test_rows_that_are_no_blocks_fall_back_to_f16(tmp_path: Path) -> None:
    tiny_checkpoint("llama", tmp_path / "hf", intermediate_size=172, num_hidden_layers=1)
    report = convert(tmp_path / "hf", tmp_path / "out.gguf", type="q4_0")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16
    assert types["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q4_0
    assert any("not divisible by 32" in n and "blk.0.ffn_down.weight" in n for n in report.notices)


def test_values_beyond_the_type_or_not_finite_are_refused(tmp_path: Path) -> None:
    import torch

    model = tiny_checkpoint("llama", tmp_path / "hf", num_hidden_layers=1)
    for value, message in ((1e5, "holds 100000, too large for type F16"), (float("nan"), "not finite")):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 4] = value
        model.save_pretrained(tmp_path / "hf")
        with pytest.raises(ModelFileError, match=message):
            convert(tmp_path / "hf", tmp_path / "out.gguf", type="f16")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["single", "shards", "torch"])
def test_source_types_and_layouts(tmp_path: Path, dtype: str, layout: str) -> None:
    import torch

    folder = tmp_path / "hf"
    model = tiny_checkpoint("llama", folder).to(getattr(torch, dtype))
    (folder / "model.safetensors").unlink()
    if layout == "torch":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="100KB" if layout == "shards" else "1GB")
    assert (folder / "model.safetensors.index.json").is_file() == (layout == "shards")
    convert(folder, tmp_path / "out.gguf", type="f32")
    found = read_tensors(tmp_path / "out.gguf")
    for name, tensor in expected_tensors(model).items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def rewrite(folder: Path, names: dict[str, str], **edits: np.ndarray | None) -> None:
    """Rename the tensors of a folder by longest prefix; `edits` add tensors, None removes one."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    out = {}
    for name, tensor in load_file(path).items():
        prefix = max((p for p in names if name.startswith(p)), key=len, default="")
        out[names.get(prefix, prefix) + name[len(prefix) :]] = tensor
    for name, edit in edits.items():
        if edit is None:
            del out[name]
        else:
            out[name] = edit
    path.unlink()  # the loaded arrays may map it
    save_file(out, path)


GPT2_WRAPPERS: dict[str, dict[str, str]] = {
    "diffugpt": {"transformer.wte.": "embed_tokens.", "transformer.": "denoise_model."},
    "diffugpt-head-only": {"transformer.wte.": "lm_head.", "transformer.": "denoise_model."},
    "bare": {"transformer.": ""},
    "ddp": {"transformer.": "module.transformer."},
    "trainer": {"transformer.wte.": "module.embed_tokens.", "transformer.": "module.denoise_model."},
}
LLAMA_WRAPPERS: dict[str, dict[str, str]] = {
    "diffullama": {"model.embed_tokens.": "embed_tokens.", "model.": "denoise_model."},
    "model-twice": {"model.": "model.model.", "lm_head.": "model.lm_head."},
    "ddp": {"model.": "module.model.", "lm_head.": "module.lm_head."},
}


@pytest.mark.parametrize(
    ("variant", "names"),
    [pytest.param("gpt2", names, id=f"gpt2-{id}") for id, names in GPT2_WRAPPERS.items()]
    + [pytest.param("llama", names, id=f"llama-{id}") for id, names in LLAMA_WRAPPERS.items()],
)
def test_wrapper_names_give_the_same_bytes(
    checkpoints: Any, tmp_path: Path, variant: str, names: dict[str, str]
) -> None:
    plain = checkpoints[variant][0]
    folder = tmp_path / variant  # the same folder name: it becomes general.name
    shutil.copytree(plain, folder)
    buffers = {}
    if variant == "gpt2":
        prefix = names["transformer."]
        buffers[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.bool_)
        buffers[f"{prefix}h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    rewrite(folder, names, **buffers)
    convert(plain, tmp_path / "plain.gguf")
    convert(folder, tmp_path / "wrapped.gguf")
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "wrapped.gguf").read_bytes()


def test_a_stored_copy_of_the_tied_head_is_dropped_and_another_head_kept(checkpoints: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(checkpoints["gpt2"][0], folder)
    embedding = checkpoints["gpt2"][1].state_dict()["transformer.wte.weight"].numpy()
    rewrite(folder, {}, **{"lm_head.weight": embedding.copy()})
    convert(folder, tmp_path / "out.gguf", type="f32")
    assert "output.weight" not in read_tensors(tmp_path / "out.gguf")
    rewrite(folder, {}, **{"lm_head.weight": embedding + 1})
    report = convert(folder, tmp_path / "out.gguf", type="f32")
    np.testing.assert_array_equal(read_tensors(tmp_path / "out.gguf")["output.weight"], embedding + 1)
    assert any("although the configuration ties them" in notice for notice in report.notices)


def test_missing_and_unused_tensors_are_all_listed(checkpoints: Any, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(checkpoints["llama"][0], folder)
    rewrite(
        folder,
        {"model.layers.1.mlp.up_proj.": "model.layers.1.mlp.rising."},
        **{
            "model.norm.weight": None,
            "extra.thing": np.zeros(3, np.float32),
            "lm_head.weight": np.zeros((3, 64), "f4"),
        },
    )
    with pytest.raises(ModelFileError) as caught:
        convert(folder, tmp_path / "out.gguf")
    lines = str(caught.value).split("\n  ")
    assert lines[0].endswith("its tensors are not those of architecture 'llama'")
    assert lines[1] == "expected and missing (2): norm.weight, layers.1.mlp.up_proj.weight"
    assert lines[2] in (
        "present and unused (2): extra.thing, model.layers.1.mlp.rising.weight",
        "present and unused (2): model.layers.1.mlp.rising.weight, extra.thing",
    )
    assert lines[3] == "of another shape (1): lm_head.weight: shape [3, 64], expected [320, 64]"
    assert len(lines) == 4
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("variant", "edit", "message"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"n_embd": 62}, "n_embd is 62, expected a multiple of the 4 heads"),
        ("gpt2", {"n_layer": 10**9}, "n_layer is 1000000000, expected a whole number from 1 to 1024"),
        ("gpt2", {"model_type": "mamba"}, "model_type is 'mamba', which is not supported; supported: gpt2,"),
        ("gpt2", {"model_type": None}, "model_type is absent"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling 'yarn' is not supported"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "RoPE scaling 'dynamic'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of the 4 heads"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number above 0"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names sliding_attention"),
        ("qwen2", {"rope_parameters": LLAMA3}, "RoPE scaling 'llama3' is not supported for this architecture"),
    ],
)
def test_configurations_that_cannot_be_honoured(
    checkpoints: Any, tmp_path: Path, variant: str, edit: dict[str, Any], message: str
) -> None:
    assert_refused(checkpoints[variant][0], tmp_path, edit, message)


def test_old_spelling_of_rope_settings(checkpoints: Any, tmp_path: Path) -> None:
    folder = tmp_path / "llama-linear"
    shutil.copytree(checkpoints["llama-linear"][0], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "old.gguf")
    convert(checkpoints["llama-linear"][0], tmp_path / "new.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["iq2_xxs", "q3"])
def test_other_types_are_refused_by_name(checkpoints: Any, tmp_path: Path, kind: str) -> None:
    with pytest.raises(OptionError, match=f"type '{kind}' cannot be written; choose one of f32, f16"):
        convert(checkpoints["gpt2"][0], tmp_path / "out.gguf", type=kind)
