"""Importing the package, and Model over the real engine: batches, streams, holes, files without a record, lifetimes."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

import localdiff
from localdiff.canvas import GIVEN
from localdiff.errors import Cancelled, OptionError
from localdiff.infill import LENGTHS
from localdiff.model import Model

VOCAB, MASK = 263, 262  # of the tiny tokenizer


def test_import_is_light() -> None:
    code = "import localdiff, sys; print(*sys.modules); localdiff.Model; print(*sys.modules)"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    heavy = {"torch", "transformers", "rich", "tokenizers", "minijinja"}
    assert not (heavy | {"numpy", "cffi"}) & set(lines[0].split())
    assert not heavy & set(lines[1].split())


def test_public_names() -> None:
    for name in localdiff.__all__:
        assert getattr(localdiff, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        localdiff.nonsense  # noqa: B018
    assert issubclass(localdiff.errors.OptionError, ValueError)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return localdiff.load(write_tiny(tmp_path_factory.mktemp("real") / "tiny.gguf"), threads=2)


@pytest.mark.parametrize("decoder", ["random-keep", "topk", "llada", "threshold"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_engine_batch_equals_single(real: Model, decoder: str, temperature: float) -> None:
    prompts = ["hello", "", "the quick brown fox", "hello hell"]
    options = {"max_new_tokens": 24, "decoder": decoder, "temperature": temperature, "seed": 11}
    batch = real.generate(prompts, **options)
    for prompt, out in zip(prompts, batch, strict=True):
        assert real.generate(prompt, **options).tokens == out.tokens
        assert MASK not in out.tokens
        assert out.threads == 2


def test_the_real_engine_streams_and_cancels(real: Model) -> None:
    stream = real.stream("hello", max_new_tokens=20, decoder="llada", seed=2)
    first = next(stream)
    assert first.canvas.state[: stream._texts[0].page.start].tolist() == [GIVEN] * stream._texts[0].page.start
    real.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert stream.result.stop_reason == "cancelled"
    again = real.generate("hello", max_new_tokens=20, decoder="llada", seed=2)
    assert again.stop_reason in ("stop", "length")


def test_the_real_engine_fills_holes(real: Model) -> None:
    out = real.infill("hello [[4]] and [[]].", seed=4)
    assert out.text.startswith("hello ")
    assert out.text.endswith(".")
    assert out.holes[0] in out.text
    assert len(out.tokens) - 4 in LENGTHS


def test_ordinary_files_need_the_flags(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "plain.gguf", record=False)
    with localdiff.load(path) as plain:
        assert plain.logits([1, 2]).shape == (2, VOCAB)
        with pytest.raises(OptionError, match="has no diffusion record"):
            plain.generate("hello")
    with localdiff.load(path, diffusion="mask=262,shift=1") as model:
        assert len(model.generate("hello", max_new_tokens=4).tokens) <= 4
    with pytest.raises(OptionError, match="mask_token is 263, but the vocabulary has 263"):
        localdiff.load(path, diffusion="mask=263,shift=1")


def test_unfinished_streams_in_reference_cycles_are_collected(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    code = f"""
import gc, localdiff
for round in range(6):
    model = localdiff.load({str(path)!r}, threads=1)
    cycle = [model, model.stream("hello", max_new_tokens=20, decoder="llada"), model.stream("hell")]
    next(cycle[1]), next(cycle[2]), cycle.append(cycle)
    del model, cycle
    gc.collect() if round < 4 else None
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
