"""Data sets -> items. One function per format; each yields dataclasses that choosing, filling and answering work on.

A line that is not what it should be is an OptionError with its number. Not here: opening files (adapt/reading.py),
tokens, prompts, downloads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapt.reading import read_documents, read_lines
from ..errors import OptionError
from ..quantize.gathering import in_turn

# up to an end mark, its quotes and the space behind, unless it ends an abbreviation or a small letter follows
_SENTENCE = re.compile(
    r'.+?(?:(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?]+["\'\u201d\u2019)]*(?=\s+[^\sa-z]|\s*$)|$)\s*', re.S
)
STORY_SENTENCES = (3, 5)  # at least, at most
_ENDINGS = 4


@dataclass(frozen=True)
class Choice:
    """endings[label] is the right one; they follow the context directly, spaces included."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Blank:
    """A text with a hole: before + target + after, spaces included. known: facts that go into the item's record."""

    before: str
    target: str
    after: str = ""
    known: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A question, its solution in words, and the number that it comes to."""

    question: str
    solution: str
    answer: str


def stories(path: Path) -> Iterator[Blank]:
    """The middle one of every five sentences (of three or four at the end) of each document: the first passages of all
    documents, then the second ones, and so on; or .jsonl with before, target and after."""
    if ".jsonl" in path.suffixes:
        for number, row in _rows(path):
            before, target, after = (_text(path, number, row, name) for name in ("before", "target", "after"))
            yield Blank(before, target, after)
        return
    yield from in_turn([_passages(document) for document in read_documents(path)])


def _passages(document: str) -> Iterator[Blank]:
    least, most = STORY_SENTENCES
    sentences = _SENTENCE.findall(document)
    for first in range(0, len(sentences) - least + 1, most):
        passage = sentences[first : first + most]
        middle = (len(passage) - 1) // 2
        hole = passage[middle].rstrip()
        after = passage[middle][len(hole) :] + "".join(passage[middle + 1 :])
        yield _with_space("".join(passage[:middle]), hole, after.rstrip())


def last_words(path: Path) -> Iterator[Blank]:
    """LAMBADA: a passage on each line, its last word the target."""
    for _, line in read_lines(path, (".txt",)):
        before, _, word = line.rstrip().rpartition(" ")
        if before and word:
            yield _with_space(before + " ", word, "")


def code_lines(path: Path) -> Iterator[Blank]:
    """HumanEval infilling: task_id, prompt, suffix, canonical_solution, test, entry_point."""
    for number, row in _rows(path):
        names = ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point")
        task, prompt, suffix, solution, test, entry = (_text(path, number, row, name) for name in names)
        yield Blank(prompt, solution, suffix, {"task_id": task, "test": test, "entry_point": entry})


def hellaswag(path: Path) -> Iterator[Choice]:
    """Six lines an item: context, label, four endings."""
    lines = [line.rstrip("\r\n") for _, line in read_lines(path, (".txt",))]
    while lines and not lines[-1]:
        lines.pop()
    for first in range(0, len(lines), _ENDINGS + 2):
        context, label, *endings = lines[first : first + _ENDINGS + 2]
        if len(endings) != _ENDINGS or label.strip() not in {str(place) for place in range(_ENDINGS)}:
            raise OptionError(
                f"--data {path}: line {first + 1} does not begin an item of HellaSwag, expected six lines: "
                "context, label 0 to 3, four endings"
            )
        yield Choice(context, tuple(f" {ending}" for ending in endings), int(label))


def choices(path: Path) -> Iterator[Choice]:
    """.jsonl with goal, sol1, sol2, label (PIQA), or with context, choices (a list), label."""
    for number, row in _rows(path):
        endings: Any
        if "goal" in row:
            context, endings = _text(path, number, row, "goal"), [row.get("sol1"), row.get("sol2")]
        else:
            context, endings = _text(path, number, row, "context"), row.get("choices")
        listed = isinstance(endings, list) and len(endings) > 1 and all(isinstance(each, str) for each in endings)
        label = row.get("label")
        if not listed or isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(endings):
            raise OptionError(
                f"--data {path}: line {number} is no item, expected goal, sol1, sol2 and label, or context, choices "
                "and label, the label a number from 0"
            )
        yield Choice(context, tuple(f" {each}" for each in endings), label)


def problems(path: Path) -> Iterator[Problem]:
    """GSM8K: question, and an answer that ends in #### and a number."""
    for number, row in _rows(path):
        question, solution = (_text(path, number, row, name) for name in ("question", "answer"))
        if "####" not in solution:
            raise OptionError(f"--data {path}: line {number} has no #### before its result, expected GSM8K's form")
        yield Problem(question.strip(), solution.strip(), solution.rpartition("####")[2].strip())


def _with_space(before: str, target: str, after: str) -> Blank:
    """The space before a hole is part of it: in most vocabularies it belongs to the first word."""
    space = " " if before.endswith(" ") else ""
    return Blank(before.removesuffix(" "), space + target, after)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path, (".jsonl",)):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise OptionError(f"--data {path}: line {number} is not a JSON object, expected one on each line")
            yield number, row


def _text(path: Path, number: int, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise OptionError(f'--data {path}: line {number} has no text "{name}"')
    return value
