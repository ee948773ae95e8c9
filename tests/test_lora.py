"""PEFT adapters merged by convert: against transformers with the low-rank product added in hooks, and against PEFT."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint

import localdiff
from localdiff.cli import main
from localdiff.convert import convert
from localdiff.errors import ModelFileError, OptionError

TOKENS = [5, 9, 100, 2, 44, 7]
RANK = 4
# The names of the adapted matrices in one layer, and the module that holds the layers.
MATRICES = {
    "llama": (
        "model.layers",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"],
    ),
    "gpt2": ("transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
}


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def converted_logits(base: Path, out: Path, lora: Path) -> np.ndarray:
    convert(base, out, type="f32", lora=lora)
    with localdiff.load(out) as model:
        return model.logits(TOKENS, attention="causal")


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def adapter(folder: Path, tensors: dict[str, torch.Tensor], *, binary: bool = False, **fields: Any) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "init_lora_weights": True, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    if binary:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def factors(model: Any, arch: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random A [r, in] and B [out, r] for matrices of every layer."""
    generator = torch.Generator().manual_seed(3)
    holder, names = MATRICES[arch]
    found = {}
    for layer in range(2):
        for name in names:
            module = f"{holder}.{layer}.{name}"
            weight = model.get_submodule(module).weight
            out, width = weight.shape[::-1] if arch == "gpt2" else weight.shape
            found[module] = (
                torch.randn(RANK, width, generator=generator) * 0.2,
                torch.randn(out, RANK, generator=generator) * 0.2,
            )
    return found


def hook(model: Any, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], scaling: Callable[[str], float]) -> None:
    for module, (a, b) in pairs.items():

        def add(_: Any, inputs: Any, output: torch.Tensor, a: Any = a, b: Any = b, s: float = scaling(module)) -> Any:
            return output + s * (inputs[0] @ a.T @ b.T)

        model.get_submodule(module).register_forward_hook(add)


def named(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], prefix: str = "base_model.model.") -> dict[str, Any]:
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors |= {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}
    return tensors


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({}, lambda module: 6 / RANK),
        ({"use_rslora": True}, lambda module: 6 / RANK**0.5),
        ({"lora_alpha": 2.5, "alpha_pattern": {"q_proj": 9, "layers.1.mlp.up_proj": 3}},
         lambda module: (9 if "q_proj" in module else 3 if "1.mlp.up" in module else 2.5) / RANK),
        ({"r": 7, "rank_pattern": {"self_attn.q_proj": RANK, "k_proj": RANK, "o_proj": RANK, "up_proj": RANK,
                                   "down_proj": RANK}}, lambda module: 6 / RANK),
    ],
    ids=["plain", "rslora", "alpha_pattern", "rank_pattern"],
)  # fmt: skip
@pytest.mark.parametrize("binary", [False, True])
def test_llama(tmp_path: Path, fields: dict[str, Any], scaling: Callable[[str], float], binary: bool) -> None:
    model = tiny_checkpoint("llama", tmp_path / "base")
    pairs = factors(model, "llama")
    lora = adapter(tmp_path / "lora", named(pairs), binary=binary, **fields)
    before = logits_of(model)
    hook(model, pairs, scaling)
    expected = logits_of(model)
    assert np.abs(expected - before).max() > 0.1 * np.abs(before).max()
    assert_close(converted_logits(tmp_path / "base", tmp_path / "out.gguf", lora), expected)


def test_gpt2_stores_its_matrices_the_other_way_round(tmp_path: Path) -> None:
    model = tiny_checkpoint("gpt2", tmp_path / "base")
    pairs = factors(model, "gpt2")
    lora = adapter(tmp_path / "lora", named(pairs), fan_in_fan_out=True)
    hook(model, pairs, lambda module: 6 / RANK)
    assert_close(converted_logits(tmp_path / "base", tmp_path / "out.gguf", lora), logits_of(model))


def test_layout_of_diffullama_gsm(tmp_path: Path) -> None:
    """Names of the training wrapper, and a whole token embedding beside the factors."""
    model = tiny_checkpoint("llama", tmp_path / "base")
    pairs = factors(model, "llama")
    embedding = torch.randn_like(model.model.embed_tokens.weight) * 0.3
    tensors = named({module.removeprefix("model."): pair for module, pair in pairs.items()},
                    "base_model.model.denoise_model.")  # fmt: skip
    for name in ("embed_tokens.weight", "modules_to_save.embed_tokens.weight"):
        folder = tmp_path / name.split(".")[0]
        name = name.replace("modules_to_save.embed_tokens", "embed_tokens.modules_to_save")
        adapter(folder, tensors | {f"base_model.model.{name}": embedding}, modules_to_save=["embed_tokens"])
    hook(model, pairs, lambda module: 6 / RANK)
    model.model.embed_tokens.weight.data.copy_(embedding)
    for folder in ("embed_tokens", "modules_to_save"):
        found = converted_logits(tmp_path / "base", tmp_path / "out.gguf", tmp_path / folder)
        assert_close(found, logits_of(model))


@pytest.mark.parametrize("tying", [False, True])
def test_a_head_tied_to_the_embedding_keeps_the_original(tmp_path: Path, tying: bool) -> None:
    model = tiny_checkpoint("llama", tmp_path / "base", tie_word_embeddings=True)
    pairs = factors(model, "llama")
    embedding = torch.randn_like(model.model.embed_tokens.weight) * 0.3
    tensors = named(pairs) | {"base_model.model.model.embed_tokens.weight": embedding}
    lora = adapter(tmp_path / "lora", tensors, ensure_weight_tying=tying)
    hook(model, pairs, lambda module: 6 / RANK)
    original = model.lm_head.weight.detach().clone()
    model.lm_head.weight = torch.nn.Parameter(embedding.clone() if tying else original)
    model.model.embed_tokens.weight = torch.nn.Parameter(embedding.clone())
    assert_close(converted_logits(tmp_path / "base", tmp_path / "out.gguf", lora), logits_of(model))


