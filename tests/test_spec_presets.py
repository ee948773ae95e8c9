"""Presets: every row, how files of other people are recognised, and a DiffuLLaMA-like file on the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from text_metadata import read
from tiny_gguf import write_tiny

from localdiff.decode.table import DECODERS, settings_for
from localdiff.errors import ModelFileError, OptionError
from localdiff.options import GenerateOptions
from localdiff.presets import PRESETS, TABLE, recognise, record_in_force, resolve
from localdiff.spec import DiffusionSpec

TOKENS = "tokenizer.ggml.tokens"
FULL = "full"

# models-and-algorithms, sections 1.4, 5.1, 5.3 and 6: mask, shift, attention, block, steps, temperature, threshold
PUBLISHED: dict[str, tuple[int, bool, str, int, int | None, float | None, float | None]] = {
    "diffugpt-s": (10541, True, FULL, 0, 64, 0.95, None),
    "diffugpt-m": (50257, True, FULL, 0, 64, 0.95, None),
    "diffullama": (811, True, FULL, 0, 64, 0.9, None),
    "llada": (126336, False, FULL, 0, None, None, None),
    "illada": (5, False, FULL, 0, None, None, None),
    "llada-moe": (156895, False, FULL, 0, None, None, None),
    "llada2": (156895, False, "block_causal", 32, None, None, 0.95),
    "llada2.1": (156895, False, "block_causal", 32, None, None, 0.95),
    "dream": (151666, True, FULL, 0, 512, 0.2, None),
    "dreamon": (151666, True, FULL, 0, None, 0.2, None),
    "wedlm": (151665, False, "causal", 0, None, None, None),
    "rnd1": (151669, True, FULL, 0, 256, 0.01, None),
    "sdar": (151669, False, "block_causal", 4, None, None, 0.9),
    "mineru": (151669, False, "block_causal", 32, None, 1.0, 0.95),
    "fdv2": (151665, True, "block_causal", 32, None, None, 0.9),
    "open-dcoder": (151665, True, FULL, 0, None, 0.2, None),
    "a2d": (151669, False, FULL, 0, None, None, None),
    "a2d-bd3lm": (151669, False, "block_causal", 32, None, None, None),
    "stable-diffcoder": (5, False, "block_causal", 4, None, None, 0.9),
    "nemotron-labs": (100, False, "block_causal", 32, None, None, 0.9),
    "diffusion-gemma": (4, False, "prefix_causal", 0, 48, 0.8, None),
    "bert": (103, False, FULL, 0, None, 0.0, None),
    "roberta": (50264, False, FULL, 0, None, 0.0, None),
    "xlmr": (250001, False, FULL, 0, 50, 0.0, None),
    "modernbert": (50284, False, FULL, 0, None, 0.0, None),
    "modernbert-chat": (50284, False, FULL, 32, None, 0.0, None),
}


def test_every_row_is_what_was_published() -> None:
    found = {
        name: (
            spec.mask_token, spec.logit_shift, spec.attention, spec.block_length, spec.steps, spec.temperature,
            spec.threshold,
        )
        for name, spec in PRESETS.items()
    }  # fmt: skip
    assert found == PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_can_be_decoded_and_its_settings_count(name: str) -> None:
    spec = PRESETS[name]
    assert spec.decoder in DECODERS
    settings = settings_for(GenerateOptions(), spec, masked=1000)
    for setting in ("steps", "temperature", "top_p", "threshold"):
        stated = getattr(spec, setting)
        assert stated is None or getattr(settings, setting) == stated, setting
    assert settings.aligned == (spec.attention == "block_causal")
    if spec.block_length:
        assert settings.block_length == spec.block_length
    assert DiffusionSpec.from_gguf({"general.architecture": "x"} | spec.to_gguf("x")) == spec


def file(name: str, arch: str = "llama", **more: Any) -> dict[str, Any]:
    return {"general.architecture": arch, "general.name": name, f"{arch}.context_length": 1 << 20, **more}


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.mask_texts])
def test_the_mask_token_is_found_in_the_vocabulary(name: str) -> None:
    row = TABLE[name]
    for text in row.mask_texts:
        found = record_in_force(file("x", **{TOKENS: ["a", "b", text]}), name)
        assert found.spec is not None
        assert (found.spec.mask_token, found.spec.stop_tokens, found.spec.pad_token) == (2, (), None)
        published = [f"[PAD{i}]" for i in range(row.spec.mask_token)] + [text]
        assert resolve(file("x", **{TOKENS: published}), name) == row.spec
    found = record_in_force(file("x", **{TOKENS: [f"[PAD{i}]" for i in range(row.spec.mask_token + 1)]}), name)
    assert found.spec == row.spec
    assert any(f"{name} has {row.mask_texts[0]!r} there" in notice for notice in found.notices)


def test_a_mask_token_that_is_stated_is_taken() -> None:
    metadata = file("x", **{TOKENS: ["a", "<|mask|>"], "tokenizer.ggml.mask_token_id": 0})
    assert resolve(metadata, "dream").mask_token == 0  # type: ignore[union-attr]
    assert resolve(metadata, "dream,mask=1").mask_token == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("title", "preset"),
    [
        ("diffusionfamily_diffullama", "diffullama"),
        ("Diffullama", "diffullama"),
        ("Diffugpt S", "diffugpt-s"),
        ("diffugpt-s", "diffugpt-s"),
        ("diffugpt-m", "diffugpt-m"),
        ("LLaDA 8B Instruct", "llada"),
        ("iLLaDA-8B-Base", "illada"),
        ("LLaDA-MoE-7B-A1B-Instruct", "llada-moe"),
        ("LLaDA2.1-mini", "llada2.1"),
        ("LLaDA2.0-flash", "llada2"),
        ("DreamOn-v0-7B", "dreamon"),
        ("WeDLM-8B-Instruct", "wedlm"),
        ("Dream-v0-Instruct-7B", "dream"),
        ("DiffuCoder-7B-cpGRPO", "dream"),
        ("RND1-Base-0910", "rnd1"),
        ("SDAR-8B-Chat", "sdar"),
        ("TraDo-4B-Instruct", "sdar"),
        ("Fast_dLLM_v2_7B", "fdv2"),
        ("Stable-DiffCoder-8B-Instruct", "stable-diffcoder"),
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", "a2d"),
        ("Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d-bd3lm"),
        ("ModernBERT-large-chat-v0.1", "modernbert-chat"),
        ("MinerU-Diffusion-V1-0320-2.5B", "mineru"),
        ("Nemotron-Labs-Diffusion-8B", "nemotron-labs"),
        ("Open-dCoder-0.5B", "open-dcoder"),
        ("Llama-3.2-1B", None),
        ("Undreamed-v0-Contrado-Villada", None),
        ("Qwen3-0.6B", None),
    ],
)
def test_files_are_recognised_by_name_with_a_notice(title: str, preset: str | None) -> None:
    for metadata in (file(title), file("model", **{"general.basename": title})):
        assert recognise(metadata) == preset
        found = record_in_force(metadata, None)
        if preset is None:
            assert found.spec is None
            assert found.notices == ()
        else:
            assert found.spec == PRESETS[preset]
            assert len(found.notices) == 1
            assert f"is taken for {preset} by its name (mask=" in found.notices[0]


def test_what_the_user_says_wins_over_the_name_and_the_notice_stays() -> None:
    found = record_in_force(file("diffullama"), "shift=0,steps=8")
    assert found.spec is not None
    assert (found.spec.mask_token, found.spec.logit_shift, found.spec.steps) == (811, False, 8)
    assert "(mask=811,shift=0,attn=full)" in found.notices[0]
    assert record_in_force(file("diffullama"), "diffullama").notices == ()
    assert record_in_force(file("diffullama"), "dream").notices == (
        "diffullama looks like diffullama; a model that was not trained for what --diffusion says gives nonsense",
    )


def test_an_ordinary_model_runs_only_when_told_to_and_with_a_warning() -> None:
    assert record_in_force(file("Llama-3.2-1B"), None).spec is None
    found = record_in_force(file("Llama-3.2-1B"), "mask=5,shift=1")
    assert found.spec == DiffusionSpec(5, True)
    assert found.notices == (
        "Llama-3.2-1B has no diffusion record; a model that was not trained for what --diffusion says gives nonsense",
    )


@pytest.mark.parametrize("arch", ["dream", "rnd1", "llada", "llada-moe", "llada2"])
def test_architectures_that_are_always_diffusion_models(arch: str) -> None:
    found = record_in_force(file("x", arch), None)
    assert (found.spec, found.notices) == (PRESETS[arch], ())
    stated = {"tokenizer.ggml.mask_token_id": 7, "diffusion.shift_logits": not PRESETS[arch].logit_shift}
    spec = resolve(file("x", arch, **stated), None)
    assert spec is not None
    assert (spec.mask_token, spec.logit_shift, spec.stop_tokens) == (7, not PRESETS[arch].logit_shift, ())
    assert spec.decoder == PRESETS[arch].decoder
    again = resolve(file("x", arch, **stated), f"shift={int(PRESETS[arch].logit_shift)}")  # a wrong flag in the file
    assert again is not None
    assert again.logit_shift == PRESETS[arch].logit_shift


def test_a_record_of_ours_is_complete() -> None:
    written = DiffusionSpec(5, True).to_gguf("dream")
    assert record_in_force(file("dream-v0", "dream", **written), None).spec == DiffusionSpec(5, True)


def test_the_canvas_of_a_preset_fits_the_context() -> None:
    spec = resolve(file("diffullama", **{"llama.context_length": 512}), None)
    assert spec is not None
    assert spec.canvas_max == 512


def test_damaged_values_of_a_recognised_file() -> None:
    with pytest.raises(ModelFileError, match="mask_token is 'x'"):
        resolve(file("diffullama", **{"tokenizer.ggml.mask_token_id": "x"}), None)
    with pytest.raises(OptionError, match=r"'diffu' is not a preset; known: diffugpt-s, diffugpt-m, diffullama"):
        resolve(file("diffullama"), "diffu")


# the command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "localdiff", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def published(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out like the published DiffuLLaMA ones: arch llama, SPM tokenizer, nothing about diffusion."""
    source = read(data_dir / "tokenizers" / "ggml-vocab-llama-spm.gguf")
    text = {key: value for key, value in source.items() if key.startswith("tokenizer.")}
    path = tmp_path_factory.mktemp("published") / "model.Q8_0.gguf"
    more = {"context": 4096, "dim": 64, "layers": 2, "kind": "Q8_0", "name": "Llama Body"}
    return write_tiny(path, record=False, text=text, **more)


