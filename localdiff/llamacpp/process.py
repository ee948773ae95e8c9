"""The other side of child.py: starting the process, asking it, and what happens when it dies, hangs or is cancelled.

$LOCALDIFF_LLAMA_PYTHON names the Python that has llama-cpp-python (default: this one), $LOCALDIFF_LLAMA_SECONDS how
long an answer may take (default 600). A process that has died is started again by the next question. It never outlives
this one: it ends when its stdin does. Calls come from any thread and wait for each other.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import Cancelled, EngineError, OptionError
from .child import receive, send

_CHILD = Path(__file__).with_name("child.py")
_LOOK_SECONDS = 0.05  # between two looks at whether a call was cancelled
_END_SECONDS = 5.0
INSTALL = "pip install 'localdiff[llamacpp]', or name a Python that has it in LOCALDIFF_LLAMA_PYTHON"


@dataclass(frozen=True)
class Found:
    """version: of llama-cpp-python; gpu: whether it computes on one."""

    version: str
    gpu: bool

    @property
    def what(self) -> str:
        return f"llama-cpp-python {self.version}, {'with a GPU' if self.gpu else 'on the processor'}"


def _python() -> str:
    """The Python of the process. Raises OptionError where it is this one and has no llama-cpp-python."""
    named = os.environ.get("LOCALDIFF_LLAMA_PYTHON")
    if not named and importlib.util.find_spec("llama_cpp") is None:
        raise OptionError(f"llama-cpp-python is not installed; {INSTALL}")
    return named or sys.executable


def _seconds() -> float:
    text = os.environ.get("LOCALDIFF_LLAMA_SECONDS", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise OptionError(f"LOCALDIFF_LLAMA_SECONDS is '{text}', expected seconds above 0")
    return seconds


@functools.cache
def look() -> Found:
    """What is there, without a model. Raises OptionError where the backend cannot be used."""
    with Process() as process:
        return process.found


class Flag:
    """Raised by cancel(); the running call, or the next one, sees it."""

    def __init__(self) -> None:
        self.raised = False


class Process:
    """A process of llama.cpp, started at once.

    path     of the model that it loads; None: none
    found    what it said of itself; vocab: rows of the model's head
    raises   OptionError where llama-cpp-python or its Python is missing, EngineError where it fails
    """

    def __init__(self, path: Path | None = None) -> None:
        self._load = None if path is None else {"do": "load", "path": str(path.absolute())}
        self._seconds = _seconds()
        self._lock = threading.Lock()
        self._number = 0
        self._child: _Child | None = None
        self.vocab = 0
        self._start()

    def room(self, length: int, threads: int | None) -> None:
        """Let it make room for canvases of `length` tokens. Raises EngineError where it cannot be had."""
        with self._lock:
            self._ask({"do": "room", "length": length, "threads": threads}, Flag())

    def logits(self, tokens: bytes, rows: list[int], causal: bool, threads: int | None, flag: Flag) -> bytes:
        """float32 [rows, vocab]; tokens are int32. Raises EngineError, and Cancelled once the flag is raised."""
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            _look_at(flag)
        try:
            self._number += 1
            question = {"do": "logits", "id": self._number, "threads": threads, "causal": causal, "rows": rows}
            return self._ask(question, flag, tokens)[1]
        finally:
            self._lock.release()

    def close(self) -> None:
        with self._lock:
            child, self._child, self._load = self._child, None, None
        if child is not None:
            child.end()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        child = self._child = _Child(_python())
        try:
            hello, _ = self._answer(child, Flag())
            if "error" in hello:
                raise OptionError(f"{hello['error']}; {INSTALL}")
            self.found = Found(str(hello["version"]), bool(hello["gpu"]))
            if self._load is not None:
                child.send(self._load)
                self.vocab = int(_checked(*self._answer(child, Flag()))[0]["vocab"])
        except BaseException:
            self._give_up()
            raise

    def _ask(self, question: dict[str, Any], flag: Flag, data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        if self._load is None:
            raise EngineError("the model is closed; open it again")
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None
        number = question.get("id")
        try:
            child.send(question, data)
            while True:
                message, rows = self._answer(child, flag)
                if message.get("id") == number or number is None and "id" not in message:
                    return _checked(message, rows)
        except Cancelled:
            child.send({"do": "cancel", "id": number})  # its answer is passed over by the next call
            raise
        except KeyboardInterrupt:
            child.send({"do": "cancel", "id": self._number})
            raise

    def _answer(self, child: _Child, flag: Flag) -> tuple[dict[str, Any], bytes]:
        """The next answer. Raises EngineError where the process has died or takes too long; it is given up then."""
        until = time.monotonic() + self._seconds
        while True:
            _look_at(flag)
            try:
                answer = child.answers.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if time.monotonic() < until:
                    continue
                self._give_up()
                raise EngineError(
                    f"the process of llama.cpp gave no answer for {self._seconds:g} seconds and was ended; set "
                    "LOCALDIFF_LLAMA_SECONDS to wait longer, or leave out --device llamacpp"
                ) from None
            if answer is not None:
                return answer
            why = child.death()
            self._give_up()
            raise EngineError(f"the process of llama.cpp ended {why}; leave out --device llamacpp if it does so again")

    def _give_up(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def _look_at(flag: Flag) -> None:
    if flag.raised:
        flag.raised = False
        raise Cancelled("cancelled")


def _checked(message: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    if "error" in message:
        raise EngineError(str(message["error"]))
    return message, data


class _Child:
    """The running program: its answers in a queue, None at its end; the last lines that it printed."""

    def __init__(self, python: str) -> None:
        try:
            self._popen = subprocess.Popen(
                [python, str(_CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process alone
            )  # fmt: skip
        except OSError as error:
            raise OptionError(
                f"LOCALDIFF_LLAMA_PYTHON is {python}, which cannot be started: {error.strerror}"
            ) from None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._stdin: Any = self._popen.stdin
        self.answers: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self._said: collections.deque[bytes] = collections.deque(maxlen=20)
        self._readers = [
            threading.Thread(target=_read_answers, args=(self._popen.stdout, self.answers), daemon=True),
            threading.Thread(target=_read_lines, args=(self._popen.stderr, self._said), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        weakref.finalize(self, _end, self._popen)

    def send(self, message: dict[str, Any], data: bytes = b"") -> None:
        try:
            send(self._stdin, message, data)
        except (OSError, ValueError):  # it has died: so say the answers
            pass

    def death(self) -> str:
        """How it ended and what it said last."""
        try:
            code = self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        for reader in self._readers:
            reader.join(_END_SECONDS)
        lines = [line.decode("utf-8", "replace").strip() for line in self._said]
        last = next((line for line in reversed(lines) if line), "it said nothing")
        return f"by signal {-code} ({last})" if code < 0 else f"with {code} ({last})"

    def end(self) -> None:
        _end(self._popen)

    def kill(self) -> None:
        self._popen.kill()
        _end(self._popen)


def _end(popen: subprocess.Popen[bytes]) -> None:
    """Let it end, by force where it does not."""
    if popen.stdin is not None:
        try:
            popen.stdin.close()
        except OSError:  # it has died with something unread
            pass
    try:
        popen.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def _read_answers(stream: BinaryIO, answers: queue.Queue[tuple[dict[str, Any], bytes] | None]) -> None:
    with stream:
        try:
            while (answer := receive(stream)) is not None:
                answers.put(answer)
        except ValueError:  # what is no JSON comes from something else
            pass
    answers.put(None)


def _read_lines(stream: BinaryIO, lines: collections.deque[bytes]) -> None:
    with stream:
        lines.extend(stream)