def test_an_adapted_embedding(tmp_path: Path) -> None:
    model = tiny_checkpoint("llama", tmp_path / "base")
    vocab, dim = model.model.embed_tokens.weight.shape
    a, b = torch.randn(RANK, vocab) * 0.2, torch.randn(dim, RANK) * 0.2
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    lora = adapter(tmp_path / "lora", {f"{name}A": a, f"{name}B": b})
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, output: output + 1.5 * (a.T[inputs[0]] @ b.T))
    assert_close(converted_logits(tmp_path / "base", tmp_path / "out.gguf", lora), logits_of(model))


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}),
        ("llama", {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"o_proj": 3}}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"q_proj": 2}}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
        ("qwen2", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    ],
)
def test_adapters_that_peft_writes(tmp_path: Path, arch: str, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed; the layout is tested by hand-made adapters")
    model = tiny_checkpoint(arch, tmp_path / "base", tie_word_embeddings=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(tmp_path / "lora")
    assert_close(converted_logits(tmp_path / "base", tmp_path / "out.gguf", tmp_path / "lora"), logits_of(adapted))


# Refusals


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "base"
    tiny_checkpoint("llama", folder, num_hidden_layers=1)
    return folder


GOOD = {
    "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(RANK, 64),
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(160, RANK),
}
UP = "base_model.model.model.layers.0.mlp.up_proj.lora_"


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        ({}, {"peft_type": "LOHA"}, "peft_type is 'LOHA', which is not supported; supported: LORA"),
        ({}, {"use_dora": True}, "use_dora is True, which is not supported by the merge"),
        ({}, {"lora_bias": True}, "lora_bias is True"),
        ({}, {"layer_replication": [[0, 1]]}, "layer_replication is"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "whose base differs from the original"),
        ({}, {"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern is .*, expected an object of plain module names"),
        ({}, {"r": 5}, "has rank 4, but adapter_config.json says 5"),
        ({}, {"r": None}, "r is None, expected a number above 0"),
        ({}, {"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
        ({}, {"fan_in_fan_out": True}, "adapts a matrix of shape \\[64, 160\\], but the base has \\[160, 64\\]"),
        ({f"{UP}A.weight": torch.ones(RANK, 65)}, {}, "but the base has \\[160, 64\\]; is it the adapter of another"),
        ({f"{UP}A.weight": torch.ones(3, 64)}, {}, "not a product"),
        ({f"{UP}A.weight": torch.ones(RANK, 64, 1)}, {}, "not a product"),
        ({f"{UP}B.weight": None}, {}, "has lora_A, expected lora_A and lora_B"),
        ({f"{UP}B.bias": torch.ones(160)}, {}, "lora_B.bias, which is not supported"),
        ({f"{UP}magnitude_vector": torch.ones(160)}, {}, "lora_magnitude_vector, which is not supported"),
        ({f"{UP}A.default.weight": torch.ones(RANK, 64)}, {}, "are the same tensor"),
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(RANK, 64)}, {},
         "layers.9.mlp.up_proj is for layers.9.mlp.up_proj.weight, which the base lacks"),
        ({"base_model.model.score.weight": torch.ones(2, 64)}, {}, "score.weight is for score.weight, which the base"),
        (dict.fromkeys(GOOD) | {"base_model.model.model.norm.weight": torch.ones(64)}, {}, "holds no lora_A and"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_merged(
    base: Path, tmp_path: Path, change: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    tensors = {name: tensor for name, tensor in (GOOD | change).items() if tensor is not None}
    lora = adapter(tmp_path / "lora", tensors, **fields)
    with pytest.raises(ModelFileError, match=message):
        convert(base, tmp_path / "out.gguf", lora=lora)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_folders_that_are_no_adapters(base: Path, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", GOOD)
    with pytest.raises(ModelFileError, match="has no adapter_config.json, expected the folder of a PEFT adapter"):
        convert(base, tmp_path / "out.gguf", lora=base)
    with pytest.raises(ModelFileError, match="holds a LoRA adapter, not a model; convert its base with --lora"):
        convert(lora, tmp_path / "out.gguf")
    convert(base, tmp_path / "plain.gguf")
    with pytest.raises(OptionError, match="so --lora cannot be honoured"):
        convert(tmp_path / "plain.gguf", tmp_path / "out.gguf", lora=lora, diffusion="mask=1,shift=1")
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="has no adapter_model.safetensors or adapter_model.bin"):
        convert(base, tmp_path / "out.gguf", lora=lora)


def test_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = adapter(tmp_path / "lora", GOOD)
    out = tmp_path / "out.gguf"
    assert main(["convert", str(base), "-o", str(out), "--type", "f32", "--lora", str(lora)]) == 0
    assert f"note: merged 1 LoRA matrices and 0 whole tensors of {lora}" in capsys.readouterr().err
    weight = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    np.testing.assert_allclose(localdiff.engine.File.open(out).decode("blk.0.ffn_up.weight"), weight + 6, rtol=1e-6)
    # what is read is never overwritten
    shutil.copy(out, tmp_path / "kept")
    with pytest.raises(OptionError, match="is read by this conversion"):
        convert(base, lora / "adapter_model.safetensors", lora=lora)
