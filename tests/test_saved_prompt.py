"""Prompts on disk: what another process makes of them is what it would have made anyway, with fewer rows; what is
damaged, of another model, or of no use is refused and changes nothing."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

import localdiff
from localdiff.cache.state import reach
from localdiff.cli import main
from localdiff.engine import EngineModel, File, Request, Session
from localdiff.errors import EngineError, LocaldiffError, ModelFileError, OptionError
from localdiff.loading import EMBEDDED
from localdiff.model import Model

PROMPT = "Once upon a time there was a little girl who lived in a small house near the big river. One day"
ATTENTION = ["attn=block_causal,block=8", "attn=prefix_causal"]
OPTIONS = {"max_new_tokens": 16, "decoder": "threshold", "threshold": 0.4, "seed": 3}


def loaded(attention: str, **named: object) -> Model:
    return localdiff.load(threads=1, diffusion=attention, math="exact", **named)


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_loaded_prompt_changes_nothing_but_the_rows(attention: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    with loaded(attention) as first, loaded(attention) as second, loaded(attention) as third:
        expected = first.generate(PROMPT, **OPTIONS)
        length = len(first.tokenize(PROMPT))
        kept = first.save_prompt(PROMPT, path)
        assert kept == (length // 8 * 8 if "block=8" in attention else length) > 8
        assert second.load_prompt(path) == kept
        found = second.generate(PROMPT, **OPTIONS)
        assert (found.tokens, found.nfe) == (expected.tokens, expected.nfe)
        # with shift=1 the last given row predicts the first new token: it is computed where it was kept too
        assert found.rows == expected.rows - kept + (kept == length)
        batch = second.generate([PROMPT, PROMPT + " she"], **OPTIONS)
        assert batch[0].tokens == expected.tokens
        assert batch[1].tokens == first.generate(PROMPT + " she", **OPTIONS).tokens
        third.save_prompt(PROMPT, tmp_path / "again")  # computed for the purpose, not left by a generation
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_another_prompt_uses_what_is_common(tmp_path: Path) -> None:
    with loaded(ATTENTION[1]) as first, loaded(ATTENTION[1]) as second:
        first.save_prompt(PROMPT, tmp_path / "prompt")
        second.load_prompt(tmp_path / "prompt")
        other = PROMPT.replace("One day", "The girl was happy")
        expected, found = first.generate(other, **OPTIONS), second.generate(other, **OPTIONS)
        assert found.tokens == expected.tokens
        a, b = first.tokenize(PROMPT), first.tokenize(other)
        common = next(i for i in range(len(b)) if a[i : i + 1] != b[i : i + 1])
        with loaded(ATTENTION[1]) as fresh:
            rows = fresh.generate(other, **OPTIONS).rows
        assert expected.rows == found.rows == rows - common  # the first model has it in its session still


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    seen = "with full attention: every row of the prompt sees the whole canvas"
    with localdiff.load(threads=1) as model, pytest.raises(OptionError, match=seen):
        model.save_prompt(PROMPT, tmp_path / "x")
    with loaded(ATTENTION[0]) as model, pytest.raises(OptionError, match="less than a block of 8"):
        model.save_prompt("Once", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    with loaded(ATTENTION[0]) as model:
        model.save_prompt(PROMPT, path)
    tiny = write_tiny(tmp_path / "tiny.gguf")
    cases = [
        (localdiff.load(tiny, threads=1, diffusion=ATTENTION[0]), "another model"),
        (loaded(ATTENTION[1]), "another attention"),
        (loaded("attn=block_causal,block=16"), "another block length"),
        (localdiff.load(threads=1, diffusion=ATTENTION[0], math="fast"), "another arithmetic"),
        (loaded(ATTENTION[0], isa="scalar"), "another kernel row"),
    ]
    for model, reason in cases:
        with model, pytest.raises(ModelFileError, match=reason):
            model.load_prompt(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    draw = np.random.default_rng(1)
    with loaded(ATTENTION[0]) as model:
        model.save_prompt(PROMPT, path)
        whole = path.read_bytes()
        header = 12 + struct.unpack_from("<I", whole, 8)[0]
        for at in [*range(0, header, 3), *draw.integers(header, len(whole), 60).tolist()]:
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(draw.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(ModelFileError):
                model.load_prompt(path)
        for size in [*range(0, header, 7), *draw.integers(header, len(whole), 20).tolist()]:
            path.write_bytes(whole[:size])
            with pytest.raises(ModelFileError):
                model.load_prompt(path)
        # whatever a file says of itself, tokens are those of the vocabulary
        fields = json.loads(whole[12:header])
        body = struct.pack("<i", 1 << 20) + whole[header + 4 :]
        text = json.dumps(fields | {"sha256": hashlib.sha256(body).hexdigest()}).encode()
        path.write_bytes(whole[:8] + struct.pack("<I", len(text)) + text + body)
        with pytest.raises(ModelFileError, match="outside the vocabulary"):
            model.load_prompt(path)


# ---- the engine's side ----

TOKENS = np.arange(5, 25, dtype=np.int32)


def causal(length: int, compute: np.ndarray | None = None) -> Request:
    rows = np.arange(length, dtype=np.int32) if compute is None else compute
    return Request(TOKENS[:length], rows, attention="causal", compute=compute)


def test_a_restored_state_gives_the_same_logits() -> None:
    rest = np.arange(13, 20, dtype=np.int32)
    with File.open(EMBEDDED) as file, EngineModel(file) as model:
        with model.session(slots=2, slot_length=32, threads=1) as session:
            (expected,) = session.logits([causal(20)])
            state = session.state(13)
            info = model.info
            assert len(state) == 48 + 2 * 4 * info.layers * 13 * info.kv_heads * info.head_dim
            with pytest.raises(EngineError, match="position 20 was never computed"):
                session.state(21)
            with pytest.raises(EngineError, match="position 0 was never computed"):
                session.state(1, slot=1)
            with pytest.raises(EngineError, match="slot is 2, expected 0 to 1"):
                session.state(1, slot=2)
            with pytest.raises(EngineError, match="length is 33, expected 1 to 32"):
                session.state(33)
        with model.session(slots=2, slot_length=40, threads=1) as other:  # of another size
            assert other.restore(state, slot=1) == 13
            request = causal(20, rest)
            (found,) = other.logits([Request(**{**request.__dict__, "slot": 1})])
            np.testing.assert_array_equal(found, expected[13:])
            assert other.state(13, slot=1) == state
            with pytest.raises(EngineError, match="never computed"):
                other.logits([request])  # slot 0 holds nothing
            other.logits([Request(**{**causal(20).__dict__, "slot": 1})])
            other.restore(state, slot=1)
            with pytest.raises(EngineError, match="position 13 was never computed"):
                other.state(14, slot=1)  # what came behind is gone


def assert_refused(session: Session, data: bytes) -> None:
    with pytest.raises(LocaldiffError):
        session.restore(data)


def test_no_state_but_a_whole_one_is_taken() -> None:
    draw = np.random.default_rng(2)
    with File.open(EMBEDDED) as file, EngineModel(file) as model, model.session(slot_length=32, threads=1) as session:
        session.logits([causal(20)])
        state, before = session.state(5), session.state(20)
        for at in [*range(48), *draw.integers(48, len(state), 100).tolist()]:
            damaged = bytearray(state)
            damaged[at] ^= 1 << int(draw.integers(8))
            assert_refused(session, bytes(damaged))
        for _ in range(600):  # signs and exponents of two values: a sum that forgets would let some pass
            damaged = bytearray(state)
            for at in draw.integers(6, len(state) // 8, 2):
                damaged[8 * at + 7] ^= int(draw.integers(1, 256))
            if bytes(damaged) != state:
                assert_refused(session, bytes(damaged))
        for size in [0, 1, 7, 8, 47, 48, len(state) - 1, *draw.integers(48, len(state), 20).tolist()]:
            assert_refused(session, state[:size])
        assert_refused(session, state + b"\0")
        for _ in range(200):
            assert_refused(session, state[:8] + draw.bytes(int(draw.integers(0, 200))))
        assert session.state(20) == before
        with model.session(slot_length=4, threads=1) as short:
            assert_refused(short, state)
        other = pytest.raises(ModelFileError, match="computed in exact arithmetic, the session is in fast")
        with model.session(slot_length=32, threads=1, math="fast") as fast, other:
            fast.restore(state)
        infinite = np.frombuffer(state, "<f4").copy()
        infinite[20] = np.inf
        assert_refused(session, infinite.tobytes())


def test_what_a_prompt_may_see_is_not_what_follows_it() -> None:
    """Rows that are kept end before the rows that see the answer."""
    for kind, block in (("block_causal", 8), ("prefix_causal", 0)):
        request = Request(np.zeros(40, np.int32), np.empty(0, np.int32), attention=kind, block_length=block, prefix=19)
        kept = 16 if kind == "block_causal" else 19
        assert np.all(reach(request)[:kept] <= 19)
        assert reach(request)[kept] > 19


# ---- the command line ----


def test_prompt_cache_of_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt"
    flags = ["--diffusion", ATTENTION[1], "--seed", "3", "-n", "8", "--threads", "1", "--json"]

    def run(*more: str) -> tuple[int, str]:
        return main(["run", "-p", PROMPT, *flags, *more]), capsys.readouterr().err

    def result(*more: str) -> dict[str, object]:
        assert main(["run", "-p", PROMPT, *flags, *more]) == 0
        return dict(json.loads(capsys.readouterr().out))

    plain, first, second = result(), result("--prompt-cache", str(path)), result("--prompt-cache", str(path))
    assert plain["text"] == first["text"] == second["text"]
    assert plain["rows"] == first["rows"]
    assert int(str(second["rows"])) < int(str(first["rows"]))
    code, said = run("--prompt-cache", str(path), "--cache", "exact")
    assert (code, "needs the cache block" in said) == (2, True)
    code, said = run("--prompt-cache", str(tmp_path / "no" / "prompt"))
    assert (code, "its folder does not exist" in said) == (2, True)
    path.write_bytes(b"something else")
    code, said = run("--prompt-cache", str(path))
    assert (code, "not a saved prompt" in said) == (1, True)
    assert path.read_bytes() == b"something else"
    assert main(["run", PROMPT, "--prompt-cache", str(tmp_path / "new")]) == 2
    assert "with full attention" in capsys.readouterr().err
