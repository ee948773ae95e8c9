"""`localdiff info`: family, tokenizer, mix of weight types, record in force, sampler and memory; for any GGUF file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_values import finish
from tiny_gguf import write_tiny


def info(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localdiff", "info", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def facts(*arguments: object) -> dict[str, Any]:
    done = info(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(*arguments: object) -> dict[str, str]:
    shown = [line.split(None, 1) for line in info(*arguments).stdout.splitlines()]
    return {first: rest[0] if rest else "" for first, *rest in shown}


def test_a_file_of_ours(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    found = facts(path)
    assert found["family"] is None
    assert found["sources"] == ["the file"]
    assert (found["diffusion"]["mask_token"], found["mask_text"]) == (262, "[MASK]")
    assert found["sampler"] == {
        "decoder": "random-keep", "temperature": 0.95, "top_k": 0, "top_p": 0.9, "cache": "exact", "steps": 64
    }  # fmt: skip
    assert found["tokenizer"] == {
        "kind": "gpt2", "pre": "gpt-2", "tokens": 263, "huggingface": False, "chat_template": False
    }  # fmt: skip
    memory = found["memory"]
    assert memory["length"] == 64
    assert memory["total"] >= memory["weights"] + memory["session"] > 0
    shown = lines(path)
    assert shown["family"] == "a diffusion model by its own record"
    assert shown["tokenizer"] == "byte-level BPE, cut as gpt-2, 263 tokens"
    assert shown["mask_token"] == '262 "[MASK]"'
    assert shown["logit_shift"] == "false"
    assert shown["attention"] == '"full"'
    assert (shown["block_length"], shown["canvas_max"]) == ("none", "the context length")
    assert shown["sampler"] == "random-keep, temperature 0.95, top_k 0, top_p 0.9, cache exact, steps 64"
    assert "MiB at 64 positions: weights" in shown["memory"]


def test_a_recognised_file_and_what_the_user_says(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", record=False, name="SDAR-4B-Chat", context=32)
    found = facts(path, "--diffusion", "mask=262")
    assert (found["family"], found["sources"]) == ("sdar", ["preset sdar", "--diffusion"])
    assert (found["diffusion"]["attention"], found["diffusion"]["block_length"]) == ("block_causal", 4)
    assert (found["sampler"]["decoder"], found["sampler"]["threshold"]) == ("sdar", 0.9)
    assert "taken for sdar by its name" in found["notices"][0]
    shown = lines(path, "--diffusion", "mask=262,decoder=llada")
    assert shown["diffusion"] == "from preset sdar, --diffusion; what stands later wins"
    assert "one step for each token" in shown["sampler"]
    assert shown["notice"].startswith("SDAR-4B-Chat is taken for sdar")


def test_a_plain_model_and_a_wrong_override(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", record=False)
    assert facts(path)["diffusion"] is None
    assert lines(path)["family"] == "no known diffusion model"
    assert lines(path, "--diffusion", "mask=262,shift=0")["family"] == "no known diffusion model"
    done = info(path, "--diffusion", "nonsense")
    assert done.returncode in (1, 2)
    assert "'nonsense' is not a preset" in done.stderr


def test_the_mix_of_weight_types(tmp_path: Path) -> None:
    path = tmp_path / "mix.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    q4, q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    for name, rows, kind in (("a", 6, q4), ("b", 1, q8), ("c", 2, q4)):
        writer.add_tensor(name, gguf.quants.quantize(np.ones((rows, 32), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("d", np.ones(32, np.float32))
    finish(writer)
    found = facts(path)
    assert list(found["types"]) == ["Q4_0", "Q8_0", "F32"]
    assert found["types"]["Q4_0"] == {"tensors": 2, "bytes": 144, "weights": 256, "share": 0.8}
    assert sum(each["share"] for each in found["types"].values()) == pytest.approx(1)
    shown = lines(path)
    assert shown["weights"] == "320 in 4 tensors, 7.65 bits each"  # 144 + 34 + 128 bytes
    assert shown["Q4_0"] == "80.0 %  2 tensors, 144 bytes"
    assert shown["tokenizer"] == "none"
    assert "llama.embedding_length" in found["memory"]["error"]


def test_the_parts_of_a_split_model_count_together(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "split.gguf", "llama", split_max_tensors=1)
    for name in ("a", "b", "c"):
        writer.add_tensor(name, np.ones(32, np.float32))
    finish(writer)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 3
    found = facts(parts[0])
    assert found["file_bytes"] == sum(part.stat().st_size for part in parts)
    assert found["parameters"] == 96


def test_a_damaged_record_and_an_unknown_architecture_are_shown(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **{"localdiff.steps": 0})
    assert "steps is 0" in facts(path)["diffusion"]["error"]
    assert "steps is 0" in lines(path)["diffusion"]
    foreign = write_tiny(tmp_path / "foreign.gguf", arch="mamba")
    assert "architecture 'mamba' is not supported" in lines(foreign)["memory"]
