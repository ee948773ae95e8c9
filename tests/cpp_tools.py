"""The C++ programs of tests/cpp that answer questions of Python tests, built by `tools/dev build` into build/dev.

LOCALDIFF_TOOLS names another folder. Where a program is absent, the test that needs it skips and says so.
"""

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("LOCALDIFF_TOOLS", Path(__file__).resolve().parent.parent / "build" / "dev"))


def tool(name: str, *arguments: object, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    program = FOLDER / name
    if not program.is_file():
        pytest.skip(f"{name} is not built; run tools/dev build")
    return subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, check=check, timeout=300)
