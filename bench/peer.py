"""What every peer is to compare.py: a child process that answers one JSON line per request on stdin with one on stdout.

A peer hands serve() its operations; each takes the request's other fields and returns a JSON object. Whatever a library
prints on stdout goes to stderr. Not here: any arithmetic, any judgement.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from time import perf_counter, process_time
from typing import Any

TURN_SECONDS = 0.25  # a turn repeats its work until it took this long


def serve(operations: Mapping[str, Callable[..., dict[str, Any]]], ready: dict[str, Any]) -> None:
    """Answer requests until stdin ends; `ready` is sent first."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request.pop("do")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def timed(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds of each repetition of `work` in one turn: on the wall, and of processor time over all threads."""
    wall: list[float] = []
    cpu: list[float] = []
    while sum(wall) < TURN_SECONDS:
        started, used = perf_counter(), process_time()
        work()
        wall.append(perf_counter() - started)
        cpu.append(process_time() - used)
    return {"wall": wall, "cpu": cpu}


def tokens(vocab: int, rows: int) -> list[int]:
    """The same arbitrary ids for every peer."""
    return [(i * 7919 + 13) % vocab for i in range(rows)]
