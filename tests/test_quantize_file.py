"""`quantize`: one GGUF file becomes another. What changes, what stays, importance, refusals, interruption."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_values import add_values, finish
from quantize_cases import ModelCase
from reference import Reference, kl_divergence, visible_to

from localdiff.cli import main
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import ModelFileError, OptionError
from localdiff.quantize import driver, quantize
from localdiff.quantize.encoding import encode
from localdiff.quantize.mixtures import MIXTURES, Candidate, choose_types, facts_of

T = gguf.GGMLQuantizationType
LLAMA = ModelCase(kv_heads=4)
MOE = ModelCase("qwen3moe", layers=1, experts=4)
EXTRA: dict[str, Any] = {  # of all kinds that a file may hold; the diffusion record among them
    "general.name": "small", "general.file_type": 1, "diffusion.shift_logits": True, "localdiff.stop_token_ids": [3, 4],
    "tokenizer.ggml.mask_token_id": 5, "tokenizer.ggml.tokens": ["a", "ü", ""], "tokenizer.ggml.scores": [0.5, -1.0],
}  # fmt: skip


def write_values(path: Path, case: ModelCase, kind: T = T.F16, **changed: np.ndarray) -> dict[str, np.ndarray]:
    """The case with random weights; returns them as they were. changed: values by the last part of a name."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, case.arch)
    add_values(writer, case.metadata | EXTRA)
    values = {}
    for name, shape in case.shapes.items():
        array = random.standard_t(5, shape) * (0.06 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        values[name] = changed.get(name.split(".")[-2], array.astype(np.float32))
        stored = kind if len(shape) > 1 and "gate_inp" not in name else T.F32
        writer.add_tensor(name, gguf.quants.quantize(values[name], stored), raw_dtype=stored)
    finish(writer)
    return values


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "source.gguf"
    write_values(path, LLAMA)
    return path


def fields(path: Path) -> dict[str, tuple[Any, Any]]:
    entries = gguf.GGUFReader(path).fields.items()
    return {key: (entry.types, entry.contents()) for key, entry in entries if not key.startswith("GGUF.")}


@pytest.mark.parametrize("mixture", ["q4_k_m", "Q2_K", "q3_k_l", "q6_k", "q4_0", "bf16", "f32", "iq4_xs"])
def test_matrices_change_and_all_else_stays(source: Path, tmp_path: Path, mixture: str) -> None:
    report = quantize(source, tmp_path / "out.gguf", type=mixture)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "out.gguf")
    candidates = [
        Candidate(each.name, tuple(reversed(each.shape.tolist())), each.tensor_type) for each in before.tensors
    ]
    chosen = choose_types(candidates, MIXTURES[mixture.lower()], facts_of(LLAMA.metadata))
    assert [(each.name, each.tensor_type) for each in after.tensors] == [
        (each.name, chosen[each.name].kind) for each in before.tensors
    ]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.shape.tolist() == new.shape.tolist()
        if old.tensor_type == new.tensor_type:
            assert old.data.tobytes() == new.data.tobytes()
        else:
            values = gguf.quants.dequantize(old.data, old.tensor_type)
            assert new.data.tobytes() == encode(new.name, values, new.tensor_type).tobytes()
    kept, found = fields(source), fields(tmp_path / "out.gguf")
    assert found.pop("general.file_type")[1] == MIXTURES[mixture.lower()].file_type
    assert found.pop("general.quantization_version")[1] == gguf.GGML_QUANT_VERSION
    del kept["general.file_type"]
    assert found == kept
    assert report.file_bytes == (tmp_path / "out.gguf").stat().st_size
    assert sum(report.types.values()) == len(before.tensors)
    assert report.notices == ()


