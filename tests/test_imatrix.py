"""`imatrix`: what matrices read, against the float64 reference; its noise; the file, its readers, refusals."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from architectures import FAMILIES, make_model, metadata_of, tensors_of, write_gguf
from gguf_values import finish
from reference import Reference, activate, visible_to
from test_architectures import tokens_of
from tiny_gguf import write_tiny

from localdiff.cli import main
from localdiff.engine import EngineModel, File, Observation, Request
from localdiff.errors import ModelFileError, OptionError
from localdiff.presets import record_in_force
from localdiff.quantize import gather_imatrix
from localdiff.quantize.gathering import noised
from localdiff.quantize.imatrix import read_imatrix
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

# Fused q, k, v; plain; experts; experts and a shared one; a head of its own, windows, fused gates.
OBSERVED = ["DiffuGPT", "Dream", "SDAR-MoE", "LLaDA2", "ModernBERT"]
RELATIVE = 1e-5  # float32 activations against float64 ones


class Watched(Reference):
    """The reference, adding up the squares of what its matrices read; the head reads `scored` rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        matrices = {name: each.shape for name, each in self.tensors.items() if each.ndim > 1}
        self.squares = {name: np.zeros((int(np.prod(s[:-2])), s[-1])) for name, s in matrices.items()}
        self.rows = {name: np.zeros(len(each), np.uint64) for name, each in self.squares.items()}
        self.scored = np.zeros(0, np.int64)

    def read(self, name: str, x: np.ndarray, matrix: int = 0) -> None:
        self.squares[name][matrix] += np.square(x).reshape(-1, x.shape[-1]).sum(axis=0)
        self.rows[name][matrix] += x.size // x.shape[-1]

    def head(self, x: np.ndarray) -> np.ndarray:
        return super().head(x[self.scored])

    def _output(self, x: np.ndarray, matrix: str) -> np.ndarray:
        self.read(matrix, x)
        return super()._output(x, matrix)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        self.read(name + ".weight", x)
        return super()._linear(x, name)

    def _experts(self, block: str, h: np.ndarray) -> np.ndarray:
        gate, up, down = (f"{block}ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
        self.read(block + "ffn_gate_inp.weight", h)
        for row in h:
            for expert, _ in self._route(block, row):
                self.read(gate, row, expert)
                self.read(up, row, expert)
                hidden = activate(self.axes["act"], self.tensors[gate][expert] @ row) * (self.tensors[up][expert] @ row)
                self.read(down, hidden, expert)
        return super()._experts(block, h)

    def run(self, request: Request) -> None:
        """A request of the engine."""
        self.scored = np.maximum(request.score - 1, 0) if request.logit_shift else request.score
        length = len(request.tokens)
        self.logits(request.tokens, visible_to(request.attention, length, request.block_length))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, type) -> GGUF file of random weights."""
    folder = tmp_path_factory.mktemp("observed")

    def get(name: str, kind: str | None = None) -> Path:
        path = folder / f"{name}-{kind}.gguf"
        if not path.exists():
            family = FAMILIES[name]
            model = make_model(family, seed=5)
            write_gguf(path, family.arch, metadata_of(family, model), tensors_of(family, model), kind)
        return path

    return get


def requests_of(shift: bool = False) -> list[Request]:
    """Three canvases: all rows scored, some of them, none; each in a slot of its own."""
    rows = [np.arange(40), np.array([0, 1, 2, 7, 30]), np.array([], np.int64)]
    return [
        Request(tokens_of(length, seed), score.astype(np.int32), slot=seed, attention=kind, block_length=8,
                logit_shift=shift)
        for seed, (length, score, kind) in enumerate(zip((40, 33, 17), rows, ("full", "causal", "block_causal"),
                                                         strict=True))
    ]  # fmt: skip


def observe(path: Path, calls: list[list[Request]], threads: int = 2) -> dict[str, Observation]:
    shape = {"slots": 3, "slot_length": 40, "threads": threads}
    with File.open(path) as file, EngineModel(file, threads=2) as model, model.session(**shape) as session:
        session.observe()
        for requests in calls:
            session.propose(requests)
        return session.observations()


@pytest.mark.parametrize("name", OBSERVED)
def test_sums_are_those_of_the_reference(files: Any, name: str) -> None:
    requests = requests_of(shift=name == "Dream")
    found = observe(files(name), [requests])
    reference = Watched(files(name))
    for request in requests:
        reference.run(request)
    expected = {each: rows for each, rows in reference.rows.items() if rows.any()}
    assert set(found) == set(expected)
    for each, rows in expected.items():
        assert found[each].rows.tolist() == rows.tolist(), each
        close = {"rtol": RELATIVE, "atol": RELATIVE * 0.1 * reference.squares[each].mean()}
        np.testing.assert_allclose(found[each].squares, reference.squares[each], err_msg=each, **close)


@pytest.mark.parametrize("kind", [None, "Q8_0"])
@pytest.mark.parametrize("name", ["Dream", "LLaDA2"])
def test_sums_do_not_depend_on_threads_or_calls(files: Any, name: str, kind: str | None) -> None:
    requests = requests_of()
    whole = observe(files(name, kind), [requests], threads=1)
    for threads, calls in ((2, [requests]), (3, [[each] for each in requests]), (1, [requests[:1], requests[1:]])):
        other = observe(files(name, kind), calls, threads)
        assert list(other) == list(whole)
        for each, observation in whole.items():
            assert other[each].squares.tobytes() == observation.squares.tobytes(), each
            assert other[each].rows.tobytes() == observation.rows.tobytes(), each


def test_observing_begins_at_zero_and_changes_no_answer(files: Any) -> None:
    requests = requests_of()[:1]
    with File.open(files("LLaDA2")) as file, EngineModel(file) as model, model.session(slot_length=40) as session:
        plain = session.logits(requests)[0]
        assert session.observations() == {}
        session.observe()
        assert not any(each.rows.any() or each.squares.any() for each in session.observations().values())
        np.testing.assert_array_equal(session.logits(requests)[0], plain)
        once = session.observations()
        session.observe()
        session.logits(requests)
        again = session.observations()
        assert all(each.squares.tobytes() == again[name].squares.tobytes() for name, each in once.items())
        session.observe(False)
        np.testing.assert_array_equal(session.logits(requests)[0], plain)
        assert session.observations() == {}


# ---- noise ----


def test_noise_is_that_of_training() -> None:
    """Shares of masked tokens are uniform, and independent between canvases and tokens."""
    spec = DiffusionSpec(mask_token=3, logit_shift=True, attention="block_causal", block_length=4)
    tokens = np.arange(100, 400, dtype=np.int32)
    requests = [noised(tokens, spec, 1, index, given=2) for index in range(1000)]
    hits = np.array([each.tokens == 3 for each in requests])
    for request, hit in zip(requests, hits, strict=True):
        assert request.score.tolist() == np.flatnonzero(hit).tolist()
        assert (request.tokens[~hit] == tokens[~hit]).all()
        assert (request.attention, request.block_length, request.logit_shift) == ("block_causal", 4, True)
    assert not hits[:, :2].any()
    shares = np.sort(hits[:, 2:].mean(axis=1))
    distance = np.abs(shares - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < 1.63 / np.sqrt(1000)  # Kolmogorov-Smirnov at 1 %
    assert np.abs(hits[:, 2:].mean(axis=0) - 0.5).max() < 0.07
    again = noised(tokens, spec, 1, 17, given=2)
    assert again.tokens.tobytes() == requests[17].tokens.tobytes()
    assert noised(tokens, spec, 2, 17, given=2).tokens.tobytes() != again.tokens.tobytes()


# ---- the file ----

STORY = "hello, said the hen. hell is full of hens, said the fox, and the mill is full of foxes.\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", layers=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text((STORY * 3 + "<|endoftext|>\n") * 4)
    (folder / "b.jsonl").write_text('{"text": "the fox said hello"}\n' * 20)
    return [folder / "a.txt", folder / "b.jsonl"]


def canvases(model: Path, texts: list[Path], length: int) -> list[np.ndarray]:
    """The canvases of the two files in turn, by hand."""
    with File.open(model) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    documents = [[(STORY * 3).strip()] * 4, ["the fox said hello"] * 20]
    ids = [[token for each in part for token in (*tokenizer.encode(each), 261)] for part in documents]
    cut = [[np.array(x[i : i + length], np.int32) for i in range(0, len(x) - length + 1, length)] for x in ids]
    assert 2 < len(cut[1]) < len(cut[0])
    both = len(cut[1])
    return [each for pair in zip(cut[0], cut[1], strict=False) for each in pair] + cut[0][both:]


@pytest.mark.parametrize("causal", [False, True], ids=["diffusion", "causal"])
def test_the_file_holds_the_sums_of_all_canvases(tiny: Path, texts: list[Path], tmp_path: Path, causal: bool) -> None:
    out = tmp_path / "im.gguf"
    report = gather_imatrix(tiny, out, data=texts, length=32, seed=4, causal=causal, threads=2)
    expected = canvases(tiny, texts, 32)
    reference = Watched(tiny)
    with File.open(tiny) as file:
        spec = record_in_force(file.metadata, None).spec
    assert spec is not None
    masked = 0
    for index, tokens in enumerate(expected):
        request = Request(tokens, np.arange(32, dtype=np.int32), attention="causal")
        if not causal:
            request = noised(tokens, spec, 4, index)
            masked += len(request.score)
        reference.run(request)
    assert (report.chunks, report.length, report.masked, report.entries) == (len(expected), 32, masked, 15)
    assert report.notices == (f"the text was enough for {len(expected)} canvases of 256",)

    reader = gguf.GGUFReader(out)
    found = {key: field.contents() for key, field in reader.fields.items()}
    assert found["general.type"] == "imatrix"
    assert found["imatrix.datasets"] == ["a.txt", "b.jsonl"]
    assert (found["imatrix.chunk_count"], found["imatrix.chunk_size"]) == (len(expected), 32)
    tensors = {each.name: each for each in reader.tensors}
    named = {name for name, rows in reference.rows.items() if rows.any()}
    assert tensors.keys() == {name + end for name in named for end in (".in_sum2", ".counts")}
    for name in named:
        sums, counts = tensors[name + ".in_sum2"], tensors[name + ".counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert (sums.shape.tolist(), counts.shape.tolist()) == ([reference.squares[name].shape[-1], 1], [1, 1])
        assert counts.data.ravel().tolist() == reference.rows[name].tolist()
        np.testing.assert_allclose(sums.data, reference.squares[name], rtol=RELATIVE, err_msg=name)


def test_the_file_is_the_same_whatever_the_threads(tiny: Path, texts: list[Path], tmp_path: Path) -> None:
    made = []
    for threads, seed in ((1, 0), (3, 0), (1, 1)):
        gather_imatrix(tiny, tmp_path / "im.gguf", data=texts, chunks=5, threads=threads, seed=seed)
        made.append((tmp_path / "im.gguf").read_bytes())
    assert made[0] == made[1] != made[2]


def test_experts_have_a_row_each(files: Any, tmp_path: Path, texts: list[Path]) -> None:
    """A file with experts; those that no row went to have count 0 and are read as all alike."""
    model = write_moe(files("SDAR-MoE"), tmp_path / "moe.gguf")
    gather_imatrix(model, tmp_path / "im.gguf", data=texts[:1], chunks=1, length=8, diffusion="mask=3,shift=0")
    shapes = {each.name: each.shape.tolist() for each in gguf.GGUFReader(model).tensors}
    matrix = read_imatrix(tmp_path / "im.gguf")
    for name in ("blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight"):
        columns, _, experts = shapes[name]
        assert matrix.entries[name].shape == (experts, columns)
        assert matrix.of(name, tuple(reversed(shapes[name]))) is matrix.entries[name]


def write_moe(source: Path, path: Path) -> Path:
    """The file with a tokenizer whose ids are all within its vocabulary."""
    reader = gguf.GGUFReader(source)
    vocab = next(int(each.shape[1]) for each in reader.tensors if each.name == "token_embd.weight")
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    pieces = ["<unk>", "<s>", "</s>", "<m>", "\u2581", *"abcdefghijklmnopqrstuvwxyz.,"]
    pieces += [f"<{index}>" for index in range(vocab - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_types([2, 3, 3, 3, *[1] * (len(pieces) - 4)])
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for each in reader.tensors:
        writer.add_tensor(each.name, each.data, raw_dtype=each.tensor_type)
    finish(writer)
    return path


# ---- the command, and those who read its file ----


def test_quantize_reads_what_imatrix_wrote(
    tiny: Path, texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    im, out, plain = (str(tmp_path / name) for name in ("im.gguf", "out.gguf", "plain.gguf"))
    assert main(["imatrix", str(tiny), "-o", im, "--data", *map(str, texts), "--chunks", "3", "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "im.gguf: 15 tensors, 3 canvases of 64 tokens, " in said.err
    assert "% of the tokens masked" in said.err
    assert main(["quantize", str(tiny), out, "--type", "q4_0", "--imatrix", im]) == 0
    assert "no entry for token_embd.weight; " in capsys.readouterr().err
    assert main(["quantize", str(tiny), plain, "--type", "q4_0"]) == 0
    found = {key: field.contents() for key, field in gguf.GGUFReader(out).fields.items()}
    assert (found["quantize.imatrix.file"], found["quantize.imatrix.dataset"]) == ("im.gguf", "a.txt")
    assert (found["quantize.imatrix.chunks_count"], found["quantize.imatrix.entries_count"]) == (3, 15)
    pairs = zip(gguf.GGUFReader(out).tensors, gguf.GGUFReader(plain).tensors, strict=True)
    changed = {a.name for a, b in pairs if a.data.tobytes() != b.data.tobytes()}
    assert "blk.1.ffn_down.weight" in changed


def test_what_cannot_be_gathered_is_refused(tiny: Path, texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "im.gguf"
    plain = write_tiny(tmp_path / "plain.gguf", record=False)
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(OptionError, match=r"plain.gguf: has no diffusion record, .* --diffusion .* or --causal"):
        gather_imatrix(plain, out, data=texts)
    with pytest.raises(OptionError, match="too short for one canvas of 64 tokens; give more text or a smaller"):
        gather_imatrix(tiny, out, data=[tmp_path / "short.txt"])
    with pytest.raises(OptionError, match="--data .*none.txt: no such file"):
        gather_imatrix(tiny, out, data=[tmp_path / "none.txt"])
    with pytest.raises(OptionError, match="--data is missing"):
        gather_imatrix(tiny, out, data=[])
    with pytest.raises(OptionError, match="length is 65, expected 2 to 64, the longest canvas"):
        gather_imatrix(tiny, out, data=texts, length=65)
    with pytest.raises(OptionError, match="chunks is 0, expected at least 1"):
        gather_imatrix(tiny, out, data=texts, chunks=0)
    with pytest.raises(OptionError, match="seed is -1"):
        gather_imatrix(tiny, out, data=texts, seed=-1)
    with pytest.raises(OptionError, match="is read, so it cannot be the result"):
        gather_imatrix(tiny, tiny, data=texts)
    with pytest.raises(OptionError, match="its folder does not exist"):
        gather_imatrix(tiny, tmp_path / "none" / "im.gguf", data=texts)
    with pytest.raises(ModelFileError, match="none.gguf: no such file"):
        gather_imatrix(tmp_path / "none.gguf", out, data=texts)
    assert not out.exists()
    gather_imatrix(plain, out, data=texts, chunks=1, causal=True)
    gather_imatrix(plain, out, data=texts, chunks=1, diffusion="mask=262,shift=1")
    assert main(["imatrix", str(plain), "-o", str(out), "--data", str(texts[0])]) == 2
    assert main(["imatrix", str(tiny), "-o", str(out)]) == 2


def test_ctrl_c_leaves_the_old_file(tiny: Path, texts: list[Path], tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    (tmp_path / "im.gguf").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        gather_imatrix(tiny, tmp_path / "im.gguf", data=texts, progress=interrupt)
    assert (tmp_path / "im.gguf").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["im.gguf"]
