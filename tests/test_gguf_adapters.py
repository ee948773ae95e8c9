"""LoRA adapters in GGUF files, added while the model runs: against transformers with the product in hooks, against the
merged conversion, and refusals. The files are laid out as llama.cpp's converter writes them.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_values import finish
from test_lora import TOKENS, adapter, assert_close, factors, hook, logits_of, named
from tiny import tiny_checkpoint

import localdiff
from localdiff.cli import main
from localdiff.convert import convert
from localdiff.convert.rope import interleaved_rows
from localdiff.engine import EngineModel, File
from localdiff.errors import ModelFileError, OptionError

ALPHA = 6
RANK = 4
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.o_proj": "attn_output",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
HEADS = {"attn_q": 4, "attn_k": 2}


def write_adapter(path: Path, tensors: dict[str, np.ndarray], arch: str = "llama", **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(ALPHA)} | metadata
    for key, value in fields.items():
        if value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    finish(writer)
    return path


def as_gguf(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], arch: str, kind: Any = np.float32) -> dict[str, Any]:
    tensors = {}
    for module, (a, b) in pairs.items():
        layer, name = module.split(".", 3)[2:]
        target = GGUF_NAMES[name]
        rows = b.numpy()
        if arch == "llama" and target in HEADS:  # its files keep the rows of Q and K in interleaved order
            rows = interleaved_rows(rows, HEADS[target])
        for side, data in (("a", a.numpy()), ("b", rows)):
            tensors[f"blk.{layer}.{target}.weight.lora_{side}"] = np.ascontiguousarray(data, dtype=kind)
    return tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder with hf/ and base.gguf, the transformers model)"""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_checkpoint("llama", folder / "hf")
    convert(folder / "hf", folder / "base.gguf", type="f32", diffusion="mask=1,shift=1")
    return folder, model


def logits(path: Path, *lora: str | Path, **options: Any) -> np.ndarray:
    with localdiff.load(path, math="exact", lora=lora, **options) as model:
        return model.logits(TOKENS, attention="causal")


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_against_transformers(tmp_path: Path, arch: str) -> None:
    model = tiny_checkpoint(arch, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "base.gguf", type="f32")
    pairs = factors(model, arch)
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(pairs, arch), arch)
    before = logits_of(model)
    assert_close(logits(tmp_path / "base.gguf"), before)
    hook(model, pairs, lambda module: 0.5 * ALPHA / RANK)
    expected = logits_of(model)
    assert np.abs(expected - before).max() > 0.1 * np.abs(before).max()
    assert_close(logits(tmp_path / "base.gguf", f"{lora}=0.5"), expected)


def test_equals_the_merged_conversion(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    pairs = factors(model, "llama")
    convert(folder / "hf", tmp_path / "merged.gguf", type="f32", lora=adapter(tmp_path / "peft", named(pairs)))
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(pairs, "llama"))
    assert_close(logits(folder / "base.gguf", lora), logits(tmp_path / "merged.gguf"))


