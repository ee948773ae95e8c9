"""The benches run and write well-formed JSON. Figures are never judged here: only their presence, types and sums."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulated import FAKE_CUBLASLT, PLUGIN, needs_plugin

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "bench"))

import gpu  # noqa: E402
from random_model import Shape, write_random_model  # noqa: E402

SHAPE = Shape(layers=2, dim=64, vocab=320, context=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    write_random_model(path, SHAPE, "Q8_0")
    return path


def run(*command: str) -> dict[str, Any]:
    """The JSON object on the last line of the program's output."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_positive(*values: float) -> None:
    assert all(isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in values), values


def test_localdiff_bench(model: Path) -> None:
    result = run("-m", "localdiff", "bench", str(model), "--rows", "8,32", "--repetitions", "1", "--threads", "1")
    assert [found["rows"] for found in result["forwards"]] == [8, 32]
    for found in result["forwards"]:
        assert_positive(found["ms"], found["gops"])
        assert found["ms_min"] <= found["ms"] <= found["ms_max"]
        assert sum(found["parts"].values()) == pytest.approx(1, abs=0.01)
    assert result["work"] == {
        "block_weights": SHAPE.block_weights,
        "head_weights": SHAPE.vocab * SHAPE.dim,
        "arithmetic": "int8",
    }
    assert_positive(*(result["peak"][name] for name in ("int8_gops", "f32_gflops", "memory_gbps")))
    assert result["machine"]["threads"] == 1
    assert set(result["machine"]) >= {"cpu", "cores", "isa", "localdiff", "date"}
    assert "tokenizer" in result["generation"]["not_run"]  # the file has none


@pytest.mark.parametrize("rows", ["0", "65", "8,x"])
def test_localdiff_bench_refuses_rows(model: Path, rows: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "localdiff", "bench", str(model), "--rows", rows],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--rows" in done.stderr
    assert done.stdout == ""


def test_compare(model: Path, tmp_path: Path) -> None:
    """Against torch's products only: the other peer is not among the test requirements."""
    pytest.importorskip("matplotlib")
    result = run(
        "bench/compare.py", str(model), "--rows", "8", "--pairs", "1", "--threads", "1", "--no-llama",
        "--answer", "2",
        "--out", str(tmp_path), "--name", "now",
    )  # fmt: skip
    assert json.loads((tmp_path / "now.json").read_text()) == result
    assert (tmp_path / "now.png").stat().st_size > 0
    assert "| tiny | 8 |" in (tmp_path / "now.md").read_text()
    (found,) = result["models"]
    assert {one["kind"] for one in found["torch"]} == {"f32", "bf16", "int8"}
    for one in found["torch"]:
        median, low, high = one[f"torch {one['kind']}"]["ratio"]
        assert_positive(low)
        assert low <= median <= high
    assert_positive(found["step"]["localdiff"]["ms"], found["peak"]["int8"])
    assert_positive(found["answer"]["localdiff"]["ms"], found["answer"]["localdiff dual"]["ms"])


def test_growth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("bench/growth.py", "--quick", "--threads", "1", "--out", str(tmp_path), "--name", "now")
    assert set(result["series"]) == {"rows", "length", "layers", "width"}
    for series in result["series"].values():
        assert len(series["ms"]) == len(series["values"]) == len(series["slopes"]) + 1
        assert_positive(*series["ms"])
    assert (tmp_path / "now.png").stat().st_size > 0


def test_peak_of_every_row() -> None:
    from localdiff.engine import isa_rows, measure_peak
    from localdiff.errors import OptionError

    for name in (name for name, supported in isa_rows() if supported):
        peak = measure_peak(name, threads=1, seconds=0.01)
        assert peak.threads == 1
        assert_positive(peak.int8_gops, peak.f32_gflops, peak.memory_gbps)
    with pytest.raises(OptionError, match="isa"):
        measure_peak("no-such-row")


def test_random_models_are_reproducible(tmp_path: Path, model: Path) -> None:
    write_random_model(tmp_path / "again.gguf", SHAPE, "Q8_0")
    assert (tmp_path / "again.gguf").read_bytes() == model.read_bytes()


def test_constraints_bench(tmp_path: Path) -> None:
    options = ["--decoders", "topk", "--cases", "1", "--rounds", "1", "--tokens", "24", "--threads", "1"]
    found = run("bench/constraints.py", *options, "--results", str(tmp_path), "--name", "made")["summary"]
    assert [(row["decoder"], row["kind"], row["cases"]) for row in found] == [
        ("topk", "json_schema", 1),
        ("topk", "regex", 1),
    ]
    for row in found:
        assert_positive(*row["text"], *(row["pass"] or ()))
    result = json.loads((tmp_path / "made.json").read_text())
    assert len(result["rows"]) == 2
    assert_positive(*result["first"].values())
    assert "| topk | json_schema | 1 |" in (tmp_path / "made.md").read_text()


def test_gpu_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "bench/gpu.py", "--small"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "LOCALDIFF_CUDA": "/nowhere.so", "LOCALDIFF_LLAMA_PYTHON": "/nowhere/python"},
    )  # fmt: skip
    assert done.returncode == gpu.NOT_POSSIBLE, done.stderr
    *peers, last = done.stdout.splitlines()
    assert "llama.cpp: absent ([Errno 2] No such file or directory: '/nowhere/python')" in peers
    assert all(": absent (" in line for line in peers)
    assert last.startswith("Nothing was measured: device is 'cuda', but the device plug-in cannot be opened")


@needs_plugin
def test_gpu_with_the_emulated_plugin(tmp_path: Path) -> None:
    """Every way of multiplying, and the library's told as absent where it is."""
    environment = {**os.environ, "LOCALDIFF_CUDA": str(PLUGIN), "LOCALDIFF_LLAMA_PYTHON": "/nowhere/python"}
    done = subprocess.run(
        [sys.executable, "bench/gpu.py", "--small", "-o", str(tmp_path / "found.json")], cwd=ROOT, capture_output=True,
        text=True, env=environment | {"LOCALDIFF_CUBLASLT": str(FAKE_CUBLASLT), "LD_FAKE_CUBLASLT": "create"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "found.json").read_text())
    ways = result["forwards"]["Q4_0"]
    assert list(ways) == list(gpu.WAYS)
    absent = ways["cuBLASLt"]["absent"]
    assert absent.endswith("but cuBLASLt 13.10.0 cannot be used: CUBLAS_STATUS_NOT_INITIALIZED")
    for name in set(gpu.WAYS) - {"cuBLASLt"}:
        assert_positive(*(each["ms"] for each in ways[name]["rows"]), ways[name]["weight_bytes"])
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines if line.startswith("fastest")] == [" Q4_0, 3 rows", " Q4_0, 20 rows"]
    assert f"cuBLASLt: absent ({absent})" in lines


def test_parts_of_the_gpu_bench_that_run_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_random_model(path, gpu.SMALL, "Q8_0")
    found = gpu.denoise("cpu", path, gpu.SMALL, 8, 6)
    assert (found["tokens"], found["steps"]) == (6, 2)
    torch = gpu.torch_bf16(SHAPE, 1, (3,), "cpu")
    assert_positive(found["per_second"], torch["ms"]["3"])
    assert "absent" not in torch
