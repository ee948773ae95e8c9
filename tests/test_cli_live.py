"""The live view on a real pseudo-terminal, read by a terminal emulator (pyte), and its lines at awkward sizes.

What stood on the terminal before must stay, only the region may be erased, the answer stands there once at the end, and
Ctrl-C leaves the text as it was.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
import pytest
from tiny_gguf import write_tiny

from localdiff.cli.live import LiveView, printable
from localdiff.page import Span

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = re.compile(r"\x1b\[(\d*A|K|J|[0-9;]*m|\?2004[hl])")  # up, erase to the end, colours, readline's paste mode
BEFORE = [f"earlier line {n}" for n in range(5)]


def _own_terminal() -> None:
    """In the child: the pseudo-terminal is its terminal, and Ctrl-C reaches it even where the tests ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A pseudo-terminal with a process on it, and the screen that its bytes make."""

    def __init__(self, *arguments: object, columns: int = 60, rows: int = 12, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.5)
        self._feed = pyte.Stream(self.screen).feed
        self._feed("\r\n".join(BEFORE) + "\r\n")
        self.raw = ""
        self.frames: list[list[str]] = []  # the screen after each read
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        variables = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment}
        variables = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "localdiff", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, until: Callable[[], bool] = lambda: False, seconds: float = 60) -> None:
        """Take in what the process writes until it ends, or until a condition holds."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"still waiting; the screen shows {self.text()}"
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux: the other side is closed
                data = b""
            if not data:
                break
            self.raw += data.decode("utf-8", "replace")
            self._feed(data.decode("utf-8", "replace"))
            self.frames.append([line.rstrip() for line in self.screen.display])

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def sleeps(self) -> bool:
        """Whether the process waits for something, such as a key."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status[status.rindex(")") + 2] == "S"  # proc(5): the state follows the name

    def finish(self) -> int:
        self.read()
        os.close(self._master)
        return self.process.wait(timeout=30)

    def text(self) -> list[str]:
        """Everything on the terminal, with what has scrolled off at the top."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        lines = [line.rstrip() for line in [*above, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def joined(self) -> str:
        return "".join(self.text())

    def check_sequences(self) -> None:
        """Nothing but the few allowed sequences was sent; nothing clears the screen or hides the cursor."""
        assert "\x1b" not in ALLOWED.sub("", self.raw), ascii(self.raw)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("live") / "tiny.gguf", context=2048)


