"""The GPU's plug-in with its kernels emulated on the processor: whole models, through the same engine as on a GPU.

Every architecture against the scalar kernel row, quantised weights within the bound that bfloat16 sets, and what the
engine promises of any device: independence of the batch, caches that change nothing, refusals. The kernels by
themselves are tested in cpp/test_cuda.cpp. What only a GPU can show is `tools/dev gpu`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import FAMILIES, VOCAB, FamilyFiles
from emulated import PLUGIN, needs_plugin
from reference import Reference, visible_to
from tiny_gguf import write_tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
from gpu_kl import compare  # noqa: E402
from random_model import Shape, random_blocks, write_random_model  # noqa: E402

import localdiff  # noqa: E402
from localdiff import devices
from localdiff.engine import EngineModel, File, Request, measure_device_peak  # noqa: E402
from localdiff.errors import EngineError, OptionError  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

KINDS = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "Q4_K_M",
)  # fmt: skip

pytestmark = needs_plugin


def open_model(path: Path, device: str | Path = PLUGIN, **options: Any) -> EngineModel:
    with File.open(path) as file:
        return EngineModel(file, device=device, isa="scalar" if device == "cpu" else None, **options)


def logits(model: EngineModel, tokens: np.ndarray, **canvas: Any) -> np.ndarray:
    with model.session(slot_length=len(tokens), threads=1) as session:
        return session.logits([Request(tokens, np.arange(len(tokens), dtype=np.int32), **canvas)])[0]


def tokens_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, length, dtype=np.int32)


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Mean KL(a | b) of rows of logits, nats."""
    a, b = (x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (a, b))
    a, b = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (a, b))
    return float((np.exp(a) * (a - b)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return FamilyFiles(tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_gives_the_processors_logits(files: FamilyFiles, name: str) -> None:
    tokens = tokens_of(19)
    expected = logits(open_model(files(name), "cpu"), tokens)
    found = logits(open_model(files(name)), tokens)
    assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize("name", ["Dream", "ModernBERT"])
@pytest.mark.parametrize(
    ("kind", "extra"),
    [("causal", {}), ("block_causal", {"block_length": 4}), ("prefix_causal", {"prefix": 7})],
)
def test_every_kind_of_attention(files: FamilyFiles, name: str, kind: str, extra: dict[str, int]) -> None:
    tokens = tokens_of(19, 1)
    expected = logits(open_model(files(name), "cpu"), tokens, attention=kind, **extra)
    found = logits(open_model(files(name)), tokens, attention=kind, **extra)
    assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_in_int8(tmp_path: Path, kind: str) -> None:
    """Products are the scalar row's bit for bit; norms and exponentials differ, and may move an input by a step of 8
    bits. The bound is KL 1e-3, here on random weights."""
    path = tmp_path / "model.gguf"
    shape = Shape(layers=1, dim=256, vocab=300, context=64, ffn_dim=256, shared=False)
    write_random_model(path, shape, make=random_blocks(kind))
    tokens = np.arange(3, 20, dtype=np.int32)
    processor, found = logits(open_model(path, "cpu"), tokens), logits(open_model(path), tokens)
    assert np.abs(processor).max() > 0.1
    assert divergence(processor, found) <= 1e-3


@pytest.mark.parametrize("products", ["bfloat16", "bfloat16-own"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantised_weights_in_bfloat16(
    tmp_path: Path, kind: str, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and inputs are rounded to bfloat16: as near to the file's values in float64 as 8-bit inputs are."""
    from localdiff.quantize import quantize

    monkeypatch.setenv("LOCALDIFF_CUDA_PRODUCTS", products)

    path = quantize(write_tiny(tmp_path / "f32.gguf"), tmp_path / f"{kind}.gguf", type=kind).path
    tokens = np.arange(3, 20, dtype=np.int32)
    exact = Reference(path).logits(tokens, visible_to("full", len(tokens)))
    found, processor = logits(open_model(path), tokens), logits(open_model(path, "cpu"), tokens)
    assert not np.array_equal(processor, found)
    assert divergence(exact, found) <= 1.2 * divergence(exact, processor) <= 5e-3


@pytest.mark.parametrize("name", ["Dream", "SDAR-MoE"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_weights_of_16_bits_on_tensor_cores(
    files: FamilyFiles, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localdiff.quantize import quantize

    path, tokens = quantize(files(name), tmp_path / f"{kind}.gguf", type=kind).path, tokens_of(19)
    expected, found = logits(open_model(path, "cpu"), tokens), logits(open_model(path), tokens)
    assert np.abs(found - expected).max() / np.abs(expected).max() <= 1e-5
    monkeypatch.setenv("LOCALDIFF_CUDA_PRODUCTS", "float32")
    assert 0 < np.abs(logits(open_model(path), tokens) - found).max() / np.abs(found).max() <= 1e-5


def test_the_default_model_is_within_the_bound() -> None:
    """The bound is a mean KL of 1e-3 at masked positions; SmolLM2 is `tools/dev gpu_kl`."""
    model = ROOT / "localdiff" / "models" / "localdiff-stories.gguf"
    mean, _, other = compare(model, "Once upon a time there was a little bear who lived in a wood. " * 3, 32, PLUGIN)
    assert mean <= 1e-3
    assert other == 0


def test_attention_in_float32(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(19, 2)
    on_tensor_cores = logits(open_model(files("Dream")), tokens)
    monkeypatch.setenv("LOCALDIFF_CUDA_ATTENTION", "float32")
    found = logits(open_model(files("Dream")), tokens)
    assert 0 < np.abs(found - on_tensor_cores).max() / np.abs(found).max() <= 1e-5
    monkeypatch.setenv("LOCALDIFF_CUDA_ATTENTION", "half")
    with pytest.raises(OptionError, match="LOCALDIFF_CUDA_ATTENTION is 'half', expected tensor or float32"):
        open_model(files("Dream"))


def test_a_canvas_does_not_depend_on_its_neighbours(files: FamilyFiles) -> None:
    model = open_model(files("SDAR-MoE"))
    requests = [
        Request(tokens_of(n, n), np.arange(n, dtype=np.int32), slot=slot, temperature=0.8, top_p=0.9, seed=n)
        for slot, n in enumerate((3, 17, 9))
    ]
    with model.session(slots=3, slot_length=20) as session:
        together = session.propose(requests)
        back = session.propose(requests[::-1])[::-1]
    for request, first, second in zip(requests, together, back, strict=True):
        with model.session(slots=3, slot_length=20) as session:
            alone = session.propose([request])[0]
        for other in (first, second):
            assert np.array_equal(alone.token, other.token)
            assert np.array_equal(alone.probability, other.probability)


def test_cached_blocks_equal_one_pass(files: FamilyFiles) -> None:
    model, tokens = open_model(files("SDAR")), tokens_of(16, 4)
    block = {"attention": "block_causal", "block_length": 4}
    whole = logits(model, tokens, **block)
    with model.session(slot_length=16) as session:
        for begin in range(0, 16, 4):
            rows = np.arange(begin, begin + 4, dtype=np.int32)
            part = session.logits([Request(tokens, rows, compute=rows, **block)])[0]
            assert np.array_equal(part, whole[rows])


def test_guidance_biases_drift_and_saved_state(files: FamilyFiles) -> None:
    tokens, rows = tokens_of(12, 6), np.arange(12, dtype=np.int32)
    answers = []
    for device in ("cpu", PLUGIN):
        with open_model(files("Dream"), device).session(slots=2, slot_length=12, threads=1) as session:
            drift = np.empty(12, np.float32)
            plain = Request(tokens_of(12, 7), rows, slot=1)
            changes = {
                "repeated": tokens[:1], "repetition_penalty": 1.5, "bias_tokens": np.array([3], np.int32),
                "bias": np.array([2], np.float32), "forbidden": np.array([4, 9], np.int32), "alternatives": 3,
            }  # fmt: skip
            first = session.propose([Request(tokens, rows, guidance=1.0, unconditional=plain, **changes)])[0]
            moved = np.where(rows == 5, tokens[0], tokens).astype(np.int32)
            session.propose([Request(moved, rows, value_drift=drift)])
            answers.append((first.token, first.probability, first.alternative_token, drift))
    assert np.array_equal(answers[0][0], answers[1][0])
    assert np.array_equal(answers[0][2], answers[1][2])
    np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=1e-4)
    np.testing.assert_allclose(answers[0][3], answers[1][3], atol=1e-5)
    assert answers[0][3].max() > 0.01

    model = open_model(files("SDAR"))
    request = Request(tokens, rows[8:], compute=rows[8:], attention="block_causal", block_length=4)
    with model.session(slot_length=12) as session:
        whole = session.logits([Request(tokens, rows, attention="block_causal", block_length=4)])[0]
        saved = session.state(8)
    with model.session(slot_length=12) as session:
        assert session.restore(saved) == 8
        assert np.array_equal(session.logits([request])[0], whole[8:])


@pytest.mark.parametrize("name", ["Dream", "ModernBERT", "SDAR-MoE"])
def test_layers_split_between_processor_and_gpu(files: FamilyFiles, name: str) -> None:
    """Every split gives the processor's logits and tokens; a slot's state is one, wherever its layers are."""
    tokens, rows = tokens_of(19, 3), np.arange(19, dtype=np.int32)
    expected = logits(open_model(files(name), "cpu"), tokens)
    layers = open_model(files(name), "cpu").info.layers
    states, proposals, drifts = [], [], []
    for count in range(layers + 1):
        with open_model(files(name), gpu_layers=count) as model:
            assert model.info.gpu_layers == count
            assert ("+" in model.info.isa) == (count < layers)
            assert np.abs(logits(model, tokens) - expected).max() / np.abs(expected).max() <= 1e-5
            with model.session(slot_length=19, threads=1) as session:
                drift = np.empty(19, np.float32)
                session.propose([Request(tokens_of(19, 8), rows)])
                request = Request(tokens, rows, temperature=0.7, seed=3, value_drift=drift)
                proposals.append(session.propose([request])[0])
                drifts.append(drift)
                states.append(session.state(19))
                if count:
                    before = session.logits([Request(tokens, rows[-1:], compute=rows[-1:], attention="causal")])[0]
                    assert session.restore(states[0]) == 19
                    after = session.logits([Request(tokens, rows[-1:], compute=rows[-1:], attention="causal")])[0]
                    assert np.abs(after - before).max() / np.abs(expected).max() <= 1e-5
    assert layers >= 2
    assert len({len(state) for state in states}) == 1
    for proposal, drift in zip(proposals, drifts, strict=True):
        assert np.array_equal(proposal.token, proposals[0].token)
        np.testing.assert_allclose(drift, drifts[0], atol=1e-5)


def test_as_many_layers_as_memory_holds(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files("Dream")
    planned = [open_model(path, plan=True, gpu_layers=count) for count in range(4)]
    needs = [
        model.memory.device_weights + max(model.plan_device(1, 64, math=math) for math in ("exact", "fast"))
        for model in planned
    ]
    assert planned[0].info.layers == 3
    assert needs == sorted(set(needs))
    assert planned[3].memory.weights == 0 < planned[0].memory.weights
    for count, need in enumerate(needs):
        least = next(free for free in range(need, 2 * need) if free - free // 16 >= need)  # a sixteenth is left free
        monkeypatch.setenv("LD_EMULATED_MEMORY", str(least + 4096))  # norms
        assert open_model(path, plan=True).info.gpu_layers == count
        monkeypatch.setenv("LD_EMULATED_MEMORY", str(least - 1))
        if count:
            assert open_model(path, plan=True).info.gpu_layers == count - 1
    monkeypatch.setenv("LD_EMULATED_MEMORY", str(needs[0]))
    with pytest.raises(EngineError, match="GPU memory are free"):
        open_model(path)
    for count in (-1, 4):
        with pytest.raises(OptionError, match=f"gpu_layers is {count}, expected"):
            open_model(path, gpu_layers=count)
    with pytest.raises(OptionError, match="needs a device plug-in"):
        open_model(path, "cpu", gpu_layers=1)
    with pytest.raises(OptionError, match="gpu_layers is 1, but the device is cpu"):
        localdiff.load(path, device="cpu", gpu_layers=1)


def test_what_the_device_can_do_at_best() -> None:
    peak = measure_device_peak(PLUGIN, 0.01)
    assert min(peak.int8_gops, peak.bf16_gflops, peak.f32_gflops, peak.memory_gbps) > 0


def test_what_the_plugin_refuses(files: FamilyFiles, tmp_path: Path) -> None:
    path = files("Dream")
    engine = next((ROOT / "localdiff" / "lib").glob("liblocaldiff.*"))
    program = (
        "import sys\nfrom localdiff.engine import EngineModel, File\nfrom localdiff.errors import OptionError\n"
        "for device in sys.argv[2:]:\n try: EngineModel(File.open(sys.argv[1]), device=device)\n"
        " except OptionError as error: print(error)"
    )
    command = [sys.executable, "-c", program, path, tmp_path / "absent.so", engine]
    absent, wrong = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert "cannot be opened" in absent
    assert wrong == f"{engine} is no device plug-in of localdiff"
    with pytest.raises(OptionError, match="a process takes one"):
        open_model(path, tmp_path / "absent.so")
    with File.open(path) as file, pytest.raises(OptionError, match="row of CPU kernels"):
        EngineModel(file, device=PLUGIN, isa="scalar")
    with open_model(path).session(slot_length=4) as session, pytest.raises(EngineError, match="on the processor"):
        session.observe()
    planned = open_model(path, plan=True)
    assert planned.plan(slot_length=8) > 0
    with pytest.raises(OptionError, match="opened to plan"):
        planned.session(slot_length=8)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in is what device="cuda" opens."""
    monkeypatch.setenv("LOCALDIFF_CUDA", str(PLUGIN))
    devices._cuda.cache_clear()
    yield
    devices._cuda.cache_clear()


@pytest.mark.usefixtures("chosen")
def test_threads_that_nothing_computes_with_are_told(files: FamilyFiles) -> None:
    for layers, told in ((None, True), (1, False)):
        with localdiff.load(
            files("Dream"), device="cuda", threads=2, gpu_layers=layers, diffusion="mask=4,shift=1"
        ) as model:
            assert any("threads (2) changes nothing" in notice for notice in model.notices) == told
