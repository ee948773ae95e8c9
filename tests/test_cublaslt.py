"""Products in bfloat16 by cuBLASLt, which the GPU's plug-in opens at run time, in whole models.

Without a GPU the emulated plug-in opens a stand-in (cublaslt/fake.cpp), whose products are compared with those of the
plug-in's own kernel; with $LOCALDIFF_CUDA the same tests run with NVIDIA's library, above all that a row's result does
not depend on how many rows there are. $LOCALDIFF_CUBLASLT_INCLUDE, folders with cublasLt.h and CUDA's headers, lets the
declarations be compared with the real ones. The calls by themselves are tested in cpp/test_cuda_blas.cpp.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from architectures import VOCAB, FamilyFiles
from emulated import EMULATED, FAKE_CUBLASLT, PLUGIN, needs_plugin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
from random_model import Shape, random_blocks, write_random_model  # noqa: E402

from localdiff.devices import find_cublaslt  # noqa: E402
from localdiff.engine import EngineModel, File, Request  # noqa: E402
from localdiff.errors import EngineError, OptionError  # noqa: E402
from localdiff.quantize import quantize  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LIBRARY, LIBRARY_ONLY, OWN = "bfloat16", "bfloat16-cublaslt", "bfloat16-own"  # values of $LOCALDIFF_CUDA_PRODUCTS
needs_fake = pytest.mark.skipif(not EMULATED, reason="NVIDIA's library does not fail to order")

pytestmark = needs_plugin


def calls() -> tuple[int, int]:
    """How many products the library was given so far, and how many of them while a stream was captured."""
    asked, multiplied, captured = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    count = ctypes.CDLL(str(FAKE_CUBLASLT)).ld_fake_cublaslt_calls
    count(ctypes.byref(asked), ctypes.byref(multiplied), ctypes.byref(captured))
    return multiplied.value, captured.value


def open_model(path: Path, monkeypatch: pytest.MonkeyPatch, products: str = LIBRARY_ONLY) -> EngineModel:
    monkeypatch.setenv("LOCALDIFF_CUDA_PRODUCTS", products)
    try:
        with File.open(path) as file:
            return EngineModel(file, device=PLUGIN)
    except OptionError as error:
        if products == LIBRARY_ONLY and not EMULATED:
            pytest.skip(str(error))
        raise


def tokens_of(length: int, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, vocab, length, dtype=np.int32)


def logits(model: EngineModel, tokens: np.ndarray) -> np.ndarray:
    with model.session(slot_length=len(tokens), threads=1) as session:
        return session.logits([Request(tokens, np.arange(len(tokens), dtype=np.int32))])[0]


@pytest.fixture(scope="module")
def random_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cublaslt")
    shape = Shape(layers=1, dim=256, vocab=300, context=512, ffn_dim=256, shared=False)
    for kind in ("Q8_0", "Q4_0", "Q4_K_M", "Q2_K"):
        write_random_model(folder / f"{kind}.gguf", shape, make=random_blocks(kind))
    return folder


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K_M", "Q2_K"])
def test_quantised_weights(random_files: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = random_files / f"{kind}.gguf", tokens_of(17)
    before = calls()[0] if EMULATED else 0
    found = logits(open_model(path, monkeypatch), tokens)
    assert not EMULATED or calls()[0] - before == 8  # seven matrices of a layer, and the head
    expected = logits(open_model(path, monkeypatch, OWN), tokens)
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-2  # sums in another order change a rounding


@pytest.mark.parametrize("name", ["Dream", "BERT", "DiffuGPT", "SDAR-MoE"])  # biases, residual sums, experts
def test_architectures_with_weights_in_bfloat16(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quantize(FamilyFiles(tmp_path)(name), tmp_path / "bf16.gguf", type="bf16").path
    tokens = tokens_of(19)
    before = calls()[0] if EMULATED else 0
    found = logits(open_model(path, monkeypatch), tokens)
    assert not EMULATED or calls()[0] > before
    expected = logits(open_model(path, monkeypatch, OWN), tokens)
    with File.open(path) as file:
        exact = logits(EngineModel(file, device="cpu", isa="scalar"), tokens)
    scale = np.abs(exact).max()
    assert np.abs(found - expected).max() / scale <= 1e-2
    assert np.abs(found - exact).max() / scale <= 3e-2


@pytest.mark.parametrize("word", ["", "old"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_a_row_does_not_depend_on_how_many_there_are(
    random_files: Path, kind: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same canvas of one row alone and in batches of 7, 64 and 300 rows, bit for bit; `old` is a library that
    promises nothing itself."""
    if word and not EMULATED:
        pytest.skip("one library is there")
    monkeypatch.setenv("LD_FAKE_CUBLASLT", word)
    model, place = open_model(random_files / f"{kind}.gguf", monkeypatch), np.zeros(1, np.int32)
    answers = []
    for rows in (1, 7, 64, 300):
        requests = [Request(tokens_of(1, 1, 300), place)]
        if rows > 1:
            others = tokens_of(rows - 1, 2, 300)
            requests.append(Request(others, np.arange(rows - 1, dtype=np.int32), slot=1))
        with model.session(slots=2, slot_length=300, threads=1) as session:
            answers.append(session.logits(requests)[0])
    for rows, answer in zip((7, 64, 300), answers[1:], strict=True):
        assert np.array_equal(answer, answers[0]), f"{rows} rows"


