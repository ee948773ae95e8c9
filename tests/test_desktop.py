"""The desktop program under a virtual X screen: it writes live, stays alive while it works, stops, and closes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import localdiff

DRIVER = Path(__file__).resolve().parent / "desktop_driver.py"


@pytest.fixture
def screen() -> Iterator[str]:
    server = shutil.which("Xvfb")
    if server is None or importlib.util.find_spec("_tkinter") is None:
        pytest.skip("no Xvfb (apt install xvfb), or a Python without Tk")
    reader, writer = os.pipe()
    command = [server, "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as told:
            yield f":{told.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def test_the_window_as_a_user_sees_it(screen: str) -> None:
    done = subprocess.run(
        [sys.executable, DRIVER], capture_output=True, text=True, timeout=120, env={**os.environ, "DISPLAY": screen}
    )
    assert (done.returncode, done.stderr) == (0, ""), "closed in the middle of a text, with nothing left behind"
    seen = json.loads(done.stdout)
    assert "is ready" in seen["ready"]

    expected = localdiff.generate("Once upon a time", max_new_tokens=200, steps=200, seed=5)
    assert seen["text"] == f"Once upon a time{expected.text}"
    assert f"{len(expected.tokens)} tokens" in seen["figures"]
    masks = [draft.count("\u2591") for draft in seen["drafts"]]
    assert len(masks) >= 3, "it was painted while it settled"
    assert masks == sorted(masks, reverse=True)
    assert seen["prompt"] == "Once upon a time", "Ctrl+Enter is no line end"
    assert seen["ticks"] > 20, "the window's loop ran on"

    assert seen["infilled"].startswith("The dog ")
    assert seen["infilled"].endswith(" and then they went home.")
    assert seen["refused"] == "tokens is 'twelve', expected a number"
    assert "100000" in seen["too_long"]
    assert seen["stopped"] == "stopped"
    assert "\u2591" in seen["draft"], "the draft stays, masks and all"
