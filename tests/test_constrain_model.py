"""Constraints on the embedded model: schemas and regexes that the tests make, all valid; the command line.

LOCALDIFF_CONSTRAINTS=N tries 3 N schemas and N regexes instead of 36 and 12; `tools/dev constraints` is N = 100.
"""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from constraint_cases import fits, is_valid, regex_case, schema_case

from localdiff.canvas import Hole
from localdiff.cli import main
from localdiff.errors import OptionError
from localdiff.model import Model

TRIED = int(os.environ.get("LOCALDIFF_CONSTRAINTS", "12"))
DECODERS = (None, "threshold", "klass", None, "eb-sampler", "llada2")  # None is the model's own
ROOM = 100


def options(seed: int) -> dict[str, Any]:
    return {
        "max_new_tokens": ROOM,
        "seed": seed,
        "decoder": DECODERS[seed % len(DECODERS)],
        "temperature": seed % 3 / 2,
    }


def texts(model: Model, name: str, case: Any, wanted: int) -> Iterator[tuple[Any, str]]:
    """(constraint, text) for `wanted` constraints whose shortest text fits; the others must be refused for that."""
    found = 0
    for seed in count():
        if found == wanted:
            return
        constraint = case(seed)
        try:
            text = model.generate("Once upon a time", **{name: constraint}, **options(seed)).text
        except OptionError as error:
            if "the shortest text that matches" not in str(error):
                raise
            continue
        found += 1
        yield constraint, text


def test_all_json_is_valid(stories: Model) -> None:
    for schema, text in texts(stories, "json_schema", schema_case, 3 * TRIED):
        assert is_valid(text, schema), (schema, text)


def test_all_texts_match_their_regex(stories: Model) -> None:
    for pattern, text in texts(stories, "regex", regex_case, TRIED):
        assert fits(text, pattern), (pattern, text)


def test_a_hole_of_the_embedded_model(stories: Model) -> None:
    out = stories.infill(["Once there were ", Hole(3), " of them."], regex="(one|two|three|four)( hundred| million)*")
    assert fits(out.holes[0], "(one|two|three|four)( hundred| million)*")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["run", "Once", "--seed", "1", "-n", "40", "--threads", "1", "--no-live", *arguments])
    return code, *capsys.readouterr()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "list.lark"
    schema.write_text('{"type": "object", "properties": {"name": {"enum": ["Tim", "Lucy"]}}, "required": ["name"]}')
    grammar.write_text('start: word ("," word)*\nword: /[a-z]+/')
    assert json.loads(run(capsys, "--json-schema", str(schema))[1])["name"] in ("Tim", "Lucy")
    assert fits(run(capsys, "--regex", "[A-Z][a-z]+ (ran|sat)\\.")[1], "[A-Z][a-z]+ (ran|sat)\\.\n")
    assert fits(run(capsys, "--grammar", str(grammar))[1], "[a-z]+(,[a-z]+)*\n")
    assert isinstance(json.loads(run(capsys, "--json-object")[1]), dict)
    assert json.loads(run(capsys, "--regex", "a|b", "--json")[1])["decoder"]["constraint"] == "regex"
    for wrong in (["--regex", "a{9000}"], ["--json-schema", str(tmp_path / "none")], ["--regex", "a", "--json-object"]):
        code, printed, error = run(capsys, *wrong)
        assert code == 2
        assert error.startswith("localdiff: ")
        assert not printed
