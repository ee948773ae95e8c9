"""Streams, several processes, recomputed activations, and the work that is reported."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TEXT, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("datasets", reason="datasets is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from test_adapt_train import interrupt, log_of  # noqa: E402

from localdiff.adapt import AdaptOptions, adapt  # noqa: E402
from localdiff.adapt.base import load_base, load_folder  # noqa: E402
from localdiff.adapt.data import load_tokens  # noqa: E402
from localdiff.adapt.flops import Counter  # noqa: E402
from localdiff.adapt.stream import StreamedData  # noqa: E402
from localdiff.errors import OptionError  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def base(tmp_path):
    tiny_checkpoint("llama", tmp_path / "base", scale=0.05, tie_word_embeddings=True)
    return tmp_path / "base"


@pytest.fixture
def files(tmp_path):
    """The same kind of text as .txt and as .jsonl."""
    documents = [f"{number} {text}" for number, text in enumerate(TEXT * 2, 500)]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(documents[:10]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in documents[10:]))
    return (str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))


@pytest.fixture
def options(base, files, tmp_path):
    return AdaptOptions(
        base=str(base), output=str(tmp_path / "out"), data=files, mask_token="<mask>", length=32, batch=2, steps=6,
        warmup=0, lr=1e-3, schedule="constant", anneal_steps=3, save_every=2, dtype="f32", threads=1, device="cpu",
    )  # fmt: skip


def test_a_stream_gives_the_text_packed_and_shuffled_and_continues_where_it_was(base, files, tmp_path):
    held = load_base(base, None)
    packed, _ = load_tokens([Path(file) for file in files], held.tokenizer, held.end_token, tmp_path / "tokens")
    make = lambda: StreamedData(files, held.tokenizer, held.end_token, 16, window=5, seed=2)  # noqa: E731
    stream = make()
    count = 3 * (len(packed) // 80) * 5  # three rounds and a bit less
    found = stream.batch(0, count).tokens.numpy()
    endless = np.concatenate([np.asarray(packed)] * 4)[: count * 16].reshape(-1, 5, 16)
    for window, expected in zip(found.reshape(-1, 5, 16), endless, strict=True):
        assert sorted(window.tolist()) == sorted(expected.tolist())
    assert found.reshape(-1).tolist() != endless.reshape(-1).tolist()
    for stop in (0, 1, 5, 23, count - 2):
        first = make()
        if stop:
            first.batch(0, stop)
        state = json.loads(json.dumps(first.state()))
        again = make()
        again.restore(state)
        assert np.array_equal(again.batch(stop, 2).tokens.numpy(), found[stop : stop + 2])


def test_processes_share_the_documents_of_a_stream(base, files):
    held = load_base(base, None)
    seen = []
    for rank in range(2):
        stream = StreamedData(files, held.tokenizer, held.end_token, 16, 4, 0, rank, 2)
        text = held.tokenizer.decode(stream.batch(0, 4 * 8).tokens.flatten().tolist())
        seen.append({number for number in range(500, 524) if f"{number} " in text})
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) > 12


def test_a_run_on_a_stream_resumes_with_the_identical_curve(options, tmp_path):
    options = replace(options, stream=8)
    adapt(options)
    halves = replace(options, output=str(tmp_path / "halves"))
    interrupt(halves, 3)
    adapt(replace(halves, resume=True))
    assert log_of(halves.output) == log_of(options.output)
    with pytest.raises(OptionError, match="absent.parquet: no such file"):
        adapt(replace(options, output=str(tmp_path / "none"), data=("absent.parquet",)))


def test_recomputed_activations_change_nothing(options, tmp_path):
    adapt(options)
    again = replace(options, output=str(tmp_path / "again"), checkpointing=True)
    adapt(again)
    np.testing.assert_allclose(log_of(again.output), log_of(options.output), rtol=1e-5)


CHILD = """
import sys
from dataclasses import replace
from localdiff.adapt import AdaptOptions, adapt
from localdiff.adapt.progress import TerminalProgress
from localdiff.cli import main
options = AdaptOptions(**eval(sys.argv[1]))
adapt(replace(options, steps=4), TerminalProgress())
main(["adapt", "--output", options.output, "--resume", "--steps", "6"])
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_sharded_processes_take_the_steps_of_one_with_twice_the_passes(options, tmp_path):
    one = replace(options, accumulate=2)
    adapt(one)
    two = replace(options, output=str(tmp_path / "two"))
    settings = {name: getattr(two, name) for name in two.__dataclass_fields__}
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, repr(settings)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [child.communicate(timeout=400)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], told[0][-2000:] + told[1][-2000:]
    assert [text.count("parameters;") for text in told] == [2, 0]  # one process talks
    assert [text.count("next: localdiff convert") for text in told] == [1, 0]
    np.testing.assert_allclose(np.array(log_of(two.output)), np.array(log_of(one.output)), rtol=2e-4, atol=1e-6)
    states = [load_folder(Path(each.output)).model.state_dict() for each in (one, two)]
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-3, atol=1e-4)
    sizes = [(Path(each.output) / "model.safetensors").stat().st_size for each in (one, two)]
    assert sizes[0] == sizes[1]  # the tied head is stored once


def test_the_work_of_a_pass_is_that_of_its_matrix_products(base):
    from torch.utils.flop_counter import FlopCounterMode

    from localdiff.adapt.batch import Batch
    from localdiff.adapt.bodies import Scorer
    from localdiff.adapt.objective import Objective, losses

    model = load_base(base, None).model
    model.set_attn_implementation("eager")
    tokens = torch.randint(2, 300, (2, 48))
    with FlopCounterMode(display=False) as counted:
        found = losses(
            Scorer(model), Batch(tokens), Objective("diffugpt", 1), 1.0, torch.Generator().manual_seed(1), torch.float32
        )
        found.loss.backward()
    counter = Counter(model, torch.device("cpu"), 0.5, torch.float32)
    work = counter.work(found.rows, found.row_length, found.scored)
    assert work == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert counter.rate(1e12, 4.0) == (0.25, 0.5)
    assert Counter(model, torch.device("cpu"), None, torch.float32).rate(1e12, 4.0) == (0.25, None)
