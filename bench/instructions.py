#!/usr/bin/env python3
"""Instructions of a fixed forward pass under callgrind: a figure of speed that noise cannot touch.

    bench/instructions.py PROGRAM [--record]         PROGRAM: the built fixed_forward, e.g. build/dev/fixed_forward

Counts one forward pass (a random model of 2 layers of width 256, 32 rows, one thread) per kernel row, type and
arithmetic, without loading and packing, and compares with bench/results/instructions.json; --record writes that file.
Counts depend on the compiler, whose name is kept with them; only the same compiler can be compared. Kernel rows that
valgrind cannot run (AVX-512 for one) are not here. Ends with 1 where a count has grown by more than 2 %, with 77 where
valgrind or readelf is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from random_model import Shape, write_random_model

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "bench" / "results" / "instructions.json"
ROWS = 32
SHAPE = Shape(layers=2, dim=256, vocab=512, context=64)
ISAS = ("avx2", "scalar")
KINDS = {"Q4_0": ("Q4_0", "exact"), "Q4_0 fast": ("Q4_0", "fast"), "Q8_0": ("Q8_0", "exact"), "F16": ("F16", "exact")}
TOLERATED = 0.02
NOT_POSSIBLE = 77  # exit status: this machine lacks a program


def count(program: Path, model: Path, isa: str, math: str) -> int:
    """Instructions within ld_session_propose."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--collect-atstart=no",
                   "--toggle-collect=ld_session_propose", str(program), str(model), isa, str(ROWS), math]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"instructions: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or not int(found[1]):
        raise SystemExit(f"instructions: nothing was counted in {program}; was it built with its symbols?")
    return int(found[1])


def compiler(program: Path) -> str:
    """What the compiler left in the program about itself."""
    done = subprocess.run(["readelf", "-p", ".comment", str(program)], capture_output=True, text=True)
    return ", ".join(sorted(set(re.findall(r"(GCC: .*|.*clang version .*)", done.stdout))))


def measure(program: Path) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {isa: {} for isa in ISAS}
    with tempfile.TemporaryDirectory() as folder:
        for kind, (type_, math) in KINDS.items():
            model = Path(folder) / f"{type_}.gguf"
            write_random_model(model, SHAPE, type_)
            for isa in ISAS:
                counts[isa][kind] = count(program, model, isa, math)
    return {
        "bench": "instructions",
        "compiler": compiler(program),
        "layers": SHAPE.layers,
        "dim": SHAPE.dim,
        "rows": ROWS,
        "instructions": counts,
    }


def grown(now: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Print both; whether a count has grown by more than TOLERATED."""
    worse = False
    for isa, kinds in now["instructions"].items():
        for kind, value in kinds.items():
            before = stored["instructions"].get(isa, {}).get(kind)
            change = value / before - 1 if before else 0.0
            print(f"{isa:8} {kind:9} {value:>13,}  {f'{change:+.2%}' if before else 'new'}")
            worse |= change > TOLERATED
    return worse


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/instructions.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", type=Path, metavar="PROGRAM")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args(arguments)
    missing = [name for name in ("valgrind", "readelf") if shutil.which(name) is None]
    if missing:
        print(f"instructions: {' and '.join(missing)} not found; install valgrind and binutils", file=sys.stderr)
        return NOT_POSSIBLE
    now = measure(options.program)
    stored = json.loads(STORED.read_text()) if STORED.is_file() else {"instructions": {}, "compiler": now["compiler"]}
    same = stored["compiler"] == now["compiler"]
    if not same:
        print(f"counts were recorded with {stored['compiler']}, this is {now['compiler']}: not comparable")
    worse = grown(now, stored)
    if options.record:
        STORED.parent.mkdir(parents=True, exist_ok=True)
        STORED.write_text(json.dumps(now, indent=1) + "\n")
    print(json.dumps(now))
    if worse and same and not options.record:
        print(f"instructions: a count has grown by more than {TOLERATED:.0%}; where that is meant, give --record",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
