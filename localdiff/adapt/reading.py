"""Text files -> documents, which are separated by a line `<|endoftext|>` (text) or are the "text" of each line (JSON
lines). Needs nothing of the extra [train]: gathering and evaluation read texts too.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import OptionError

SEPARATOR = "<|endoftext|>"
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, "": open}


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of one file, blank ones left out. Raises OptionError for files that cannot be read."""
    kinds = (".txt", ".jsonl")
    lines = read_lines(path, kinds)
    return _json_documents(lines, path) if _kind(path)[0] == ".jsonl" else _text_documents(lines)


def _kind(path: Path) -> tuple[str, str]:
    """The kind of a file and how it is compressed, as suffixes."""
    compression = path.suffix if path.suffix in _OPENERS else ""
    return Path(path.name.removesuffix(compression)).suffix, compression


def read_lines(path: Path, kinds: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers from 1. Raises OptionError for files that cannot be read."""
    if not path.is_file():
        raise OptionError(f"--data {path}: no such file")
    kind, compression = _kind(path)
    if kind not in kinds:
        raise OptionError(f"--data {path}: expected {' or '.join(kinds)}, alone or with .xz, .gz or .bz2 after it")
    try:
        with _OPENERS[compression](path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, _decode(line, path, number)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; damage has no number
            raise
        raise OptionError(f"--data {path}: the compressed file is damaged ({error})") from None


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise OptionError(f"--data {path}: not UTF-8 text near line {line}; convert the file first") from None


def _text_documents(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    document: list[str] = []
    for _, line in lines:
        if line.strip() == SEPARATOR:
            text = "".join(document).strip()
            document.clear()
            if text:
                yield text
        else:
            document.append(line)
    text = "".join(document).strip()
    if text:
        yield text


def _json_documents(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[str]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OptionError(f'--data {path}: line {number} is not a JSON object with a string "text"') from None
        if document:
            yield document
