"""Exact and fast arithmetic: what is measured, what is decided, and that a session does what it was asked."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from gguf_values import finish
from tiny_gguf import write_tiny

import localdiff
from localdiff import arithmetic
from localdiff.arithmetic import BOUND, Arithmetic, decide, judge
from localdiff.engine import EngineModel, File, Request, isa_rows
from localdiff.errors import OptionError
from localdiff.loading import EMBEDDED
from localdiff.quantize.driver import quantize
from localdiff.spec import DiffusionSpec


def logits(model: EngineModel, tokens: np.ndarray, rows: np.ndarray, math: str) -> np.ndarray:
    with model.session(slot_length=len(tokens), math=math) as session:
        return session.logits([Request(tokens, rows)])[0].astype(np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))


def test_measured_divergence_is_that_of_the_formula() -> None:
    """Against the definition, summed token by token, on the embedded model."""
    with localdiff.load(math="exact") as model:
        engine, spec, tokenizer = model._engine, model.spec, model.tokenizer
        assert spec is not None
        tokens = np.array(tokenizer.encode(arithmetic.TEXT)[: arithmetic.TOKENS], dtype=np.int32)
        masked = np.arange(1, len(tokens), 2, dtype=np.int32)
        tokens[masked] = spec.mask_token
        total = 0.0
        for exact, fast in zip(
            logits(engine, tokens, masked, "exact"), logits(engine, tokens, masked, "fast"), strict=True
        ):
            a, b = exact - max(exact), fast - max(fast)
            za, zb = math.log(sum(np.exp(a))), math.log(sum(np.exp(b)))
            total += sum(np.exp(a - za) * ((a - za) - (b - zb)))
        found = arithmetic.measure(engine, spec, tokenizer)
        assert 0 < found < BOUND
        assert found == pytest.approx(total / len(masked), rel=1e-6)
        assert model.arithmetic == Arithmetic("exact", None, "as asked for")


needs_gain = pytest.mark.skipif(
    isa_rows()[0] != ("avx512_vnni", True), reason="no kernel row here gains from fast arithmetic"
)


@needs_gain
def test_auto_takes_fast_for_the_embedded_model_and_remembers_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with localdiff.load() as model:
        first = model.arithmetic
        assert first.math == "fast"
        assert first.divergence is not None
        assert first.divergence <= BOUND
        kept = json.loads((tmp_path / "localdiff" / "arithmetic.json").read_text())
        assert list(kept.values()) == [first.divergence]
    monkeypatch.setattr(arithmetic, "measure", lambda *_: pytest.fail("measured twice"))
    with localdiff.load() as model:
        assert model.arithmetic == first


@needs_gain
@pytest.mark.parametrize("content", ["{", "[]", '{"x": "y"}', ""])
def test_a_damaged_cache_is_measured_anew(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "localdiff").mkdir()
    (tmp_path / "localdiff" / "arithmetic.json").write_text(content)
    with localdiff.load() as model:
        assert model.arithmetic.divergence is not None


@needs_gain
def test_a_cache_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with localdiff.load() as model:
        assert model.arithmetic.math == "fast"


def test_rows_of_kernels_that_gain_nothing_stay_exact() -> None:
    with localdiff.load(isa="scalar") as model:
        assert model.arithmetic.math == "exact"
    with localdiff.load(isa="scalar", math="fast") as model:
        assert model.arithmetic.math == "fast"


def test_choices() -> None:
    assert judge(0.0).math == "exact"
    assert judge(BOUND).math == "fast"
    assert judge(BOUND * 1.001).math == "exact"
    assert judge(math.nan).math == "exact"
    with pytest.raises(OptionError, match="math is 'quick', expected one of auto, exact, fast"):
        localdiff.load(math="quick")


def test_nothing_to_measure_with_is_exact(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", kind="Q8_0")
    with File.open(path) as file, EngineModel(file) as engine:

        def no_tokenizer() -> object:
            raise OptionError("there is none")

        spec = DiffusionSpec(mask_token=1, logit_shift=False)
        files = [(path, 1.0)]
        assert decide("auto", files, engine, None, no_tokenizer).math == "exact"  # type: ignore[arg-type]
        assert decide("auto", files, engine, spec, no_tokenizer).math == "exact"  # type: ignore[arg-type]
        assert decide("fast", files, engine, None, no_tokenizer).math == "fast"  # type: ignore[arg-type]


def test_files_are_told_apart_by_content_and_scale(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"x" * 3_000_000)
    b.write_bytes(a.read_bytes())
    c.write_bytes(b"x" * 2_999_999 + b"y")
    keys = [
        arithmetic.fingerprint([(path, scale) for path, scale in zip(files, (1.0, last), strict=False)])
        for files, last in (([a], 1), ([b], 1), ([c], 1), ([a, b], 1), ([b, a], 1), ([a, c], 1), ([a, b], 0.5))
    ]
    assert keys[0] == keys[1]
    assert keys[3] == keys[4]
    assert len(set(keys)) == 5


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F32"])
def test_every_row_of_kernels_gives_the_same_fast_logits(kind: str, tmp_path: Path) -> None:
    """Near one another as exact ones are; apart from exact ones where anything is quantised."""
    path = write_tiny(tmp_path / "tiny.gguf", dim=256, kind=kind)
    tokens = np.arange(20, dtype=np.int32)
    with File.open(path) as file:
        rows = [name for name, supported in isa_rows() if supported]
        found = {}
        for isa in rows:
            with EngineModel(file, isa=isa) as model:
                found[isa] = {math: logits(model, tokens, tokens, math) for math in ("exact", "fast")}
    for isa in rows:
        np.testing.assert_allclose(found[isa]["fast"], found["scalar"]["fast"], rtol=0, atol=1e-3)
        assert np.array_equal(found[isa]["fast"], found[isa]["exact"]) == (kind == "F32")


# Mean KL divergence to float32, nats, of llama.cpp (llama-cpp-python 0.3.36, default setting, attention not causal) on
# the very files and tokens of the test below.
LLAMA_CPP = {"Q8_0": 1.784e-4, "Q4_K_M": 9.426e-3, "Q4_0": 1.3309e-2}


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its weights decoded by the gguf package."""
    import gguf
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(EMBEDDED)
    path = tmp_path_factory.mktemp("float") / "f32.gguf"
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if value.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value.contents())
        else:
            writer.add_key_value(name, value.contents(), value.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    finish(writer)
    return path


@pytest.mark.parametrize("kind", LLAMA_CPP)
def test_rounding_costs_no_more_than_in_llama_cpp(kind: str, float_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "quantised.gguf"
    quantize(float_model, path, type=kind)
    with localdiff.load(path) as model, localdiff.load(float_model) as reference:
        assert reference.spec is not None
        tokens = np.array(model.tokenizer.encode(arithmetic.TEXT), dtype=np.int32)
        tokens[1::2] = reference.spec.mask_token
        rows = np.arange(len(tokens), dtype=np.int32)
        right = log_softmax(logits(reference._engine, tokens, rows, "exact"))
        found = {
            math: (np.exp(right) * (right - log_softmax(logits(model._engine, tokens, rows, math)))).sum(1).mean()
            for math in ("exact", "fast")
        }
    assert 0 < found["exact"] <= 1.15 * LLAMA_CPP[kind]
    assert found["exact"] < found["fast"] <= found["exact"] + BOUND
