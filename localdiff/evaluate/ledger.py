"""Finished items on disk beside the result, so that a run that was interrupted goes on where it stopped.

One JSON object per line: first what the records depend on, then one record per item, in order. Lines are added and
synced as items are finished; a line that was cut off by a crash is dropped. The file goes when the result is written.
Not here: the result.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import atomic_file, check_target
from ..errors import ModelFileError, OptionError, counted


class Ledger:
    """records: what is finished so far. path None: nothing is kept."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], resume: bool) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = path
        if path is None:
            return
        check_target(path)
        found = _read(path) if path.exists() else []
        if found and not resume:
            raise OptionError(
                f"{path}: {counted(len(found) - 1, 'item')} of an interrupted run; go on with --resume, or remove the "
                "file"
            )
        if found:
            _compare(path, found[0], header)
            self.records = found[1:]
        with atomic_file(path) as temporary:  # without a line that was cut off
            temporary.write_text("".join(_line(each) for each in (header, *self.records)), encoding="utf-8")

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        self.records += records
        if self._path is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(map(_line, records)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ModelFileError(f"{self._path}: could not be written: {error.strerror or error}") from error

    def remove(self) -> None:
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()


def ledger_path(output: str) -> Path | None:
    return Path(f"{output}.part.jsonl") if output else None


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what stands after the last line end was cut off
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise OptionError(f"{path}: line {len(rows) + 1} is not what an interrupted run leaves; remove the file")
        rows.append(row)
    return rows


def _compare(path: Path, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    for name in {**header, **found}:
        if found.get(name) != json.loads(json.dumps(header.get(name))):
            raise OptionError(
                f"{path}: begun with {name} {found.get(name)!r}, but now it is {header.get(name)!r}; use the same "
                "settings, or remove the file"
            )