def test_a_published_diffullama_file_runs_with_its_preset(published: Path) -> None:
    command = ["run", str(published), "-p", "Once upon a time", "-n", "12", "--seed", "1", "--threads", "1", "--json"]
    done = run(*command, "--diffusion", "diffullama")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Llama Body has no diffusion record" in done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["tokens"]) <= 12
    assert 811 not in answer["tokens"]
    assert answer["decoder"]["decoder"] == "random-keep"
    assert (answer["decoder"]["temperature"], answer["decoder"]["top_p"]) == (0.9, 0.9)
    assert answer["nfe"] == 12  # of 64 steps no more than there are tokens
    other = run(*command, "--diffusion", "diffullama,temperature=0.5,decoder=topk,steps=4")
    settings = json.loads(other.stdout)["decoder"]
    assert (settings["decoder"], settings["steps"], settings["temperature"]) == ("topk", 4, 0.5)


def test_without_a_preset_it_is_refused_and_says_what_to_do(published: Path) -> None:
    done = run("run", str(published), "-p", "Once", "-n", "4")
    assert done.returncode in (1, 2)
    assert "has no diffusion record" in done.stderr
    assert "--diffusion diffullama" in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_recognised_by_name_says_so_in_one_line(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", record=False, name="diffullama-tiny")
    done = run("run", str(path), "-p", "hello", "-n", "3", "--diffusion", "mask=262", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "localdiff: diffullama-tiny is taken for diffullama by its name (mask=262,shift=1,attn=full); "
        "--diffusion changes that\n"
    )
