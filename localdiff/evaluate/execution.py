"""Running a generated program, where the caller asked for it: a child process with limits, in an empty folder.

Time, memory and the size of files are limited, nothing else is: the program can read files and open connections as its
user can. So it never runs unasked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

SECONDS = 5
MEMORY = 1 << 30
FILE_BYTES = 1 << 20

_LIMITS = (
    "import resource as r\n"
    f"r.setrlimit(r.RLIMIT_CPU, ({SECONDS}, {SECONDS}))\n"
    f"r.setrlimit(r.RLIMIT_AS, ({MEMORY}, {MEMORY}))\n"
    f"r.setrlimit(r.RLIMIT_FSIZE, ({FILE_BYTES}, {FILE_BYTES}))\n"
    "import sys\n"
    "exec(compile(sys.stdin.read(), 'program', 'exec'), {'__name__': 'program'})\n"
)


def run_program(program: str) -> str:
    """What became of a program: passed (it ended without an error), timed out, or failed: and the last line it said."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _LIMITS],
                input=program.encode("utf-8", "replace"), capture_output=True, cwd=folder, env={}, timeout=2 * SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "timed out"
    if done.returncode == 0:
        return "passed"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"failed: {lines[-1][:200]}" if lines else f"failed: exit status {done.returncode}"
