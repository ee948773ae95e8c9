"""bench/quality.py on a few prompts: what a row holds, against what the model says directly, and that nothing is made
twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import localdiff
from localdiff.decode.table import settings_for
from localdiff.loading import EMBEDDED
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "bench"))
from quality import options_of, row_sets  # noqa: E402 - a program, not a package

STORY = "Once upon a time there was a little girl who lived in a small house near the river. One day she went out. " * 6


def quality(out: Path, *arguments: str) -> dict[str, Any]:
    text = out.parent / "story.txt"
    text.write_text(f"{STORY}\n<|endoftext|>\n{STORY}")
    command = [sys.executable, str(ROOT / "bench" / "quality.py"), str(EMBEDDED), "--judge", str(EMBEDDED)]
    settings = ["--data", str(text), "--prompts", "4", "--prompt", "8", "--answer", "8", "--threads", "1"]
    command += [*settings, "--out", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_rows_are_made_once_and_hold_what_the_model_says(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    rows = ["decoder=llada", "decoder=threshold threshold=0.3 cache=dual", "decoder=wedlm"]
    first = quality(out, *(word for row in rows for word in ("--row", row)))
    assert list(first["rows"]) == rows[:2]
    assert "needs a model with causal attention" in first["refused"]["decoder=wedlm"]
    exact, other = (first["rows"][row] for row in rows[:2])
    assert exact["greedy"]["agreement"] == 1
    assert 0 < other["greedy"]["agreement"] <= 1
    assert other["sampled"]["settings"]["cache"] == "dual"
    assert other["sampled"]["rows"] < 16 * other["sampled"]["forwards"]
    assert (exact["sampled"]["settings"]["temperature"], exact["greedy"]["settings"]["temperature"]) == (0.9, 0.0)

    with localdiff.load(threads=1) as model:
        stretches = []
        for _ in range(2):
            tokens = model.tokenizer.encode(STORY.strip())
            stretches += [tokens[at : at + 8] for at in range(0, len(tokens) - 7, 16)]
        prompts = [stretches[i * len(stretches) // 4] for i in range(4)]
        made = model.generate(prompts, max_new_tokens=8, decoder="llada", temperature=0.0, seed=1)
        assert exact["greedy"]["forwards"] == pytest.approx(sum(each.nfe for each in made) / 4)
        assert exact["greedy"]["answer_tokens"] == pytest.approx(sum(len(each.tokens) for each in made) / 4)

    timed = quality(out, "--timed", "--timed-prompts", "2")  # of all rows that are there
    assert {row: found["sampled"] for row, found in timed["rows"].items()} == {
        row: found["sampled"] for row, found in first["rows"].items()
    }
    assert all(found["timed"]["seconds"] > 0 for found in timed["rows"].values())
    table = out.with_suffix(".md").read_text()
    assert all(f"| {row} |" in table for row in rows[:2])
    assert out.with_suffix(".png").is_file()


def test_the_rows_of_a_block_model_go_with_it() -> None:
    rows = row_sets()["blocks"]
    assert len(set(rows)) == len(rows)
    record = DiffusionSpec(1, True, attention="block_causal", block_length=4)
    for row in rows:
        if "preset" not in row:
            chosen = settings_for(GenerateOptions(**options_of(row)), record, 32)
            assert chosen.cache == ("exact" if "cache=exact" in row else "block")