def test_adapters_add_up(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    tensors = as_gguf(factors(model, "llama"), "llama")
    one = write_adapter(tmp_path / "one.gguf", tensors)
    half = {name: data for name, data in tensors.items() if "blk.0" in name}
    other = write_adapter(tmp_path / "other.gguf", {n: d for n, d in tensors.items() if n not in half})
    half_file = write_adapter(tmp_path / "half.gguf", half)
    whole = logits(folder / "base.gguf", one)
    assert_close(logits(folder / "base.gguf", half_file, other), whole)
    assert_close(logits(folder / "base.gguf", f"{one}=0.25", f"{one}=0.75"), whole)
    scaled = write_adapter(tmp_path / "scaled.gguf", tensors, **{"adapter.lora.alpha": None})
    assert_close(logits(folder / "base.gguf", f"{scaled}={ALPHA / RANK}"), whole)
    # a scale of nothing leaves every bit as it is
    np.testing.assert_array_equal(logits(folder / "base.gguf", f"{one}=0"), logits(folder / "base.gguf"))


def test_stored_types_and_quantised_bases(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    pairs = factors(model, "llama")
    exact = {module: tuple(part.half().float() for part in pair) for module, pair in pairs.items()}
    f32 = write_adapter(tmp_path / "f32.gguf", as_gguf(exact, "llama"))
    f16 = write_adapter(tmp_path / "f16.gguf", as_gguf(exact, "llama", np.float16))
    convert(folder / "hf", tmp_path / "q8.gguf", type="q8_0")
    for path in (folder / "base.gguf", tmp_path / "q8.gguf"):
        np.testing.assert_array_equal(logits(path, f32), logits(path, f16))
    rounded, plain = logits(tmp_path / "q8.gguf", f32), logits(folder / "base.gguf", f32)
    # 0.107 measured: 8 bits, random weights, two layers
    assert np.abs(rounded - plain).max() < 0.15 * np.abs(plain).max()


def test_results_do_not_depend_on_threads(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(factors(model, "llama"), "llama"))
    np.testing.assert_array_equal(
        logits(folder / "base.gguf", lora, threads=1), logits(folder / "base.gguf", lora, threads=2)
    )


def test_memory_is_planned(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(factors(model, "llama"), "llama"))
    with File.open(folder / "base.gguf") as file, File.open(lora) as factor_file:
        adapted = [EngineModel(file, plan=plan, adapters=[(factor_file, 1.0)]) for plan in (True, False)]
        with EngineModel(file) as plain:
            assert adapted[0].memory == adapted[1].memory
            assert adapted[1].info.weight_bytes > plain.info.weight_bytes
            assert adapted[1].plan() == adapted[0].plan() > plain.plan()


UP = "blk.0.ffn_up.weight.lora_"
GOOD = {f"{UP}a": np.ones((RANK, 64), np.float32), f"{UP}b": np.ones((160, RANK), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, {"general.type": "model"}, "the adapter has general.type 'model', expected 'adapter'"),
        (GOOD, {"general.type": None}, "has general.type 'absent', expected 'adapter'"),
        (GOOD, {"adapter.type": "loha"}, "has adapter.type 'loha', expected 'lora'"),
        (GOOD, {"arch": "qwen2"}, "has general.architecture 'qwen2', expected 'llama'"),
        (GOOD, {"adapter.alora.invocation_tokens": "x"}, "is an activated one"),
        (GOOD, {"adapter.lora.alpha": "x"}, "adapter.lora.alpha' is of type string, expected f32"),
        ({f"{UP}a": GOOD[f"{UP}a"]}, {}, "holds only one of the two factors: blk.0.ffn_up.weight.lora_a"),
        ({f"{UP}b": GOOD[f"{UP}b"]}, {}, "holds only one of the two factors"),
        (GOOD | {"blk.0.ffn_norm.weight": np.ones(64, np.float32)}, {}, "which is neither lora_a nor lora_b"),
        (GOOD | {f"{UP}a": np.ones((RANK, 65), np.float32)}, {}, "does not fit blk.0.ffn_up.weight: it is \\[160, 64"),
        (GOOD | {f"{UP}b": np.ones((161, RANK), np.float32)}, {}, "is it the adapter of another model"),
        (GOOD | {f"{UP}b": np.ones((160, 3), np.float32)}, {}, "does not fit"),
        ({f"{UP}a": np.ones((65, 64), np.float32), f"{UP}b": np.ones((160, 65), np.float32)}, {},
         "gives blk.0.ffn_up.weight rank 65, more than its 64 columns"),
        ({name.replace("blk.0", "blk.9"): data for name, data in GOOD.items()}, {},
         "changes blk.9.ffn_up.weight, which this model lacks"),
        ({"output.weight.lora_a": np.ones((RANK, 64), np.float32), "output.weight.lora_b": np.ones((320, RANK),
          np.float32)}, {}, "changes output.weight, .* merge the adapter when the model is converted"),
        (GOOD | {f"{UP}a": np.ones((RANK, 64), np.int32)}, {}, "stores blk.0.ffn_up.weight.lora_a as I32"),
        (GOOD | {f"{UP}a": np.full((RANK, 64), np.nan, np.float32)}, {}, "blk.0.ffn_up.weight.lora_a: .* not finite"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(
    base: tuple[Path, Any], tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any], message: str
) -> None:
    path = write_adapter(tmp_path / "lora.gguf", tensors, **metadata)
    with pytest.raises(ModelFileError, match=message):
        localdiff.load(base[0] / "base.gguf", lora=path)


def test_names_and_scales(base: tuple[Path, Any], tmp_path: Path) -> None:
    model = base[0] / "base.gguf"
    path = write_adapter(tmp_path / "name=with=2.gguf", GOOD)
    np.testing.assert_array_equal(logits(model, path), logits(model, f"{path}=1"))
    with pytest.raises(OptionError, match="has scale 'x', expected a number such as .*=0.5"):
        localdiff.load(model, lora=f"{path}=x")
    with pytest.raises((ModelFileError, OptionError), match="scale of an adapter is not finite"):
        localdiff.load(model, lora=f"{path}=nan")
    with pytest.raises(ModelFileError, match="cannot be opened"):
        localdiff.load(model, lora=tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="general.type is 'adapter', expected 'model'; give it beside the model"):
        localdiff.load(path)


def test_plan_info_and_bench_count_adapters(
    base: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(base[0] / "base.gguf")
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(factors(base[1], "llama"), "llama"))
    absent = {name.replace("blk.0", "blk.9"): data for name, data in GOOD.items()}
    wrong = write_adapter(tmp_path / "wrong.gguf", absent)

    def said(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    with File.open(model) as file, File.open(lora) as beside, EngineModel(file, adapters=[(beside, 1.0)]) as engine:
        expected = engine.memory.weights
    alone, planned = said("plan", model), said("plan", model, "--lora", str(lora))
    assert planned["weights"] == expected >= alone["weights"]  # in whole pages
    assert planned["session"] > alone["session"]
    shown = said("info", model, "--lora", f"{lora}=0.5")
    assert shown["memory"]["weights"] == expected
    (adapter,) = shown["adapters"]
    assert (adapter["scale"], adapter["ranks"]) == (0.5, [RANK])
    assert adapter["matrices"] == len(gguf.GGUFReader(lora).tensors) // 2
    assert main(["info", model, "--lora", f"{lora}=0.5"]) == 0
    assert f"times 0.5: rank {RANK} on {adapter['matrices']} matrices" in capsys.readouterr().out
    assert "which this model lacks" in said("info", model, "--lora", str(wrong))["memory"]["error"]

    measured = said("bench", model, "--lora", str(lora), "--rows", "4", "--repetitions", "1", "--threads", "1")
    assert measured["forwards"][0]["ms"] > 0
    for command in ("plan", "bench"):
        assert main([command, model, "--lora", str(wrong)]) == 1
        assert "which this model lacks" in capsys.readouterr().err


def test_command_line(base: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = write_adapter(tmp_path / "lora.gguf", as_gguf(factors(base[1], "llama"), "llama"))
    answers = []
    for extra in ([], ["--lora", str(lora)], ["--lora", f"{lora}=0"]):
        arguments = ["run", str(base[0] / "base.gguf"), "-p", "once", "-n", "8", "--steps", "4", "--seed", "1"]
        assert main([*arguments, "--no-live", "--no-chat", *extra]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[2] != answers[1]
