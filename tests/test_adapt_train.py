"""Whole training runs on tiny models: resuming, interruption, checkpoints, results and refusals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TEXT, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from localdiff.adapt import AdaptOptions, adapt  # noqa: E402
from localdiff.adapt.base import load_base, load_folder  # noqa: E402
from localdiff.adapt.checkpoint import list_checkpoints, read_state  # noqa: E402
from localdiff.adapt.progress import SilentProgress, TerminalProgress, clock  # noqa: E402
from localdiff.errors import LocaldiffError, ModelFileError, OptionError  # noqa: E402
from localdiff.spec import DiffusionSpec  # noqa: E402

STORIES = [
    "Once upon a time, there was a little girl named Lily. She had a red ball and a small dog.",
    "One day, a boy named Tom went to the park. He saw a big tree. He was very happy.",
    "The sun was warm. Lily and Tom played with the ball all day. Then they went home.",
    "The dog ran to the tree. It wanted to play. Tom said, Come here, little dog!",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint("gpt2", folder, scale=0.05)  # GPT-2 has dropout: torch's own generator matters too
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXT * 4), encoding="utf-8")
    return path


@pytest.fixture
def options(base, text, tmp_path):
    return AdaptOptions(
        base=str(base),
        output=str(tmp_path / "out"),
        data=(str(text),),
        mask_token="<mask>",
        length=32,
        batch=4,
        steps=20,
        warmup=4,
        anneal_steps=10,
        lr=1e-3,
        save_every=5,
        threads=1,
    )


def log_of(folder):
    lines = [json.loads(line) for line in (Path(folder) / "train_log.jsonl").read_text().splitlines()]
    names = ("step", "loss", "plain_loss", "grad_norm", "lr")
    return [tuple(line[name] for name in names) for line in lines if "loss" in line]


class StopAfter(SilentProgress):
    """Presses Ctrl-C after a step."""

    def __init__(self, step):
        self.last = step

    def step(self, report):
        if report.step == self.last:
            os.kill(os.getpid(), signal.SIGINT)


def interrupt(options, step):
    """A run that Ctrl-C ends after a step."""
    with pytest.raises(KeyboardInterrupt):
        adapt(options, StopAfter(step))


@pytest.mark.parametrize(("dtype", "accumulate"), [("f32", 1), ("bf16", 2)])
def test_a_resumed_run_takes_exactly_the_steps_of_an_uninterrupted_one(options, tmp_path, dtype, accumulate):
    options = replace(options, dtype=dtype, accumulate=accumulate, batch=2)
    adapt(options)
    halves = replace(options, output=str(tmp_path / "halves"))
    interrupt(halves, 12)
    assert [path.name for path in list_checkpoints(Path(halves.output))] == ["step-00000010", "step-00000012"]
    assert not (tmp_path / "halves" / "config.json").exists()
    adapt(replace(halves, resume=True))
    assert log_of(halves.output) == log_of(options.output)
    assert len(log_of(halves.output)) == 20
    weights = [load_folder(Path(o.output)).model.state_dict() for o in (options, halves)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ctrl_c_is_answered_at_once_and_obeyed_after_the_step(options, capfd):
    class Pressing(TerminalProgress):
        def step(self, report):
            super().step(report)
            if report.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        adapt(options, Pressing())
    told = capfd.readouterr().err
    assert "\nstopping after this step; Ctrl-C again: at once" in told
    assert told.endswith("stopped after step 3; the checkpoint is written, --resume continues\n")
    assert [path.name for path in list_checkpoints(Path(options.output))] == ["step-00000003"]


def test_time_left_counts_days_as_hours():
    assert [clock(seconds) for seconds in (0.4, 3661, 100 * 3600 + 59)] == ["00:00:00", "01:01:01", "100:00:59"]


def test_a_run_goes_on_with_the_settings_it_was_started_with(options):
    interrupt(options, 7)
    resumed = AdaptOptions.resumed(options.output, {"keep": 3})
    assert resumed == replace(options, resume=True, keep=3)
    assert adapt(resumed).steps == options.steps
    with pytest.raises(OptionError, match="holds no run"):
        AdaptOptions.resumed(options.output + "-missing", {})


def test_the_result_is_an_hf_folder_with_its_record_log_and_curve(options, base):
    result = adapt(replace(options, diffusion="decoder=topk,steps=32", eval_data=options.data, eval_every=10))
    folder = result.folder
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == result.parameters
    spec = DiffusionSpec.from_json((folder / "localdiff.json").read_text())
    mask = load_base(base, None).tokenizer.token_to_id("<mask>")
    assert spec == DiffusionSpec(
        mask, True, canvas_max=32, stop_tokens=(0,), decoder="topk", steps=32, attention="full"
    )
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out" in line] == [10, 20]
    assert [line["open_fraction"] for line in lines if "loss" in line][:10] == pytest.approx(np.arange(1, 11) / 10)
    with pytest.raises(OptionError, match="already holds a run"):
        adapt(options)


def test_ar_trains_from_scratch_and_writes_no_record(text, base, tmp_path):
    options = AdaptOptions(
        shape="smoke",
        tokenizer=str(base / "tokenizer.json"),
        output=str(tmp_path / "ar"),
        data=(str(text),),
        method="ar",
        batch=8,
        steps=60,
        warmup=5,
        lr=3e-3,
        threads=1,
    )
    adapt(options)
    losses = [entry[1] for entry in log_of(options.output)]
    assert losses[0] == pytest.approx(np.log(320), rel=0.05)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert not (tmp_path / "ar" / "localdiff.json").exists()


def test_a_new_mask_token_gets_a_row_of_its_own(options, base):
    adapt(replace(options, mask_token="[M]", steps=1))
    before, after = load_folder(base), load_folder(Path(options.output))
    assert after.vocabulary == before.vocabulary + 1
    assert after.tokenizer.token_to_id("[M]") == before.vocabulary
    state = read_state(list_checkpoints(Path(options.output))[-1])
    assert state.mask_token == before.vocabulary
    start = load_base(base, None)
    from localdiff.adapt.base import choose_mask

    assert choose_mask(start, "[M]", None) == before.vocabulary
    table = start.model.get_input_embeddings().weight
    torch.testing.assert_close(table[-1], table[:-1].mean(dim=0))
    assert start.model.get_output_embeddings().weight is table  # the head stays tied
    assert choose_mask(load_base(base, None), None, None) == start.tokenizer.token_to_id("<mask>")  # its own
    with pytest.raises(OptionError, match="--mask-id is 320, but the vocabulary has ids 0 to 319"):
        choose_mask(load_base(base, None), None, 320)


CHILD = """
import sys
from localdiff.adapt import AdaptOptions, adapt
adapt(AdaptOptions(**eval(sys.argv[1])))
"""


def test_a_killed_run_leaves_whole_checkpoints_and_resumes(options, tmp_path):
    straight = replace(options, steps=40, save_every=1, keep=1)
    settings = {name: getattr(straight, name) for name in straight.__dataclass_fields__}
    child = subprocess.Popen([sys.executable, "-c", CHILD, repr(settings)], env={**os.environ, "PYTHONPATH": _root()})
    output = Path(straight.output)
    deadline = time.monotonic() + 120
    while not list_checkpoints(output) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    child.kill()
    child.wait()
    found = list_checkpoints(output)
    assert found
    for folder in found:  # whole: state, weights and optimiser can be read
        assert read_state(folder).step >= 1
        load_folder(folder)
        torch.load(folder / "trainer.pt", weights_only=True)
    adapt(replace(straight, resume=True))
    whole = replace(straight, output=str(tmp_path / "whole"), save_every=40)
    adapt(whole)
    assert log_of(output) == log_of(whole.output)
    assert not list(output.glob("checkpoints/.part-*"))


def _root():
    return str(Path(__file__).resolve().parent.parent)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 5e-4}, "--lr is 0.0005, but the run so far used 0.001"),
        ({"seed": 1}, "--seed is 1"),
        ({"steps": 3}, "--steps is 3, but step-00000005 has taken 5 already"),
        ({"data": "other"}, "--data is"),
    ],
)
def test_resuming_another_run_is_refused(options, change, sentence, tmp_path):
    interrupt(options, 5)
    if change.get("data"):
        (tmp_path / "b.txt").write_text("other text " * 100)
        change = {"data": (str(tmp_path / "b.txt"),)}
    with pytest.raises(OptionError, match=sentence):
        adapt(replace(options, resume=True, **change))


def test_a_full_disk_ends_the_run_with_a_sentence_and_no_half_checkpoint(options):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # writing beyond it fails
    try:
        with pytest.raises(ModelFileError, match="could not be written"):
            adapt(replace(options, steps=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list((Path(options.output) / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("steps", "warmup", "annealing"), [(30, 6, 15), (2000, 400, 1000), (50_000, 2000, 10_000)])
def test_short_runs_warm_up_and_open_their_attention_in_time(options, steps, warmup, annealing):
    short = replace(options, steps=steps, warmup=None, anneal_steps=None)
    assert (short.warming, short.annealing) == (warmup, annealing)
    longer = replace(short.settled(), steps=2 * steps)  # a continuation
    assert (longer.warming, longer.annealing) == (warmup, annealing)


def test_a_checkpoint_of_another_version_is_refused(options):
    interrupt(options, 2)
    path = list_checkpoints(Path(options.output))[-1] / "state.json"
    state = json.loads(path.read_text())
    del state["format"]
    path.write_text(json.dumps(state))
    with pytest.raises(ModelFileError, match="not a checkpoint of this version"):
        adapt(replace(options, resume=True))


def test_resuming_with_changed_text_is_refused(options, text, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    options = replace(options, data=(str(copy),))
    interrupt(options, 2)
    copy.write_text(copy.read_text() + " more")
    with pytest.raises(OptionError, match="the training text is not the one"):
        adapt(replace(options, resume=True))


def test_what_cannot_start_is_refused_and_nothing_is_written(options, base, tmp_path):
    with pytest.raises(OptionError, match="holds no checkpoint"):
        adapt(replace(options, resume=True))
    with pytest.raises(OptionError, match="--length is 4096, but the base has a context of 128"):
        adapt(replace(options, length=4096))
    with pytest.raises(ModelFileError, match="no such file or folder"):
        adapt(replace(options, base=str(tmp_path / "absent")))
    with pytest.raises(OptionError, match="attention follows from the training"):
        adapt(replace(options, diffusion="attn=causal"))
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "albert").mkdir()
    (tmp_path / "albert" / "config.json").write_text(json.dumps({**config, "architectures": ["AlbertForMaskedLM"]}))
    with pytest.raises(ModelFileError, match="architecture AlbertForMaskedLM is not supported"):
        adapt(replace(options, base=str(tmp_path / "albert")))
    assert not Path(options.output).exists()


def test_a_loss_that_is_no_number_ends_the_run(options, base, tmp_path):
    broken = load_folder(base)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[5] = float("inf")
    (tmp_path / "broken").mkdir()
    broken.save(tmp_path / "broken")
    with pytest.raises(LocaldiffError, match="the loss is nan at step 1; start again with a smaller --lr"):
        adapt(replace(options, base=str(tmp_path / "broken")))
    assert not list_checkpoints(Path(options.output))