def test_a_tensor_in_pieces_is_the_same(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(source, tmp_path / "whole.gguf", type="q4_k_s")
    monkeypatch.setattr(driver, "_CHUNK", 3000)
    seen: list[tuple[str, int, int]] = []
    quantize(source, tmp_path / "pieces.gguf", type="q4_k_s", threads=2, progress=lambda *each: seen.append(each))
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    done = [each[1] for each in seen]
    assert done == sorted(done)
    assert seen[-1][1] == seen[-1][2] == sum(int(each.n_bytes) for each in gguf.GGUFReader(source).tensors)
    assert len(seen) > 300


def test_the_result_runs(source: Path, tmp_path: Path) -> None:
    """Logits stay near those of the source, which random weights spread far: each error grows eightfold here."""
    requests = [Request(np.arange(16, dtype=np.int32), np.arange(16, dtype=np.int32))]

    def logits(path: Path) -> np.ndarray:
        with File.open(path) as file, EngineModel(file, threads=1) as model, model.session(rows=16) as session:
            return session.logits(requests)[0]

    exact = logits(source)
    spread = float(exact.std())
    for mixture, bound in (("q8_0", 0.1), ("q6_k", 0.25), ("q4_k_m", 0.8)):
        quantize(source, tmp_path / "out.gguf", type=mixture)
        assert np.sqrt(np.square(logits(tmp_path / "out.gguf") - exact).mean()) < bound * spread, mixture


def test_quantising_again_must_be_wanted(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q8.gguf", type="q8_0")
    with pytest.raises(OptionError, match="is stored as q8_0 already, .* give --allow-requantize"):
        quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", type="q4_0")
    assert not (tmp_path / "out.gguf").exists()
    quantize(tmp_path / "q8.gguf", tmp_path / "same.gguf", type="q8_0")  # nothing is reduced
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()
    report = quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", type="q4_0", allow_requantize=True)
    assert report.types["q4_0"] > 10


def test_rows_that_are_no_blocks_are_told(tmp_path: Path) -> None:
    write_values(tmp_path / "in.gguf", ModelCase(dim=288, heads=9, kv_heads=9))
    report = quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q4_k_s")
    assert any("not divisible by 256, stored as q5_0 instead of q4_k: token_embd" in each for each in report.notices)
    assert report.types == {"f32": 5, "q5_0": 11, "q5_1": 2, "q4_k": 2, "q8_0": 1}


# ---- importance ----


def write_imatrix(path: Path, entries: dict[str, np.ndarray], counts: float = 4, kind: str = "imatrix") -> None:
    """entries: importance [matrices, columns] by tensor."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 9)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, importance in entries.items():
        writer.add_tensor(name + ".in_sum2", (importance * counts).astype(np.float32))
        writer.add_tensor(name + ".counts", np.full((len(importance), 1), counts, np.float32))
    finish(writer)


def importance_of(case: ModelCase, *but: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(8)
    return {
        name: np.exp(random.standard_normal((shape[0] if len(shape) == 3 else 1, shape[-1]))).astype(np.float32)
        for name, shape in case.shapes.items()
        if len(shape) > 1 and name not in but
    }


@pytest.mark.parametrize("case", [LLAMA, MOE], ids=["llama", "experts"])
def test_importance_by_column_and_expert(case: ModelCase, tmp_path: Path) -> None:
    write_values(tmp_path / "in.gguf", case)
    entries = importance_of(case, "token_embd.weight")
    write_imatrix(tmp_path / "im.gguf", entries)
    report = quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q4_k_m", imatrix=tmp_path / "im.gguf")
    before = {each.name: each for each in gguf.GGUFReader(tmp_path / "in.gguf").tensors}
    after = gguf.GGUFReader(tmp_path / "out.gguf")
    compared = 0
    for new in after.tensors:
        old = before[new.name]
        if old.tensor_type == new.tensor_type or new.name not in entries:
            continue
        values = gguf.quants.dequantize(old.data, old.tensor_type).reshape(len(entries[new.name]), -1, old.shape[0])
        parts = [encode("x", part, new.tensor_type, row) for part, row in zip(values, entries[new.name], strict=True)]
        assert new.data.tobytes() == b"".join(part.tobytes() for part in parts)
        assert new.data.tobytes() != encode("x", values, new.tensor_type).tobytes()
        compared += 1
    assert compared >= 7
    assert any("no entry for token_embd.weight" in each for each in report.notices)
    found = fields(tmp_path / "out.gguf")
    assert found["quantize.imatrix.file"][1] == "im.gguf"
    assert found["quantize.imatrix.dataset"][1] == "text.txt"
    assert found["quantize.imatrix.entries_count"][1] == len(entries)
    assert found["quantize.imatrix.chunks_count"][1] == 9


def test_an_expert_that_never_ran_counts_its_columns_alike(tmp_path: Path) -> None:
    write_values(tmp_path / "in.gguf", MOE)
    entries = importance_of(MOE)
    write_imatrix(tmp_path / "im.gguf", entries, counts=0)
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q8_0", imatrix=tmp_path / "im.gguf")
    quantize(tmp_path / "in.gguf", tmp_path / "plain.gguf", type="q8_0")
    plain, weighted = (gguf.GGUFReader(tmp_path / name) for name in ("plain.gguf", "out.gguf"))
    for a, b in zip(plain.tensors, weighted.tensors, strict=True):
        difference = gguf.quants.dequantize(a.data, a.tensor_type) - gguf.quants.dequantize(b.data, b.tensor_type)
        assert np.abs(difference).mean() < 1e-4


def test_other_files_are_no_importance_matrices(source: Path, tmp_path: Path) -> None:
    im, out = tmp_path / "im.gguf", tmp_path / "out.gguf"

    def refused(message: str) -> None:
        with pytest.raises(ModelFileError, match=message):
            quantize(source, out, type="q4_k_m", imatrix=im)
        assert not out.exists()

    im.write_bytes(b"\x02\x00\x00\x00old")
    refused("is not a GGUF file, .*; an older one becomes it with llama-imatrix")
    write_values(im, LLAMA)
    refused("general.type is '', expected 'imatrix'")
    write_imatrix(im, {}, kind="imatrix")
    refused("holds no entries")
    write_imatrix(im, {"blk.0.attn_q.weight": np.ones((1, 128), np.float32)})
    refused(r"the entry of blk.0.attn_q.weight has shape \[1, 128\], expected \[1, 256\]; .* another model")
    write_imatrix(im, {"blk.9.attn_q.weight": np.ones((1, 256), np.float32)})
    refused("has no entry for any matrix of .*; it was gathered on another model")
    write_imatrix(im, {"blk.0.attn_q.weight": np.full((1, 256), -1, np.float32)})
    refused("blk.0.attn_q.weight holds values that are negative or not finite")


# ---- refusals and interruption ----


def test_what_cannot_be_quantised_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is the source, so it cannot be the result"):
        quantize(source, source, type="q8_0")
    with pytest.raises(ModelFileError, match="no such file"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", type="q8_0")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelFileError, match="text.gguf"):
        quantize(tmp_path / "text.gguf", tmp_path / "out.gguf", type="q8_0")


def test_a_model_in_parts_becomes_one_file(source: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(source)
    for part in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"in-0000{part + 1}-of-00002.gguf", "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        add_values(writer, LLAMA.metadata if part == 0 else {})
        for each in reader.tensors[part::2]:
            writer.add_tensor(each.name, each.data, raw_dtype=each.tensor_type)
        finish(writer)
    first = tmp_path / "in-00001-of-00002.gguf"
    report = quantize(first, tmp_path / "out.gguf", type="q4_k_m")
    quantize(source, tmp_path / "whole.gguf", type="q4_k_m")
    whole = {each.name: each.data.tobytes() for each in gguf.GGUFReader(tmp_path / "whole.gguf").tensors}
    assert {each.name: each.data.tobytes() for each in gguf.GGUFReader(tmp_path / "out.gguf").tensors} == whole
    assert not any(key.startswith("split.") for key in fields(tmp_path / "out.gguf"))
    assert report.source_bytes == sum(path.stat().st_size for path in tmp_path.glob("in-*"))
    with pytest.raises(OptionError, match="is the source, so it cannot be the result"):
        quantize(first, tmp_path / "in-00002-of-00002.gguf", type="q8_0")


def test_a_failure_or_ctrl_c_leaves_the_old_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    damaged = np.zeros((256, 512), np.float32)
    damaged[200, 3] = np.nan
    write_values(tmp_path / "in.gguf", LLAMA, kind=T.F32, ffn_down=damaged)
    with pytest.raises(ModelFileError, match="blk.0.ffn_down.weight: row 200, column 3 holds nan, which is not finite"):
        quantize(tmp_path / "in.gguf", out, type="q4_k_m")

    def interrupt(name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, type="q4_k_m", progress=interrupt)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]
    with pytest.raises(OptionError, match="exists already"):
        quantize(source, out, type="q4_k_m", overwrite=False)


@pytest.mark.parametrize(("math", "bound"), [("exact", 1e-3), ("fast", 1e-2)])
@pytest.mark.parametrize("kind", [T.Q2_K, T.Q3_K, T.IQ4_NL, T.IQ4_XS, T.MXFP4])
def test_low_types_multiply_as_the_dequantised_weights(
    source: Path, tmp_path: Path, kind: T, math: str, bound: float
) -> None:
    """Against gguf's own decoding and float64; what remains is the 8-bit input (fast: and folded weights)."""
    path = tmp_path / "out.gguf"
    if kind == T.MXFP4:
        write_values(path, LLAMA, kind)
    else:
        quantize(source, path, type="q3_k_s" if kind == T.Q3_K else kind.name.lower())
    assert sum(tensor.tensor_type == kind for tensor in gguf.GGUFReader(path).tensors) >= 9
    tokens = np.random.default_rng(3).integers(0, 96, 24, dtype=np.int32)
    expected = Reference(path).logits(tokens, visible_to("full", 24))
    with File.open(path) as file, EngineModel(file, threads=1) as model, model.session(rows=24, math=math) as session:
        found = session.logits([Request(tokens=tokens, score=np.arange(24, dtype=np.int32))])[0]
    divergence = kl_divergence(expected, found)
    print(f"{kind.name} {math}: KL {divergence:.1e}")
    assert 0 <= divergence <= bound


def test_types_without_kernels_are_refused_by_name_when_run(tmp_path: Path) -> None:
    write_values(tmp_path / "out.gguf", LLAMA, T.TQ2_0)
    with File.open(tmp_path / "out.gguf") as file:
        assert file.tensor("blk.0.attn_q.weight").type == "TQ2_0"
        with pytest.raises(ModelFileError, match=r"\S+: type TQ2_0 cannot be run"):
            EngineModel(file)


# ---- the command ----


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(out), "--type", "Q4_K_M", "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "q4_k_m, " in said.err
    with File.open(out) as file:
        bits = 8 * sum(tensor.nbytes for tensor in file.tensors) / sum(math.prod(each.shape) for each in file.tensors)
    assert f" {bits:.2f} bits per parameter; tensors " in said.err
    assert main(["quantize", str(out), str(tmp_path / "again.gguf"), "--type", "q2_k"]) == 2
    assert "--allow-requantize" in capsys.readouterr().err
    assert main(["quantize", str(source), str(out), "--type", "q9"]) == 2
    assert "type 'q9' cannot be written; choose one of" in capsys.readouterr().err
    assert main(["quantize", str(source), str(out)]) == 2
    assert "--type" in capsys.readouterr().err
    assert main(["quantize", str(source), str(out), "--type", "q8_0", "--threads", "0"]) == 2
    assert "threads is 0" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "none"), str(out), "--type", "q8_0"]) == 1


def test_ctrl_c_ends_the_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "encode", interrupted)
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "--type", "q8_0"]) == 130
    assert list(tmp_path.iterdir()) == []
