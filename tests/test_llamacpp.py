"""The backend of llama.cpp: its protocol and its failures with a double of llama-cpp-python in a real process, and the
same texts as the engine's with the real one.

The double (doubles/llama_cpp.py) computes with the engine, so everything must be equal to the bit. The real one is
named by LOCALDIFF_LLAMA_PYTHON; where it is missing those tests say so.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import kl_divergence
from tiny import tiny_checkpoint
from tiny_gguf import write_tiny

import localdiff
from localdiff.engine import EngineModel, File, Request, pack_tokens, propose_logits
from localdiff.errors import Cancelled, EngineError, OptionError
from localdiff.llamacpp import process
from localdiff.loading import EMBEDDED

TESTS = Path(__file__).resolve().parent
PEER = os.environ.get("LOCALDIFF_LLAMA_PYTHON")
PROMPT = "Once upon a time"


@pytest.fixture
def mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that says how the double's forward passes go."""
    path = tmp_path / "mode"
    for name, value in double(path).items():
        monkeypatch.setenv(name, value)
    process.look.cache_clear()
    yield path
    process.look.cache_clear()


def double(path: Path) -> dict[str, str]:
    """The environment in which this Python has the double."""
    places = os.pathsep.join([str(TESTS / "doubles"), str(TESTS.parent)])
    return {"LOCALDIFF_LLAMA_PYTHON": sys.executable, "PYTHONPATH": places, "LLAMA_DOUBLE": str(path)}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    for _ in range(500):
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


# ---- logits that come from elsewhere ----


def test_given_logits_are_scored_as_the_session_scores_its_own() -> None:
    draw = np.random.default_rng(5)
    with File.open(EMBEDDED) as file, EngineModel(file, threads=1) as model, model.session(2, 48) as session:
        vocab = model.info.vocab

        def some(size: int) -> np.ndarray:
            return np.sort(draw.choice(vocab, size, replace=False)).astype(np.int32)

        def request(slot: int, score: np.ndarray, **more: Any) -> Request:
            tokens = draw.integers(0, vocab, 48).astype(np.int32)
            return Request(tokens, score, slot, logits=np.empty((len(score), vocab), np.float32), **more)

        for trial in range(40):
            count = int(draw.integers(1, 12))
            score = np.sort(draw.choice(48, count, replace=False)).astype(np.int32)
            guidance, shift = float(draw.choice([0, 1.5])), bool(trial % 2)
            asked = request(
                0, score, logit_shift=shift, temperature=float(draw.choice([0, 0.7, 1.3])),
                top_k=int(draw.choice([0, 5])), top_p=float(draw.choice([1, 0.8])), seed=trial, step=trial % 3,
                alternatives=int(draw.choice([0, 4])), scores_from=str(draw.choice(["raw", "sampled"])),
                forbidden=some(3), repeated=some(9), repetition_penalty=1.2, bias_tokens=some(4),
                bias=draw.normal(size=4).astype(np.float32), guidance=guidance,
                allowed=pack_tokens(draw.random((count, vocab)) < 0.9),
                unconditional=request(1, score, logit_shift=shift) if guidance else None,
            )  # fmt: skip
            (expected,) = session.propose([asked])
            (found,) = propose_logits([asked], vocab)
            for name in vars(expected):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_given_logits_are_checked() -> None:
    score = np.arange(2, dtype=np.int32)
    good = Request(np.zeros(4, np.int32), score, logits=np.zeros((2, 9), np.float32))
    assert propose_logits([good], 9)[0].token.tolist() == [0, 0]
    assert np.isfinite(propose_logits([good], 9)[0].entropy).all()
    for wrong, said in (
        ({"logits": None}, "logits is NULL"),
        ({"logits": np.full((2, 9), np.nan, np.float32)}, "not finite"),
        ({"score": score[::-1].copy()}, "ascending positions"),
        ({"forbidden": np.arange(9, dtype=np.int32)}, "every token"),
        ({"allowed": pack_tokens(np.zeros((2, 9), bool))}, "no token is allowed"),
        ({"positions": np.arange(4, dtype=np.int32)}, "positions"),
    ):
        fields = {**vars(good), **wrong}
        with pytest.raises(EngineError, match=said):
            propose_logits([Request(**fields)], 9)


# ---- the double ----


