"""The two files of a batch: numbered lines in, one answer each out, in the order in which they are finished.

An answer carries the id of its line, "batch_req_NUMBER_HASH", so that a run that was interrupted in any way goes on
with the lines that have none, whatever their custom_id. Answers are whole lines, appended one by one; a last one that
was cut off by a crash is removed. One run at a time writes a file. Not here: what lines and answers hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..atomic import check_target
from ..errors import ModelFileError, OptionError

_PREFIX = b'{"id": "batch_req_'  # of every answer
_SYNC_SECONDS = 1.0  # what a power cut may undo, and a resumed run does again


@dataclass(frozen=True)
class Line:
    """A line of the input; number from 1."""

    number: int
    raw: bytes

    @property
    def id(self) -> str:
        return f"batch_req_{self.number}_{hashlib.sha256(self.raw).hexdigest()[:16]}"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank."""
    if not path.is_file():
        raise OptionError(f"{path}: no such file; expected one JSON request on each line")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield Line(number, raw.strip())


def failed(answer: dict[str, Any]) -> bool:
    """Whether an answer is an error, of its line or of its request."""
    return bool(answer["error"]) or answer["response"]["status_code"] >= 400


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The answer of a whole line; None where it is none."""
    try:
        answer: dict[str, Any] = json.loads(raw)
        failed(answer)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return answer if raw.startswith(_PREFIX) else None


class Answers:
    """The output. `with` it.

    done     ids of lines that have their answer
    failed   how many of them are errors
    """

    def __init__(self, path: Path, wanted: Set[str]) -> None:
        """Take up what is there; OptionError where it is not the output of lines with these ids, or is in use."""
        if not path.exists():
            check_target(path)
        elif not path.is_file():
            raise OptionError(f"{path}: is no regular file, which a batch needs to go on after a stop; name another")
        self.done: set[str] = set()
        self.failed = 0
        self._path = path
        self._synced = time.monotonic()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OptionError(f"{path}: another run is writing it; wait for it or name another file") from None
            self._size = self._take_up(wanted)
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            os.fsync(self._file)
            if error is not None and not self._size:  # nothing was begun
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._file)

    def add(self, answer: dict[str, Any]) -> None:
        """Append an answer; its id is the first of its keys."""
        data = json.dumps(answer).encode() + b"\n"
        assert data.startswith(_PREFIX)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise ModelFileError(
                f"{self._path}: could not be written ({error.strerror or error}); what is there is kept, run again"
            ) from error
        self._size += len(data)
        self._count(answer)

    def _take_up(self, wanted: Set[str]) -> int:
        """Count the answers that are there; the size of the whole ones."""
        size = 0
        with open(self._path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    torn = raw.rstrip(b"\0")
                    if not torn.startswith(_PREFIX) and not _PREFIX.startswith(torn):
                        raise self._foreign(number)
                    break
                answer = _parsed(raw)
                if answer is None or answer["id"] not in wanted or answer["id"] in self.done:
                    raise self._foreign(number)
                self._count(answer)
                size += len(raw)
        return size

    def _count(self, answer: dict[str, Any]) -> None:
        self.failed += failed(answer)
        self.done.add(answer["id"])

    def _foreign(self, number: int) -> OptionError:
        return OptionError(
            f"{self._path}: line {number} does not answer a line of this input; name another file for the output"
        )
