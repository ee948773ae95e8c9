#!/usr/bin/env python3
"""Time of a forward pass against the number of threads, also far beyond the processors: nothing may stall there.

    bench/threads.py MODEL.gguf [--threads 1,2,3,4,8,16,32] [--rows 8,64,256] [--rounds N] [--out FOLDER] [--name NAME]

Every session has its own threads over the same weights; they take turns, so that a slow spell of the machine hits all
alike. All rows are scored. `ratio` is the median against that of as many threads as the process may use (or the nearest
number measured), `ratio_min` compares the fastest passes, as noise only adds. Writes JSON, prints a table and, last,
the JSON. Not here: how time grows with anything else (growth.py).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer import timed, tokens

ROOT = Path(__file__).resolve().parent.parent


def measure(path: Path, threads: Sequence[int], rows: Sequence[int], rounds: int) -> tuple[int, list[dict[str, Any]]]:
    """Threads that the process may use, and per number of rows and threads ms (median), ms_min and ms_max."""
    from localdiff.engine import EngineModel, File, Request

    found = []
    with File.open(path) as file, EngineModel(file) as model:
        with model.session(slot_length=1) as session:
            available = session.timings().threads
        for count in rows:
            ids, every = np.array(tokens(model.info.vocab, count), np.int32), np.arange(count, dtype=np.int32)
            sessions = [model.session(slot_length=count, threads=number) for number in threads]
            seconds: list[list[float]] = [[] for _ in threads]
            for round_ in range(rounds + 1):  # the first warms up
                for session, samples in zip(sessions, seconds, strict=True):
                    taken = timed(functools.partial(session.propose, [Request(ids, every)]))["wall"]
                    samples += taken if round_ else []
                print(f"{count} rows, round {round_} of {rounds}", file=sys.stderr, flush=True)
            for number, session, samples in zip(threads, sessions, seconds, strict=True):
                low, middle, high = min(samples), statistics.median(samples), max(samples)
                session.close()
                found.append({"rows": count, "threads": number, "ms": round(middle * 1e3, 3),
                              "ms_min": round(low * 1e3, 3), "ms_max": round(high * 1e3, 3)})  # fmt: skip
    return available, found


def numbers(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    from localdiff.bench.card import machine_card
    from localdiff.engine import isa_rows

    parser = argparse.ArgumentParser(prog="bench/threads.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=numbers, default=[1, 2, 3, 4, 8, 16, 32], help="separated by commas")
    parser.add_argument("--rows", type=numbers, default=[8, 64, 256], help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", help="of the file written (default DATE-threads)")
    options = parser.parse_args(arguments)
    available, found = measure(options.model, options.threads, options.rows, options.rounds)
    isa = next(name for name, supported in isa_rows() if supported)
    card = machine_card(isa, max(options.threads))
    whole = min(options.threads, key=lambda number: abs(number - available))
    base = {one["rows"]: one for one in found if one["threads"] == whole}
    print("| rows | threads | ms | min | max | ratio | of min |\n|---|---|---|---|---|---|---|")
    for one in found:
        one["ratio"] = round(one["ms"] / base[one["rows"]]["ms"], 2)
        one["ratio_min"] = round(one["ms_min"] / base[one["rows"]]["ms_min"], 2)
        print("| " + " | ".join(str(value) for value in one.values()) + " |")
    result = {"bench": "threads", "model": options.model.stem, "available": available, "machine": card,
              "forwards": found}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or f"{datetime.date.today().isoformat()}-threads"
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
