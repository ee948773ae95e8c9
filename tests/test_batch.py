"""Batches: one answer per line, equal to the server's and Python's, whatever stops the run; lines and files refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from serving import CHATTY, ROOT, STORIES, write_chatty

import localdiff
from localdiff.cli import main
from localdiff.errors import OptionError
from localdiff.model import Model
from localdiff.serve.batch_file import Answers, read_lines


def request(name: str, url: str = "/v1/completions", method: str = "POST", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": method, "url": url, "body": body}


def completion(name: str, prompt: str = "The cat", **more: Any) -> dict[str, Any]:
    return request(name, **{"model": STORIES, "prompt": prompt, "max_tokens": 8, "steps": 4, "seed": 1, **more})


def write(folder: Path, *lines: Any) -> tuple[Path, Path]:
    """IN and OUT; lines are JSON values or bytes."""
    source = folder / "in.jsonl"
    source.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return source, folder / "out.jsonl"


def batch(source: Path, target: Path, *flags: str) -> int:
    return main(["batch", str(source), str(target), "--threads", "1", *flags])


def answers(target: Path) -> dict[str | None, Any]:
    """Answers by custom_id."""
    whole = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert len({each["id"] for each in whole}) == len(whole)
    return {each["custom_id"]: each for each in whole}


def test_answers_are_those_of_the_api(tmp_path: Path, stories: Model, capsys: pytest.CaptureFixture[str]) -> None:
    chatty = write_chatty(tmp_path)
    said = [{"role": "user", "content": "hello"}]
    chat = {"model": CHATTY, "messages": said, "max_tokens": 6, "seed": 2}
    source, target = write(
        tmp_path, completion("one"), request("two", "/v1/chat/completions", **chat), b"",
        request("three", "/v1/infill", model=STORIES, text="The [[4]] cat.", seed=3, steps=4),
        completion("many", n=3, temperature=0.8),
    )  # fmt: skip
    embedded = str(ROOT / "localdiff" / "models" / f"{STORIES}.gguf")
    assert batch(source, target, "--model", embedded, "--model", f"{CHATTY}={chatty}", "--parallel", "2") == 0
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", f"localdiff: 4 requests answered in {target}\n")
    got = {name: each["response"]["body"] for name, each in answers(target).items()}
    assert set(got) == {"one", "two", "three", "many"}
    assert {(each["error"], each["response"]["status_code"]) for each in answers(target).values()} == {(None, 200)}
    options = {"max_new_tokens": 8, "steps": 4, "seed": 1}
    assert got["one"]["choices"][0]["text"] == stories.generate("The cat", **options).text
    many = stories.generate("The cat", samples=3, temperature=0.8, **options)
    assert [choice["text"] for choice in got["many"]["choices"]] == [each.text for each in many]
    assert got["three"]["text"] == stories.infill("The [[4]] cat.", seed=3, steps=4).text
    with localdiff.load(chatty, threads=1) as model:
        text = model.chat(said, max_new_tokens=6, seed=2).text
    assert got["two"]["choices"][0]["message"]["content"] == text


BAD = {  # why -> (line, custom_id, code, part of the message)
    "no JSON": (b'{"custom_id": "x", ', None, "invalid_line", "no JSON"),
    "deep": (b"[" * 100_000, None, "invalid_line", "no JSON"),
    "not UTF-8": (b'"\xff"', None, "invalid_line", "no JSON"),
    "no object": ([1], None, "invalid_line", "no JSON object"),
    "no custom_id": ({"method": "POST", "url": "/v1/completions", "body": {}}, None, "invalid_line", "custom_id: "),
    "odd custom_id": ({**completion("x"), "custom_id": 7}, None, "invalid_line", "custom_id: "),
    "half a pair": (completion("\ud800"), "\ud800", "invalid_line", "custom_id: "),
    "method": (request("get", method="GET"), "get", "invalid_line", "method: Input should be 'POST'"),
    "url": (request("url", "/v1/embeddings"), "url", "invalid_line", "url: Input should be '/v1/chat/completions'"),
    "body": ({**request("body"), "body": "x"}, "body", "invalid_line", "body: "),
    "unknown": ({**request("more"), "extra": 1}, "more", "invalid_line", "extra: "),
    "stream": (completion("stream", stream=True), "stream", "invalid_line", "body.stream"),
    "twice": (completion("good"), "good", "duplicate_custom_id", "line 1 has the same"),
}


def test_bad_lines_and_refused_requests_are_answers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = [completion("model", model="nobody"), completion("field", colour="red"), completion("range", steps=0)]
    odd = completion("a\u2028b")
    source, target = write(tmp_path, completion("good"), *(row[0] for row in BAD.values()), *refused, odd)
    assert batch(source, target) == 1
    failures = len(BAD) + len(refused)
    start = f"localdiff: {failures} of {failures + 2} requests failed; their lines in {target} say why"
    assert capsys.readouterr().err.startswith(start)
    whole = [json.loads(line) for line in target.read_bytes().splitlines()]
    by_number = {int(each["id"].split("_")[2]): each for each in whole}
    assert set(by_number) == set(range(1, failures + 3))
    assert len(whole) == len(by_number)
    for number, (_, custom_id, code, part) in enumerate(BAD.values(), 2):
        found = by_number[number]
        assert (found["custom_id"], found["response"], found["error"]["code"]) == (custom_id, None, code)
        assert f"line {number}: " in found["error"]["message"]
        assert part in found["error"]["message"]
    for each, status, param in zip(refused, (404, 400, 400), ("model", "colour", "steps"), strict=True):
        found = answers(target)[each["custom_id"]]
        assert (found["response"]["status_code"], found["error"]) == (status, None)
        assert found["response"]["body"]["error"]["param"] == param
    assert answers(target)[odd["custom_id"]]["response"]["status_code"] == 200


def test_every_place_of_a_torn_line_is_repaired(tmp_path: Path) -> None:
    source, target = write(tmp_path, *({"custom_id": str(each)} for each in range(3)))  # errors: no model is needed
    assert batch(source, target) == 1
    whole = target.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in (*range(0, ends[0] + 2, 3), *range(ends[1] - 1, len(whole), 3), *(end + 1 for end in ends[:2])):
        target.write_bytes(whole[:at])
        ids = {line.id for line in read_lines(source)}
        with Answers(target, ids) as kept:
            assert len(kept.done) == kept.failed == sum(end < at for end in ends)
        assert target.read_bytes() == whole[: whole[:at].rfind(b"\n") + 1]
        assert batch(source, target) == 1
        assert target.read_bytes() == whole
    target.write_bytes(whole[: ends[1] + 5] + bytes(700))  # as some file systems leave it when the power goes
    assert batch(source, target) == 1
    assert target.read_bytes() == whole


def test_lines_can_be_added_and_nothing_is_asked_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path, completion("one"))
    assert batch(source, target) == 0
    before = target.read_bytes()
    assert batch(source, target, "--model", "missing.gguf") == 0  # nothing to ask: no model is opened
    assert target.read_bytes() == before
    with open(source, "a") as more:
        more.write(json.dumps(completion("two")))  # without an end of line
    assert batch(source, target) == 0
    assert target.read_bytes().startswith(before)
    assert set(answers(target)) == {"one", "two"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "line"),
    [("notes\n", 1), ("notes", 1), ('{"id": "batch_req_1_0"}\n', 1), ("WHOLE{}\n", 2), ("WHOLEWHOLE", 2)],
)
def test_foreign_files_are_left_alone(tmp_path: Path, text: str, line: int, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path, {"custom_id": "a"})
    assert batch(source, target) == 1
    text = text.replace("WHOLE", target.read_text())
    target.write_text(text)
    capsys.readouterr()
    assert batch(source, target) == 2
    assert f"line {line} does not answer a line of this input" in capsys.readouterr().err
    assert target.read_text() == text
    assert batch(source, source) == 2


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path, completion("one"))
    assert batch(tmp_path / "none.jsonl", target) == 2
    assert "no such file" in capsys.readouterr().err
    assert batch(source, tmp_path / "no" / "out.jsonl") == 2
    assert batch(source, tmp_path) == 2
    assert batch(source, Path("/dev/null")) == 2
    assert batch(source, target, "--workers", "2") == 2
    assert "only for --ray" in capsys.readouterr().err
    assert batch(source, target, "--parallel", "0") == 2
    assert batch(source, target, "--model", "missing.gguf") == 1
    assert not target.exists()
    with Answers(target, set()), pytest.raises(OptionError, match="another run"):
        Answers(target, set())
    empty, target = write(tmp_path)
    assert batch(empty, target) == 0
    assert target.read_bytes() == b""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on(tmp_path: Path, stories: Model, how: signal.Signals) -> None:
    count, size = 4, {"max_tokens": 64, "steps": 64}
    short, *others = (completion(str(seed), seed=seed, **(size if seed else {})) for seed in range(count))
    source, target = write(tmp_path, short, *others)
    flags = ["--threads", "1", "--parallel", "2"]
    command = [sys.executable, "-m", "localdiff", "batch", str(source), str(target), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (target.exists() and target.stat().st_size):
        time.sleep(0.005)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on with the" in said
        assert "Traceback" not in said
    kept = target.read_bytes()
    assert 1 <= kept.count(b"\n") < count
    assert batch(source, target) == 0
    assert target.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    got = answers(target)
    assert set(got) == {str(seed) for seed in range(count)}
    text = stories.generate("The cat", max_new_tokens=64, steps=64, seed=3).text
    assert got["3"]["response"]["body"]["choices"][0]["text"] == text
