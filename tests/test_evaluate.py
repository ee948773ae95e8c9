"""`eval`: data sets, metrics, every task on models with known answers, interrupting and resuming, the command line."""

import bz2
import dataclasses
import gzip
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, Logits, point_mass, random_table
from text_metadata import tiny_bpe
from tiny_gguf import CHAT_TEMPLATE, write_tiny

from localdiff.cli import main
from localdiff.errors import OptionError
from localdiff.evaluate import EvalOptions, evaluate, reading, run
from localdiff.evaluate.execution import run_program
from localdiff.evaluate.filling import Filling
from localdiff.evaluate.metrics import METRICS, final_number, mean_and_error, same_number, token_entropy
from localdiff.evaluate.options import NOT_OF_GENERATION
from localdiff.evaluate.protocol import Setting
from localdiff.evaluate.reading import Blank, Choice
from localdiff.evaluate.subject import LEFT_TO_RIGHT, Subject, open_subject
from localdiff.evaluate.tasks import TASKS
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

TOKENIZER = Tokenizer.from_gguf(tiny_bpe())
VOCAB, BOS, MASK = TOKENIZER.vocab_size, 260, 262
STORY = "The cow ran. It saw a hen. They sat. The end."


def ids(*parts: str) -> list[int]:
    """A canvas that begins with bos and holds the parts, as the composer makes it."""
    return [BOS, *(token for part in parts for token in TOKENIZER.encode_parts(["", part], add_bos=False))]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake(logits) makes evaluate() find a model that is this function; returns its engine."""

    def install(logits: Logits, left_to_right: bool = False, template: str = "", **spec: Any) -> FakeEngine:
        path = tmp_path / "fake.gguf"
        path.write_bytes(b"GGUF")
        engine = FakeEngine(logits, VOCAB)
        record = DiffusionSpec(MASK, **(dict(LEFT_TO_RIGHT) if left_to_right else {"logit_shift": True, **spec}))
        metadata = tiny_bpe(**({"tokenizer.chat_template": template} if template else {}))
        model = Model(engine, metadata, record, path, math="exact")  # type: ignore[arg-type]
        subject = Subject(model, record, left_to_right)
        monkeypatch.setattr(run, "open_subject", lambda *arguments, **named: nullcontext(subject))
        return engine

    return install


def written(path: Path, *lines: Any) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


# ---- data sets ----


def test_stories_lose_their_middle_sentence(tmp_path: Path) -> None:
    text = '"Who is it?" she said. A hen!\n\nMr. Fox ran.  Two.\nThree. Four. "A"? B! C.\n<|endoftext|>\nNo. Yes.\n'
    first, second = reading.stories(Path(written(tmp_path / "a.txt", text)))
    assert first == Blank('"Who is it?" she said. A hen!\n\n', "Mr. Fox ran.", "  Two.\nThree.")
    assert second == Blank("Four.", ' "A"?', " B! C.")
    (tmp_path / "d.txt").write_text("A. B. C. D. E. F. G. H.\n<|endoftext|>\nI. J. K.\n<|endoftext|>\n")
    assert [each.target for each in reading.stories(tmp_path / "d.txt")] == [" C.", " J.", " G."]
    (found,) = reading.stories(Path(written(tmp_path / "c.txt", "One. (Two!) Three...")))
    assert found == Blank("One.", " (Two!)", " Three...")
    rows = written(tmp_path / "b.jsonl", {"before": "a", "target": " b", "after": " c"})
    assert list(reading.stories(Path(rows))) == [Blank("a", " b", " c")]


def test_the_other_formats(tmp_path: Path) -> None:
    words = written(tmp_path / "lambada.txt", "he sat on the mat", "", "word")
    assert list(reading.last_words(Path(words))) == [Blank("he sat on the", " mat")]
    items = tmp_path / "hellaswag.txt.bz2"
    items.write_bytes(bz2.compress(b"A man. he\n2\na\nb\nc\nd\n\n"))
    assert list(reading.hellaswag(items)) == [Choice("A man. he", (" a", " b", " c", " d"), 2)]
    pairs = written(
        tmp_path / "piqa.jsonl",
        {"goal": "Eat", "sol1": "soup", "sol2": "stone", "label": 0},
        {"context": "x", "choices": ["1", "2", "3"], "label": 2},
    )
    assert [(each.endings, each.label) for each in reading.choices(Path(pairs))] == [
        ((" soup", " stone"), 0), ((" 1", " 2", " 3"), 2)
    ]  # fmt: skip
    row = {"task_id": "T/0", "prompt": "p", "suffix": "s", "canonical_solution": "c", "test": "t", "entry_point": "f"}
    code = tmp_path / "code.jsonl.gz"
    code.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert list(reading.code_lines(code)) == [Blank("p", "c", "s", {"task_id": "T/0", "test": "t", "entry_point": "f"})]
    problem = written(tmp_path / "gsm.jsonl", {"question": "Q? ", "answer": "So 1,200.\n#### 1,200"})
    assert [each.answer for each in reading.problems(Path(problem))] == ["1,200"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.bz2"
    path.write_bytes(bz2.compress(b"some words " * 50)[:-12] + b"damaged bytes")
    with pytest.raises(OptionError, match="the compressed file is damaged"):
        list(reading.last_words(path))


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        ("choices", '{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}\n', "line 1 is no item"),
        ("choices", "[1]\n", "line 1 is not a JSON object"),
        ("problems", '{"question": "a", "answer": "b"}\n', "has no ####"),
        ("problems", '{"question": "a"}\n', 'line 1 has no text "answer"'),
        ("hellaswag", "a\n7\nb\nc\nd\ne\n", "line 1 does not begin an item"),
        ("code_lines", "\n\n{\n", "line 3 is not a JSON object"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, reader: str, text: str, message: str) -> None:
    path = tmp_path / ("x.txt" if reader == "hellaswag" else "x.jsonl")
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        list(getattr(reading, reader)(path))


def test_the_real_data_sets_are_read(data_dir: Path) -> None:
    folder = data_dir / "eval"
    counts = {
        "gsm8k-test.jsonl": ("problems", 1319), "hellaswag_val_full.txt.bz2": ("hellaswag", 10042),
        "lambada-test.txt": ("last_words", 5153), "humaneval-single-line-infilling.jsonl.gz": ("code_lines", 1033),
    }  # fmt: skip
    for name, (reader, count) in counts.items():
        if not (folder / name).is_file():
            pytest.skip(f"no {folder / name}")
        assert len(list(getattr(reading, reader)(folder / name))) == count, name


# ---- metrics ----


def test_metrics() -> None:
    assert METRICS["exact"](" a b\n", "a b") == 1.0
    assert METRICS["exact"]("a", "b") == 0.0
    assert METRICS["rouge1"]("the cat sat", "the cat ran") == pytest.approx(2 / 3)
    assert METRICS["rouge2"]("the cat sat", "the cat ran") == pytest.approx(1 / 2)
    assert METRICS["rougeL"]("a x b", "a b c d") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert final_number("It is 3 + 4 = 7.\n#### 1,234.50 dollars 9") == "1,234.50"
    assert final_number("She has $5, then 8.\n\nQuestion: 99") == "8"
    assert final_number("none") is None
    assert same_number("$1,234.50", "1234.5")
    assert not same_number("12", "13")
    assert not same_number(None, "13")
    assert token_entropy([1, 1, 2, 2]) == pytest.approx(math.log(2))
    assert token_entropy([5]) == 0.0
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert math.isnan(mean_and_error([1.0])[1])


def test_programs_run_within_limits() -> None:
    assert run_program("assert 1 + 1 == 2") == "passed"
    assert run_program("assert 1 + 1 == 3") == "failed: AssertionError"
    assert "MemoryError" in run_program("x = 'a' * (3 << 30)")


# ---- tasks on models with known answers ----


def rows_of(task: str, data: str = "", generation: GenerateOptions | None = None, **named: Any) -> dict[str, Any]:
    result = evaluate("fake.gguf", None, generation, task=task, data=(data,) if data else (), **named)
    (row,) = result.rows
    return row


def test_nll_of_a_uniform_model_and_of_a_certain_one(fake: Any, tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", "abcdefgh" * 20)
    fake(lambda request: np.zeros((len(request.tokens), VOCAB)))
    row = rows_of("nll", text, length=32)
    assert row["nats_per_token"] == pytest.approx(math.log(VOCAB))
    assert (row["likelihood"], row["perplexity"]) == ("bound", pytest.approx(VOCAB))
    assert (row["sequences"], row["tokens"], row["error"]) == (5, 5 * 31, pytest.approx(0.0, abs=1e-6))
    row = rows_of("nll", text, length=32, context=16, limit=2)
    assert (row["sequences"], row["tokens"]) == (2, 32)
    tokens = TOKENIZER.encode("abcdefgh" * 5, add_bos=False)
    lead = [BOS] if TOKENIZER.add_bos else []
    fake(point_mass([*lead, *tokens], VOCAB, shift=True), left_to_right=True)
    row = rows_of("nll", text, length=24 + len(lead), limit=1)
    assert (row["likelihood"], row["nats_per_token"], row["perplexity"]) == ("exact", 0.0, 1.0)


@pytest.mark.parametrize("left_to_right", [False, True])
def test_a_model_that_knows_the_story_fills_it(fake: Any, tmp_path: Path, left_to_right: bool) -> None:
    data = written(tmp_path / "a.txt", STORY)
    fake(point_mass(ids("The cow ran.", " It saw a hen.", " They sat. The end."), VOCAB, shift=True), left_to_right)
    assert rows_of("infill", data) == {
        "rougeL": 1.0, "error": pytest.approx(float("nan"), nan_ok=True), "rouge1": 1.0, "rouge2": 1.0, "exact": 1.0,
        "items": 1,
    }  # fmt: skip


def test_a_left_to_right_model_is_not_shown_what_follows(fake: Any, tmp_path: Path) -> None:
    engine = fake(random_table(VOCAB), left_to_right=True)
    rows_of("infill", written(tmp_path / "a.txt", STORY))
    seen = max(len(request.tokens) for call in engine.sessions[0].requests for request in call)
    assert seen == len(ids("The cow ran.", " It saw a hen."))


def test_last_words_take_a_step_for_each_token(fake: Any, tmp_path: Path) -> None:
    data = written(tmp_path / "a.txt", "the cow said moo", "the hen said no")
    fake(point_mass(ids("the cow said", " moo"), VOCAB, shift=True))
    assert rows_of("lambada", data)["exact"] == 0.5
    subject = Subject(None, DiffusionSpec(MASK, True), False)  # type: ignore[arg-type]
    options = EvalOptions("lambada", (data,))
    steps_of = ((GenerateOptions(), 5), (GenerateOptions(steps=3), 3), (GenerateOptions(decoder="llada"), None))
    for asked, steps in steps_of:
        assert Filling(Setting(subject, options, asked, TASKS["lambada"]))._options(5).steps == steps


@pytest.mark.parametrize("spec", [{}, {"attention": "block_causal", "block_length": 4}])
def test_the_ending_that_the_model_knows_is_chosen(fake: Any, tmp_path: Path, spec: dict[str, Any]) -> None:
    item = {"context": "the cow", "choices": ["sat", "ran off", "x"], "label": 1}
    start = TOKENIZER.encode("the cow")
    known = [*start, *TOKENIZER.encode_parts(["", " ran off"], add_bos=False)]
    fake(point_mass(known, VOCAB, shift=True), **spec)
    row = rows_of("piqa", written(tmp_path / "a.jsonl", item, {**item, "label": 0}))
    assert (row["accuracy"], row["accuracy_by_total"], row["items"]) == (0.5, 0.5, 2)
    assert row["error"] == pytest.approx(0.5)


def test_gsm8k_counts_right_numbers(fake: Any, tmp_path: Path) -> None:
    question, end = "How many?", 261
    prompt = TOKENIZER.encode(f"Question: {question}\nAnswer:")
    said = TOKENIZER.encode_parts(["", " 2+2=4 #### 4"], add_bos=False)
    fake(point_mass([*prompt, *said, *[end] * 100], VOCAB, shift=True))
    items = [{"question": question, "answer": f"#### {number}"} for number in ("4", "5", "4.0")]
    row = rows_of("gsm8k", written(tmp_path / "a.jsonl", *items))
    assert (row["correct"], row["items"]) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("style", ["separator", "chat"])
def test_questions_are_put_as_the_model_was_trained(fake: Any, tmp_path: Path, style: str) -> None:
    engine = fake(random_table(VOCAB), **{"separator": {"sep_token": 7}, "chat": {"template": CHAT_TEMPLATE}}[style])
    data = written(tmp_path / "a.jsonl", {"question": "C?", "answer": "#### 3"})
    rows_of("gsm8k", data, GenerateOptions(max_new_tokens=8))
    canvas = engine.sessions[0].requests[0][0].tokens[:-8].tolist()
    question = TOKENIZER.encode("C?", add_bos=False)
    expected = {"separator": [*TOKENIZER.encode("C?"), 7], "chat": [BOS, *question, 261, BOS]}
    assert canvas == expected[style]


def test_solved_problems_stand_before_the_question(fake: Any, tmp_path: Path) -> None:
    engine = fake(random_table(VOCAB))
    pairs = ({"question": "A?", "answer": "#### 1"}, {"question": "B?", "answer": "#### 2"})
    solved = written(tmp_path / "s.jsonl", *pairs)
    data = written(tmp_path / "a.jsonl", {"question": "C?", "answer": "#### 3"})
    rows_of("gsm8k", data, GenerateOptions(max_new_tokens=8), shots=1, shots_data=solved)
    canvas = engine.sessions[0].requests[0][0].tokens[:-8].tolist()
    assert TOKENIZER.decode(canvas) == "Question: A?\nAnswer: #### 1\n\nQuestion: C?\nAnswer:"
    with pytest.raises(OptionError, match="has 2 problems"):
        rows_of("gsm8k", data, shots=3, shots_data=solved)


def test_code_is_run_only_where_asked(fake: Any, tmp_path: Path) -> None:
    row = {
        "task_id": "T/0", "prompt": "def f():\n", "suffix": "", "canonical_solution": "    return 7\n",
        "test": "def check(f):\n    assert f() == 7\n", "entry_point": "f",
    }  # fmt: skip
    data = written(tmp_path / "a.jsonl", row)
    fake(point_mass(ids("def f():\n", "    return 7\n"), VOCAB, shift=True))
    row_found = rows_of("humaneval-infill", data)
    assert (row_found["exact"], set(row_found)) == (1.0, {"exact", "error", "items"})
    result = evaluate("x", task="humaneval-infill", data=(data,), execute_code=True)
    assert result.rows[0]["passed"] == 1.0
    lines = tmp_path / "samples.jsonl"
    evaluate("x", task="humaneval-infill", data=(data,), records=str(lines))
    (sample,) = map(json.loads, lines.read_text().splitlines())
    assert (sample["task_id"], sample["completion"]) == ("T/0", "    return 7\n")
    assert "passed" not in sample


def test_texts_from_nothing_by_steps(fake: Any, tmp_path: Path) -> None:
    judge = write_tiny(tmp_path / "judge.gguf", record=False)
    fake(random_table(VOCAB))
    wanted = GenerateOptions(max_new_tokens=12, decoder="random-keep")
    result = evaluate("x", None, wanted, task="unconditional", texts=3, over_steps="8,2", judge=str(judge), seed=4)
    assert [(row["steps"], row["texts"]) for row in result.rows] == [(2, 3), (8, 3)]
    for row in result.rows:
        assert row["steps"] / 2 < row["passes"] <= row["steps"]
        assert row["perplexity"] == pytest.approx(math.exp(row["judge_nats_per_token"]))
        assert 0 < row["entropy"] < math.log(12)
    drafts = [record["tokens"] for record in result.records]
    assert len({tuple(each) for each in drafts}) == 6
    with pytest.raises(OptionError, match="expected an autoregressive"):
        evaluate("x", None, wanted, task="unconditional", judge=str(write_tiny(tmp_path / "diffusion.gguf")))


def test_what_does_not_fit_is_skipped_and_counted(fake: Any, tmp_path: Path) -> None:
    fake(random_table(VOCAB), canvas_max=40)
    long = "x" * 50
    result = evaluate("x", task="lambada", data=(written(tmp_path / "a.txt", f"{long} b", "a b"),))
    assert (result.skipped, result.rows[0]["items"]) == (1, 1)
    assert "the canvas holds 40" in result.records[0]["skipped"]
    with pytest.raises(OptionError, match="no item could be measured"):
        evaluate("x", task="lambada", data=(written(tmp_path / "b.txt", f"{long} b"),))


def test_published_settings_give_way(fake: Any) -> None:
    spec = DiffusionSpec(MASK, True)
    subject = Subject(None, spec, False)  # type: ignore[arg-type]
    task = TASKS["infill"]
    assert subject.options(GenerateOptions(), task) == GenerateOptions(**task.settings)
    assert subject.options(GenerateOptions(temperature=0.0, steps=3), task).temperature == 0.0
    assert subject.options(GenerateOptions(decoder="llada"), task) == GenerateOptions(decoder="llada")
    in_blocks = Subject(None, DiffusionSpec(MASK, True, "block_causal", 4), False)  # type: ignore[arg-type]
    assert in_blocks.options(GenerateOptions(), task) == GenerateOptions()
    causal = Subject(None, DiffusionSpec(MASK, **LEFT_TO_RIGHT), True)  # type: ignore[arg-type]
    assert causal.options(GenerateOptions(), task) == GenerateOptions(temperature=0.9)


# ---- interrupting and resuming ----


def test_an_interrupted_run_goes_on_to_the_same_result(fake: Any, tmp_path: Path) -> None:
    data = written(tmp_path / "a.txt", "some words to hide " * 40)
    fake(random_table(VOCAB))
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    settings = {"task": "nll", "data": (data,), "length": 16, "draws": 3}
    expected = evaluate("x", output=str(whole), batch=64, **settings).as_dict()
    calls = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("x", output=str(parts), batch=5, progress=stop, **settings)
    ledger = tmp_path / "parts.json.part.jsonl"
    assert not parts.exists()
    assert len(ledger.read_text().splitlines()) == 1 + 3 * 5
    with open(ledger, "a") as file:
        file.write('{"nats": 1')  # cut off by a crash
    with pytest.raises(OptionError, match="15 items of an interrupted run"):
        evaluate("x", output=str(parts), **settings)
    with pytest.raises(OptionError, match="begun with seed 0, but now it is 1"):
        evaluate("x", output=str(parts), resume=True, seed=1, **settings)
    calls = 4
    resumed = evaluate("x", output=str(parts), resume=True, batch=7, progress=stop, **settings).as_dict()
    for each in (expected, resumed):
        for name in ("output", "batch", "resume"):
            each["settings"].pop(name, None)
    assert resumed == expected
    assert json.loads(parts.read_text())["records"] == json.loads(whole.read_text())["records"]
    assert not ledger.exists()
    ledger.write_text("nonsense\n")
    with pytest.raises(OptionError, match="line 1 is not what an interrupted run leaves"):
        evaluate("x", output=str(parts), resume=True, **settings)


# ---- options and the command line ----


def test_the_flags_of_evaluating_and_of_generating_are_other_flags() -> None:
    own, theirs = ({field.name for field in dataclasses.fields(each)} for each in (EvalOptions, GenerateOptions))
    assert set(NOT_OF_GENERATION) <= theirs
    assert not own & (theirs - set(NOT_OF_GENERATION))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--task is missing"),
        ({"task": "chess", "data": ("a",)}, "task is 'chess', expected one of nll"),
        ({"task": "nll"}, "--data is missing"),
        ({"task": "unconditional", "data": ("a",)}, "--data is given, expected none"),
        ({"task": "nll", "data": ("a",), "resume": True}, "--resume needs the --output"),
        ({"task": "nll", "data": ("a",), "shots": 2}, "--shots has no meaning for nll"),
        ({"task": "gsm8k", "data": ("a",), "shots": 2}, "--shots and --shots-data go together"),
        ({"task": "nll", "data": ("a",), "estimator": "bound"}, "--estimator has no meaning for nll"),
        ({"task": "infill", "data": ("a",), "draws": 3}, "--draws has no meaning for infill"),
        ({"task": "nll", "data": ("a",), "limit": 0}, "limit is 0, expected 1 or more"),
        ({"task": "unconditional", "over_steps": "4,x"}, "--over-steps is '4,x'"),
    ],
)
def test_refused_options(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _ = EvalOptions(**settings).steps_list


def test_options_without_an_effect_are_refused(fake: Any, tmp_path: Path) -> None:
    data = written(tmp_path / "a.txt", "some words to hide " * 40)
    items = written(tmp_path / "a.jsonl", {"context": "a", "choices": ["b", "c"], "label": 1})
    fake(random_table(VOCAB))
    with pytest.raises(OptionError, match="--top-p has no effect: nll generates nothing"):
        evaluate("x", None, GenerateOptions(top_p=0.5), task="nll", data=(data,))
    with pytest.raises(OptionError, match="does not take samples among the options"):
        evaluate("x", None, GenerateOptions(samples=2), task="lambada", data=(data,))
    with pytest.raises(OptionError, match="--steps has no effect: --over-steps says"):
        evaluate("x", None, GenerateOptions(steps=5), task="unconditional")
    fake(random_table(VOCAB), left_to_right=True)
    with pytest.raises(OptionError, match="--draws has no effect: the likelihoods of a left-to-right model are exact"):
        evaluate("x", task="nll", data=(data,), draws=4)
    with pytest.raises(OptionError, match="--estimator has no effect"):
        evaluate("x", task="piqa", data=(items,), estimator="bound")
    single = evaluate("x", task="piqa", data=(items,))
    assert single.as_dict()["rows"][0]["error"] is None
    assert run.columns(single.rows)[1].split()[1] == "-"


def test_a_left_to_right_model_keeps_what_its_record_says_otherwise(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    with open_subject(path, True, "mask=262,canvas=40,attn=full,sep=5") as subject:
        assert subject.exact
        assert (subject.spec.canvas_max, subject.spec.sep_token, subject.spec.attention) == (40, 5, "block_causal")
    with open_subject(write_tiny(tmp_path / "plain.gguf", record=False)) as subject:
        assert subject.exact
        assert subject.spec.mask_token not in (subject.model.tokenizer.eos, subject.model.tokenizer.eot)


def test_a_left_to_right_model_takes_no_steps_of_the_record(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    item = {"before": "some words", "target": " to hide here, more than two", "after": " now"}
    data = written(tmp_path / "a.jsonl", json.dumps(item))
    record = {"diffusion": "decoder=llada,steps=2", "task": "infill", "data": (data,), "loading": {"threads": 1}}
    (made,) = evaluate(path, attention="causal", **record).records
    assert made["completion"]
    with pytest.raises(OptionError, match="expected at least one step per block"):
        evaluate(path, None, GenerateOptions(steps=2), attention="causal", **record)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    data = written(tmp_path / "a.txt", "some words to hide " * 40)
    out = tmp_path / "out.json"
    assert main(["eval", str(model), "--task", "nll", "--data", data, "-o", str(out), "--limit", "3"]) == 0
    printed, errors = capsys.readouterr()
    head, *_, last = printed.splitlines()
    assert head.startswith("nll of tiny: bound")
    shown = json.loads(last)
    assert {"task": "nll", "limit": 3, "context": 1, "draws": 8}.items() <= shown["settings"].items()
    assert not {"texts", "shots", "judge"} & shown["settings"].keys()
    assert shown["rows"][0]["sequences"] == 3
    assert "records" not in shown
    assert len(json.loads(out.read_text())["records"]) == 3
    assert errors == ""
    assert main(["eval", str(model), "--task", "nll", "--data", data, "--attention", "causal", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert exact["rows"][0]["likelihood"] == "exact"
    assert exact["settings"]["left_to_right"] is True
    assert main(["eval", str(model), "--task", "nll", "--data", str(tmp_path / "none.txt")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["eval", str(model), "--task", "nll", "--data", data, "--length", "65"]) == 2
    assert "the canvas of the model holds 64 tokens" in capsys.readouterr().err


def test_no_torch_is_needed() -> None:
    code = "import localdiff.evaluate.run, localdiff.cli.eval, sys; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_default_model(tmp_path: Path) -> None:
    model, parent = write_tiny(tmp_path / "m.gguf"), write_tiny(tmp_path / "p.gguf", record=False, name="parent")
    data = written(tmp_path / "a.txt", "A cat. A dog ran. A hen. " * 12)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [
            sys.executable, root / "bench" / "default_model.py", parent, "--model", model, "--data", data,
            "--draws", "1", "--stories", "2", "--texts", "2", "--tokens", "8", "--samples", "2", "--out", tmp_path,
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "default-model.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found
    assert [row["steps"] for row in found["over_steps"]["random-keep"]] == [4, 8]
    assert [row["temperature"] for row in found["infill"]] == [0.0, 0.9]
    (row,) = found["nll"]
    assert row["texts"] == ["a.txt"]
    assert row["gap"][0] == pytest.approx(row["model"][0] - row["parent"][0])
    assert len(found["samples"]) == 2
    assert "| 0.0 | 2 |" in (tmp_path / "default-model.md").read_text()
    assert (tmp_path / "default-model.png").stat().st_size > 0
