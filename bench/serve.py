#!/usr/bin/env python3
"""What the server takes and gives on loopback: start, one client, eight, sixty-four, and /health meanwhile.

Every client sends one request after the other, completions of the default model with seeds of their own, and the server
is a process of its own on the same machine, so the clients' work is in the figures too. "health" is the time of GET
/health, asked for every 20 ms while the others run. One JSON line last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from serving import Server  # noqa: E402

from localdiff.bench.card import cpu_name  # noqa: E402

TOKENS = 64


async def ask(client: httpx.AsyncClient, seed: int) -> int:
    """One completion; the tokens that were made."""
    body = {"prompt": "Once upon a time", "max_tokens": TOKENS, "seed": seed}
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


async def load(url: str, clients: int, requests: int) -> dict[str, float]:
    """`requests` completions by `clients` clients at once."""
    health: list[float] = []
    served = 0
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        ended = asyncio.Event()

        async def watch() -> None:
            while not ended.is_set():
                started = time.perf_counter()
                (await client.get("/health")).raise_for_status()
                health.append(time.perf_counter() - started)
                await asyncio.sleep(0.02)

        todo = iter(range(requests))

        async def work() -> int:
            nonlocal served
            made = 0
            for seed in todo:
                made += await ask(client, seed)
                served += 1
            return made

        watching = asyncio.ensure_future(watch())
        started = time.perf_counter()
        tokens = sum(await asyncio.gather(*(work() for _ in range(clients))))
        seconds = time.perf_counter() - started
        ended.set()
        await watching
    return {
        "clients": clients, "requests": requests, "served": served, "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1), "health_median_ms": round(1e3 * statistics.median(health), 2),
        "health_p99_ms": round(1e3 * statistics.quantiles(health, n=100)[-1] if len(health) > 1 else 0, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="of the server (default: all)")
    parser.add_argument("--requests", type=int, default=64, help="completions in each round")
    asked = parser.parse_args()
    started = time.perf_counter()
    with Server(threads=asked.threads) as server:
        asyncio.run(load(server.url, 1, 1))
        found: dict[str, object] = {"start_to_first_answer_seconds": round(time.perf_counter() - started, 3)}
        rounds = [asyncio.run(load(server.url, clients, asked.requests)) for clients in (1, 8, 64, 1, 8)]
    for each in rounds:
        print(each, file=sys.stderr)
    one, eight = ([each["tokens_per_second"] for each in rounds if each["clients"] == n] for n in (1, 8))
    found["eight_to_one"] = round(statistics.mean(eight) / statistics.mean(one), 2)
    print(json.dumps({**found, "rounds": rounds, "machine": cpu_name()}))


if __name__ == "__main__":
    main()