def answer_of(model: Path, *arguments: object) -> str:
    """What the same command prints without a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "localdiff", *map(str, arguments)],
        capture_output=True, cwd=ROOT, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return printable(done.stdout.decode())


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_the_answer_stands_on_the_terminal_once_below_what_was_there(model: Path) -> None:
    arguments = ("run", model, "hello", "-n", 12, "--steps", 6, "--seed", 1)
    terminal = Terminal(*arguments)
    assert terminal.finish() == 0
    terminal.check_sequences()
    lines = terminal.text()
    assert lines[: len(BEFORE)] == BEFORE
    figures = lines[-1]
    assert figures.startswith("12 tokens, 6 forward passes")
    assert without_blanks("".join(lines[len(BEFORE) : -1])) == without_blanks(answer_of(model, *arguments))


def test_masks_were_shown_while_it_ran(model: Path) -> None:
    terminal = Terminal("run", model, "hello", "-n", 100, "--steps", 50, "--seed", 1)
    assert terminal.finish() == 0
    assert any("░░░" in "".join(frame) for frame in terminal.frames)
    assert "░" not in terminal.joined()
    assert "\x1b[2m░" in terminal.raw
    assert "\x1b[1;32m" in terminal.raw


def test_a_text_taller_than_the_terminal_leaves_no_debris(model: Path) -> None:
    arguments = ("run", model, "hello", "-n", 400, "--steps", 40, "--seed", 2)
    terminal = Terminal(*arguments, columns=40, rows=6)
    assert terminal.finish() == 0
    lines = terminal.text()
    assert lines[: len(BEFORE)] == BEFORE
    shown = without_blanks("".join(lines[len(BEFORE) :]))
    assert shown.startswith(without_blanks(answer_of(model, *arguments)))
    assert "░" not in shown


def test_a_resize_in_the_middle_does_no_harm(model: Path) -> None:
    terminal = Terminal("run", model, "hello", "-n", 300, "--steps", 100, "--seed", 2)
    terminal.read(until=lambda: "░" in terminal.joined())
    terminal.resize(20, 5)
    assert terminal.finish() == 0
    terminal.check_sequences()


def test_no_colour_where_none_is_wanted(model: Path) -> None:
    terminal = Terminal("run", model, "hello", "-n", 50, "--steps", 20, NO_COLOR="1")
    assert terminal.finish() == 0
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.raw)


@pytest.mark.parametrize("how", ["--no-live", "dumb"])
def test_plain_where_no_view_is_wanted_or_possible(model: Path, how: str) -> None:
    extra, environment = ((), {"TERM": "dumb"}) if how == "dumb" else ((how,), {})
    terminal = Terminal("run", model, "hello", "-n", 12, *extra, NO_COLOR="1", **environment)
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.raw


def test_ctrl_c_keeps_the_text_and_ends_with_130(model: Path) -> None:
    terminal = Terminal("run", model, "hello", "-n", 1500, "--decoder", "topk", "--steps", 1500, rows=40)
    terminal.read(until=lambda: "░" in terminal.joined())
    terminal.type("\x03")
    assert terminal.finish() == 130
    terminal.check_sequences()
    assert "Traceback" not in terminal.joined()
    assert "░" in terminal.joined(), "the text stays as it was"
    assert terminal.text()[: len(BEFORE)] == BEFORE
    assert terminal.screen.cursor.x == 0, "the next prompt begins on a line of its own"


def test_ctrl_c_at_the_prompt_is_clean(model: Path) -> None:
    terminal = Terminal("run", model)
    # Python's readline misses a signal between the prompt it prints and the wait for keys after it.
    terminal.read(until=lambda: "> " in terminal.raw and terminal.sleeps())
    terminal.type("\x03")
    assert terminal.finish() == 130
    assert "Traceback" not in terminal.joined()


def test_a_conversation_goes_on_until_ctrl_d(tmp_path: Path) -> None:
    terminal = Terminal("run", write_tiny(tmp_path / "tiny.gguf", context=64), "-n", 4, "--seed", 1, rows=40)
    terminal.read(until=lambda: terminal.joined().endswith("> ") or "> " in terminal.raw)
    assert "no chat template" in terminal.joined()
    terminal.type("hello\n")
    terminal.read(until=lambda: terminal.joined().count("forward passes") == 1)
    terminal.type("hello " * 100 + "\n")  # longer than the canvas: refused, and the talk goes on
    terminal.type("he\n")
    terminal.read(until=lambda: terminal.joined().count("forward passes") == 2 and terminal.joined().endswith(">"))
    terminal.type("\x04")  # at the prompt: between two of them it would be the tty's end of an empty line, and lost
    assert terminal.finish() == 0


# ---- lines ----


class Screen(io.StringIO):
    """A stream without a file descriptor, as wide and high as it says."""

    encoding = "utf-8"

    def view(self, columns: int, rows: int) -> LiveView:
        view = LiveView(self)
        view._size = lambda: (columns, rows)  # type: ignore[method-assign]
        return view


def painted(spans: list[list[Span]], columns: int, rows: int) -> list[str]:
    """The screen after painting each text in turn."""
    stream = Screen()
    view = stream.view(columns, rows)
    for each in spans:
        view._last = 0.0
        view.show(each)
        view.paint()
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(stream.getvalue().replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


def text(*words: str) -> list[Span]:
    return [Span("settled", " ".join(words), len(words))]


def test_lines_are_broken_after_spaces_and_long_words_anywhere() -> None:
    assert painted([text("one two three", "abcdefghijklmnopqrst")], 10, 6) == [
        "one two", "three", "abcdefghi", "jklmnopqr", "st", "",
    ]  # fmt: skip


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    assert [line.replace(" ", "") for line in painted([text("漢字漢字漢字")], 6, 5)][:3] == ["漢字", "漢字", "漢字"]
    assert len([line for line in painted([text("e\u0301" * 9)], 10, 4) if line]) == 1


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 80])
@pytest.mark.parametrize("rows", [1, 2, 3, 24])
def test_every_size_of_terminal_is_survived(columns: int, rows: int) -> None:
    frames = [[Span("settled", "a 漢 b\n\nc", 4), Span("masked", "", n), Span("fresh", "d\te", 2)] for n in (30, 20, 0)]
    painted(frames, columns, rows)


def test_a_shorter_text_takes_all_of_a_longer_one_away() -> None:
    long = [Span("masked", "", 60)]
    assert painted([long, text("short")], 20, 8) == ["short"] + [""] * 7


def test_a_tall_text_is_shown_around_what_is_known() -> None:
    known = [Span("settled", "\n".join(f"line {n}" for n in range(30)), 30), Span("masked", "", 200)]
    shown = painted([known], 20, 8)
    assert "line 29" in " ".join(shown)
    assert len([line for line in shown if line]) <= 7


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    hostile = "a\x1b[2Jb\x9b3Jc\rd\x07e\x00f\u202eg"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printable(hostile))
    stream = Screen()
    view = stream.view(40, 5)
    view.show([Span("settled", hostile, 1)])
    view.paint()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()
    assert printable("tab\tline\nümlaut 漢 👍🏽") == "tab\tline\nümlaut 漢 👍🏽"