def test_a_graph_gives_the_bits_of_its_launches(random_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(graphs: str) -> list[np.ndarray]:
        monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", graphs)
        model, rows = open_model(random_files / "Q8_0.gguf", monkeypatch), np.arange(12, dtype=np.int32)
        with model.session(slot_length=12, threads=1) as session:
            return [session.logits([Request(tokens_of(12, seed), rows)])[0] for seed in range(4)]

    before = calls()[1] if EMULATED else 0
    recorded = steps("on")
    assert not EMULATED or calls()[1] - before == 7  # the matrices of the layer, once
    for one, other in zip(recorded, steps("off"), strict=True):
        assert np.array_equal(one, other)


@needs_fake
def test_weights_made_for_every_product_are_those_of_the_copy(
    random_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokens = random_files / "Q4_0.gguf", tokens_of(9)
    copied = open_model(path, monkeypatch)
    expected = logits(copied, tokens)
    assert copied.memory.device_weights > 2 * path.stat().st_size  # 16 bits beside 4
    monkeypatch.setenv("LD_EMULATED_MEMORY", str(150 << 20))  # a sixteenth of all has to stay free
    short = open_model(path, monkeypatch)
    assert np.array_equal(logits(short, tokens), expected)
    assert short.memory.device_weights < path.stat().st_size


@needs_fake
def test_what_fails_is_told(random_files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, tokens = random_files / "Q8_0.gguf", tokens_of(5)
    own = open_model(path, monkeypatch, OWN)
    assert own.info.isa == "sm_90, bfloat16 by own kernels (as asked for)"
    assert open_model(path, monkeypatch).info.isa == "sm_90, bfloat16 by cuBLASLt 13.10.0"
    assert open_model(path, monkeypatch, "int8").info.isa == "sm_90"
    expected = logits(own, tokens)
    for word, found in (
        ("create", "own kernels"),
        ("heuristic", "cuBLASLt"),
        ("matmul", "cuBLASLt"),
    ):  # nothing is lost but speed
        monkeypatch.setenv("LD_FAKE_CUBLASLT", word)
        model = open_model(path, monkeypatch, LIBRARY)
        assert f"bfloat16 by {found}" in model.info.isa
        before = calls()[0]
        assert np.array_equal(logits(model, tokens), expected)
        assert calls()[0] == before
        with pytest.raises(
            (OptionError, EngineError), match=f"is {LIBRARY_ONLY}, but|takes no product of 256 values by"
        ):
            logits(open_model(path, monkeypatch), tokens)
    monkeypatch.setenv("LD_FAKE_CUBLASLT", "execution")
    with open_model(path, monkeypatch).session(slot_length=5, threads=1) as session:
        request, captured = Request(tokens, np.arange(5, dtype=np.int32)), []
        with pytest.raises(EngineError, match="multiplying 5 rows of 256 values by .* LOCALDIFF_CUDA_PRODUCTS=bfl"):
            session.logits([request])
        monkeypatch.delenv("LD_FAKE_CUBLASLT")
        for _ in range(3):  # what failed was no first step: the second one that works is recorded
            before = calls()[1]
            assert np.array_equal(session.logits([request])[0], logits(open_model(path, monkeypatch), tokens))
            captured.append(calls()[1] - before)
        assert captured == [0, 7, 0]
    monkeypatch.setenv("LOCALDIFF_CUBLASLT", str(tmp_path / "absent.so"))
    with pytest.raises(OptionError, match="LOCALDIFF_CUBLASLT is no library that can be opened"):
        open_model(path, monkeypatch)
    with pytest.raises(OptionError, match="is 'bf16', expected int8, float32, bfloat16, bfloat16-own or bfloat16-cub"):
        open_model(path, monkeypatch, "bf16")


def test_the_newest_library_of_this_pythons_packages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13", "cu13/lib/libcublasLt.so.14"):
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_cublaslt()
    assert found is not None
    assert found.name == "libcublasLt.so.13"


def test_the_declarations_are_those_of_the_header() -> None:
    include, compiler = os.environ.get("LOCALDIFF_CUBLASLT_INCLUDE"), shutil.which("c++")
    if include is None or compiler is None:
        pytest.skip("no $LOCALDIFF_CUBLASLT_INCLUDE with cublasLt.h, or no compiler")
    folders = [part for folder in include.split(os.pathsep) for part in ("-isystem", folder)]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run(
        [*command, *folders, str(ROOT / "tests" / "cublaslt" / "header.cpp")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_fake
def test_doctor_tells_what_multiplies() -> None:
    def told(**more: str) -> str:
        environment = {**os.environ, "LOCALDIFF_CUBLASLT": str(FAKE_CUBLASLT), **more}
        command = [sys.executable, "-m", "localdiff", "doctor"]
        lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        return next(line for line in lines if line.startswith("cublaslt"))

    assert "sm_90, bfloat16 by cuBLASLt 13.10.0; taken with" in told(LOCALDIFF_CUDA=str(PLUGIN))
    assert "by own kernels (cuBLASLt 13" in told(LOCALDIFF_CUDA=str(PLUGIN), LD_FAKE_CUBLASLT="create")
    assert "not looked for: no GPU is used" in told(LOCALDIFF_CUDA="/nowhere.so")