def test_texts_are_the_engines_to_the_bit(mode: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yz"]}}, "required": ["a"]}
    with (
        localdiff.load(threads=1, math="exact") as ours,
        localdiff.load(device="llamacpp", threads=1) as theirs,
    ):
        assert (theirs.device, theirs.info.isa) == ("llamacpp", "llama.cpp")
        for options in (
            {"temperature": 0, "steps": 8},
            {"seed": 3, "temperature": 0.9, "top_p": 0.9, "samples": 2},
            {"seed": 4, "guidance": 1.0, "repetition_penalty": 1.2, "steps": 6},
            {"seed": 5, "json_schema": schema, "decoder": "threshold"},
            {"seed": 6, "preset": "balanced", "cache": "exact", "alternatives": 3},
        ):
            whole = [model.generate([PROMPT], max_new_tokens=24, **options) for model in (ours, theirs)]
            for one, other in zip(*whole, strict=True):
                assert (one.text, one.tokens, one.nfe) == (other.text, other.tokens, other.nfe)
                assert one.token_details == other.token_details
        hole = ["Once upon a ", localdiff.Hole(), " the end."]
        assert ours.infill(hole, seed=7).text == theirs.infill(hole, seed=7).text
        tokens = ours.tokenize(PROMPT)
        for attention in ("full", "causal"):
            np.testing.assert_array_equal(ours.logits(tokens, attention), theirs.logits(tokens, attention))
        assert theirs.generate(PROMPT, max_new_tokens=4, seed=1).as_dict()["device"] == "llamacpp"


def test_what_it_cannot_do_is_refused_by_name(mode: Path, tmp_path: Path) -> None:
    for option, said in (({"isa": "scalar"}, "isa"), ({"math": "fast"}, "math")):
        with pytest.raises(OptionError, match=f"^{said}: .*llamacpp"):
            localdiff.load(device="llamacpp", **option)
    tiny = write_tiny(tmp_path / "tiny.gguf")
    with localdiff.load(tiny, device="llamacpp", diffusion="attn=block_causal,block=8") as blocks:
        with pytest.raises(OptionError, match="block_causal attention"):
            blocks.generate("a", max_new_tokens=8)
        with pytest.raises(OptionError, match="prefix_causal attention"):
            blocks.logits([1, 2], attention="prefix_causal")
    causal = localdiff.load(tiny, device="llamacpp", diffusion="attn=causal")
    with causal, pytest.raises(OptionError, match="decoder wedlm"):
        causal.generate("a", max_new_tokens=8, decoder="wedlm")
    with localdiff.load(device="llamacpp") as model:
        with pytest.raises(OptionError, match="cache: dual .*--cache exact"):
            model.generate(PROMPT, cache="dual")
        with pytest.raises(OptionError, match="cache: dual"):
            model.generate(PROMPT, preset="balanced")
        with pytest.raises(OptionError, match="decoder wino"):
            model.generate(PROMPT, decoder="wino", max_new_tokens=8)
        session = model.session(1, 8)
        tokens = np.zeros(4, np.int32)
        for request, said in (
            (Request(tokens, tokens[:1], compute=tokens[:1]), "some rows"),
            (Request(tokens, tokens[:1], positions=np.arange(4, dtype=np.int32)), "another order"),
            (Request(tokens, tokens[:1], hidden=tokens[:1], shadows=tokens[:1]), "do not see them"),
        ):
            with pytest.raises(OptionError, match=said):
                session.propose([request])
        for request, said in (
            (Request(np.zeros(9, np.int32), tokens[:1]), "9 tokens"),
            (Request(np.full(2, 9999, np.int32), tokens[:1]), "a token is 9999"),
            (Request(tokens, np.array([4], np.int32)), "scored position is 4"),
        ):
            with pytest.raises(EngineError, match=said):
                session.propose([request])


def test_a_file_that_llama_cpp_does_not_load(mode: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "unknown.gguf")
    with pytest.raises(EngineError, match="cannot load the file \\(unknown model architecture\\)"):
        localdiff.load(path, device="llamacpp")


def test_its_death_is_one_sentence_and_the_next_text_is_right(mode: Path) -> None:
    with localdiff.load(device="llamacpp", threads=1) as model:
        expected = model.generate(PROMPT, seed=1, max_new_tokens=8).text
        mode.write_text("die")
        with pytest.raises(EngineError) as raised:
            model.generate(PROMPT, seed=1, max_new_tokens=8)
        assert "ended by signal 6 (GGML_ASSERT(n_tokens <= n_ubatch) failed)" in str(raised.value)
        assert model.generate(PROMPT, seed=1, max_new_tokens=8).text == expected
        mode.write_text("fail")
        with pytest.raises(EngineError, match="forward pass ended with -3"):
            model.generate(PROMPT, seed=1, max_new_tokens=8)
        mode.unlink()
        assert model.generate(PROMPT, seed=1, max_new_tokens=8).text == expected
    with pytest.raises(EngineError, match="closed"):
        model.generate(PROMPT)


def test_no_answer_in_time(mode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with localdiff.load(device="llamacpp", threads=1) as model:
        model._engine.process._seconds = 0.3  # type: ignore[attr-defined]
        pid = int(mode.with_suffix(".pid").read_text())
        mode.write_text("hang")
        with pytest.raises(EngineError, match="no answer for 0.3 seconds"):
            model.generate(PROMPT, max_new_tokens=8)
        assert gone(pid)
    monkeypatch.setenv("LOCALDIFF_LLAMA_SECONDS", "soon")
    with pytest.raises(OptionError, match="LOCALDIFF_LLAMA_SECONDS is 'soon'"):
        localdiff.load(device="llamacpp")


def test_cancelling_stops_the_pass_and_the_next_text_is_right(mode: Path) -> None:
    with localdiff.load(device="llamacpp", threads=1) as model:
        expected = model.generate(PROMPT, seed=1, max_new_tokens=8).text
        pid = int(mode.with_suffix(".pid").read_text())
        mode.write_text("wait")
        threading.Timer(0.2, model.cancel).start()
        with pytest.raises(Cancelled):
            model.generate(PROMPT, seed=1, max_new_tokens=8)
        mode.unlink()
        assert model.generate(PROMPT, seed=1, max_new_tokens=8).text == expected
        assert int(mode.with_suffix(".pid").read_text()) == pid
    assert gone(pid)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "mode"
    path.write_text("hang")
    command = [sys.executable, "-m", "localdiff", "run", "--device", "llamacpp", "--no-live", PROMPT]
    running = subprocess.Popen(
        command, env={**os.environ, **double(path)}, stderr=subprocess.PIPE, start_new_session=True
    )
    while not path.with_suffix(".pid").is_file():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    time.sleep(0.5)
    pid = int(path.with_suffix(".pid").read_text())
    os.killpg(running.pid, how)  # as a terminal's Ctrl-C goes to all of the group
    running.communicate(timeout=30)
    assert running.returncode == (130 if how == signal.SIGINT else -how)
    assert gone(pid)


def test_what_is_missing_is_one_sentence(
    mode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no library for this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(OptionError, match="cannot be imported .*no library.*; pip install 'localdiff\\[llamacpp\\]'"):
        localdiff.load(device="llamacpp")
    monkeypatch.setenv("LOCALDIFF_LLAMA_PYTHON", "/nowhere/python")
    with pytest.raises(OptionError, match="LOCALDIFF_LLAMA_PYTHON is /nowhere/python, which cannot be started"):
        localdiff.load(device="llamacpp")
    monkeypatch.delenv("LOCALDIFF_LLAMA_PYTHON")
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="^llama-cpp-python is not installed; pip install"):
        localdiff.load(device="llamacpp")


def test_doctor_says_what_is_there(mode: Path) -> None:
    def doctor(**more: str) -> str:
        environment = {**os.environ, **more}
        command = [sys.executable, "-m", "localdiff", "doctor"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "llamacpp   llama-cpp-python 0.0-double, on the processor; taken with --device llamacpp only" in doctor()
    assert "llamacpp   LOCALDIFF_LLAMA_PYTHON is /nowhere" in doctor(LOCALDIFF_LLAMA_PYTHON="/nowhere")


# ---- llama.cpp itself ----

peer = pytest.mark.skipif(
    not PEER, reason="no llama.cpp: LOCALDIFF_LLAMA_PYTHON names no Python that has llama-cpp-python"
)


@peer
@pytest.mark.parametrize("attention", ["full", "causal"])
def test_logits_of_llama_cpp_agree(attention: str) -> None:
    with localdiff.load(threads=1, math="exact") as ours, localdiff.load(device="llamacpp", threads=1) as theirs:
        tokens = [*ours.tokenize("Once upon a time, there was a little girl named"), *[ours.spec.mask_token] * 30]
        expected, found = (model.logits(tokens, attention) for model in (ours, theirs))
    divergence = kl_divergence(expected, found)
    print(f"{attention}: KL {divergence:.1e}")
    assert divergence <= 1e-3  # of Q8_0 files (the limit for all of them)
    sure = np.sort(expected)[:, -1] - np.sort(expected)[:, -2] > 0.1
    assert (expected.argmax(1) == found.argmax(1))[sure].all()


@peer
@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2"])
def test_tiny_models_agree_in_llama_cpp(tmp_path: Path, arch: str) -> None:
    from localdiff.convert import convert

    tiny_checkpoint(arch, tmp_path / "hf")
    path = tmp_path / "model.gguf"
    convert(tmp_path / "hf", path, type="f32", diffusion="mask=1,shift=0,attn=full")
    with localdiff.load(path, threads=1) as ours, localdiff.load(path, device="llamacpp", threads=1) as theirs:
        tokens = [*ours.tokenize("a cat by the river"), 1, 1, 1]
        expected, found = (model.logits(tokens) for model in (ours, theirs))
    assert kl_divergence(expected, found) <= 1e-4
    assert (expected.argmax(1) == found.argmax(1)).all()


@peer
def test_greedy_texts_of_llama_cpp_are_the_engines() -> None:
    with localdiff.load(threads=1, math="exact") as ours, localdiff.load(device="llamacpp", threads=1) as theirs:
        for prompt in (PROMPT, "The cat", "Lily had a"):
            # longer texts go apart where two tokens are as likely: the same rounding as between two kernel rows
            one, other = (model.generate(prompt, seed=1, temperature=0, max_new_tokens=16) for model in (ours, theirs))
            assert one.text == other.text
        prompts = [PROMPT, "The cat"]
        alone = [theirs.generate(prompt, seed=2, max_new_tokens=40).text for prompt in prompts]
        assert [each.text for each in theirs.generate(prompts, seed=2, max_new_tokens=40)] == alone
