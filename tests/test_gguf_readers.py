"""Three readers of the same generated GGUF files: ours, the gguf package, llama.cpp. They accept and refuse the same
ones, and see the same numbers of key-values and tensors, but for the differences that tests/TRUST.md lists.

llama.cpp's answers are recorded in goldens/gguf_readers.json. `tools/dev readers` asks it live, about more files, and
records them again: LOCALDIFF_PEER is its Python, LOCALDIFF_READER_FILES the number of files.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from gguf_cases import CHANGES, case

from localdiff.engine import File
from localdiff.errors import ModelFileError

TESTS = Path(__file__).resolve().parent
GOLDENS = TESTS / "goldens" / "gguf_readers.json"
RECORDED = 200
PEER = os.environ.get("LOCALDIFF_PEER")
FILES = int(os.environ.get("LOCALDIFF_READER_FILES", RECORDED))


def listed() -> dict[str, list[str]]:
    """What was changed -> how ours, the package and llama.cpp answer, from the table in TRUST.md."""
    rows = {}
    for line in (TESTS / "TRUST.md").read_text(encoding="utf-8").split("| what was changed |")[1].splitlines()[2:]:
        if not line.startswith("|"):
            break
        names, *answers, _ = (cell.strip() for cell in line.strip("|").split("|"))
        rows |= {name.strip(): answers for name in names.split(";")}
    return rows


def ask_ours(path: Path) -> str:
    try:
        with File.open(path) as file:
            return f"{len(file.metadata)} {len(file.tensors)}"
    except ModelFileError:
        return "refused"


def ask_child(command: list[str], paths: list[Path], ended: str) -> list[str]:
    """The answers of a program that reads paths and prints one line for each. It is started again after a file that
    ends it, whose answer is `ended`."""
    answers: list[str] = []
    while len(answers) < len(paths):
        rest = "\n".join(map(str, paths[len(answers) :]))
        done = subprocess.run(command, input=rest.encode(), capture_output=True, timeout=600)
        answers += done.stdout.decode().splitlines()
        if done.returncode > 0 and not done.stdout:
            pytest.fail(f"{command[0]} does not run: {done.stderr.decode()[-300:]}")
        if len(answers) < len(paths):
            answers.append(ended)
    return answers


def word(answer: str) -> str:
    return {"refused": "refuses", "hangs": "hangs", "aborted": "aborts"}.get(answer, "accepts")


def test_three_readers_agree(tmp_path: Path) -> None:
    cases = [case(number) for number in range(FILES)]
    checksums = [zlib.crc32(data) for _, data in cases]
    paths = [tmp_path / f"{number}.gguf" for number in range(FILES)]
    for path, (_, data) in zip(paths, cases, strict=True):
        path.write_bytes(data)
    if PEER:
        theirs = ask_child([PEER, str(TESTS.parent / "tools" / "peer_gguf")], paths, ended="aborted")
        if FILES >= RECORDED:
            record = {"checksums": checksums[:RECORDED], "answers": theirs[:RECORDED]}
            GOLDENS.write_text(json.dumps(record, indent=0) + "\n")
    else:
        record = json.loads(GOLDENS.read_text())
        assert record["checksums"][:FILES] == checksums[:RECORDED]
        theirs = record["answers"] + ["?"] * (FILES - RECORDED)

    packages = ask_child([sys.executable, str(TESTS / "gguf_package.py")], paths, ended="hangs")

    expected = listed()
    seen: set[str] = set()
    accepted = 0
    for path, (name, _), package, peer in zip(paths, cases, packages, theirs, strict=True):
        ours = ask_ours(path)
        accepted += ours != "refused"
        answers = [ours, package] if peer == "?" else [ours, package, peer]
        if len(set(answers)) == 1:
            continue
        found = [word(answer) for answer in answers]
        assert name in expected, f"{path.name} ({name}): {found}, which TRUST.md does not list"
        for answer, allowed in zip(found, expected[name], strict=False):
            assert answer == allowed or allowed == "either", f"{path.name} ({name}): {found}, listed {expected[name]}"
        seen.add(name)
    assert accepted > FILES // 3
    assert set(expected) <= set(CHANGES)
    if PEER and FILES >= 2000:
        assert seen == set(expected), f"listed in TRUST.md but agreed: {set(expected) - seen}"
