#!/usr/bin/env python3
"""Long attacks on the server: requests made from its own description, streams held, slow clients, disconnects.

    tests/soak_serve.py [--requests N] [--minutes M] [--streams N] [--slow N] [--leave N]

T7: schemathesis sends N requests made from /openapi.json, in turns to every address and for M minutes at most; no
answer may be a failure of the server or show a path or a traceback. T12: streams held together, clients that send their
request byte by byte and stop, and clients that leave in the middle; meanwhile one client behaves well and must be
served, and afterwards files and memory are back where they began (+-2 %). Before memory is looked at, the attacks go on
until the session, which grows with the texts that are denoised together, has its full size. Prints one line for each
and ends with 1 where one fails. Counters are kept by hand in TRUST.md. Not here: speed (bench/serve.py), T24
(test_trace.py).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from serving import CHATTY, STORIES, Server, write_chatty  # noqa: E402

Attacks = list[tuple[str, int, Callable[[str, int], Awaitable[None]]]]
BODY = {"model": STORIES, "prompt": "Once", "max_tokens": 24}
LEAKS = (str(ROOT), "Traceback", "site-packages", 'File "')


def resources(server: Server) -> tuple[int, float]:
    """Open files and resident MiB of the server."""
    process = Path(f"/proc/{server.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    return len(list((process / "fd").iterdir())), pages * 4096 / 2**20


def settled(server: Server, files: int) -> tuple[int, float]:
    """The resources once no more than `files` are open, or after a minute: a body may take half of one to arrive."""
    for _ in range(60):
        now = resources(server)
        if now[0] <= files:
            break
        time.sleep(1)
    return now


def session_bytes(url: str) -> int:
    """Memory of the sessions of all models, as the server says."""
    return sum(model["session_bytes"] for model in httpx.get(f"{url}/v1/models", timeout=300).json()["data"])


def warm_up(server: Server, attacks: Attacks) -> None:
    """Attack until the sessions do not grow any more, nor the part of their memory that was ever used."""
    before, used = -1, 0.0
    for _ in range(20):
        for _, count, attack in attacks:
            asyncio.run(beside(server.url, attack(server.url, min(count, 1000))))
        now, now_used = session_bytes(server.url), resources(server)[1]
        if now == before and now_used < used * 1.005:
            return
        before, used = now, now_used


def from_description(url: str, count: int, minutes: float) -> str:
    """T7; returns what was found."""
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json", timeout=300).json())
    operations = [operation.ok() for operation in schema.get_all_operations()]
    sent, statuses, until = 0, dict[int, int](), time.monotonic() + 60 * minutes
    with httpx.Client(base_url=url, timeout=120) as client:
        for operation in itertools.cycle(operations):
            if sent >= count or time.monotonic() > until:
                break

            @hypothesis.settings(
                max_examples=min(100, count - sent), deadline=None, database=None,
                suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy())
            def attack(case: Any) -> None:
                nonlocal sent
                answer = case.call(base_url=url)
                sent += 1
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                assert answer.status_code < 500 or answer.status_code == 503, (case.body, answer.text)
                assert not any(leak in answer.text for leak in LEAKS), answer.text

            attack()
            print(f"\r{sent}", end="", file=sys.stderr, flush=True)
        assert client.get("/health").status_code == 200
    return f"{sent} requests of {count} to {len(operations)} addresses, by status {dict(sorted(statuses.items()))}"


async def held(url: str, count: int) -> None:
    """Streams that are read to their end, all open at once."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(seed: int) -> None:
            body = {**BODY, "stream": True, "seed": seed}
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                assert answer.status_code == 200, answer.status_code
                text = "".join([piece async for piece in answer.aiter_text()])
            assert "[DONE]" in text
            assert '"error"' not in text

        await asyncio.gather(*(one(seed) for seed in range(count)))


async def slow(url: str, count: int) -> None:
    """Clients that begin a request, send a byte now and then, and leave."""
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 100\r\n\r\n".encode()

    async def one(seed: int) -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        for byte in head[: 20 + seed % 70]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        writer.close()

    await asyncio.gather(*(one(seed) for seed in range(count)))


async def leaving(url: str, count: int) -> None:
    """Clients that leave at a random moment, fifty at a time."""
    host, port = url.removeprefix("http://").split(":")
    draw = random.Random(1)

    async def one(seed: int) -> None:
        asked = {"model": STORIES, "prompt": "Once", "max_tokens": 200, "steps": 200, "stream": draw.random() < 0.5}
        body = json.dumps(asked)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(whole[: draw.randrange(1, len(whole))] if draw.random() < 0.3 else whole)
        await writer.drain()
        await asyncio.sleep(draw.random() * 0.05)
        if draw.random() < 0.5:
            reader.feed_eof()
        writer.transport.abort()

    for start in range(0, count, 50):
        await asyncio.gather(*(one(seed) for seed in range(start, min(count, start + 50))))


async def beside(url: str, attack: Awaitable[None]) -> int:
    """An attack, and one client that behaves well meanwhile; how often that one was served."""
    attacking = asyncio.ensure_future(attack)
    served = 0
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        while not attacking.done() or not served:
            answer = await client.post("/v1/completions", json={**BODY, "max_tokens": 4, "steps": 2})
            assert answer.status_code == 200, answer.text
            served += 1
            await asyncio.sleep(0.05)
        await attacking
        for _ in range(400):
            models = (await client.get("/health")).json()["models"]
            if not any(model["live"] + model["waiting"] for model in models):
                break
            await asyncio.sleep(0.05)
    return served


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=600.0, help="of them at most")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--leave", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chatty = write_chatty(Path(folder))
        stories = ROOT / "localdiff" / "models" / f"{STORIES}.gguf"
        with Server(str(stories), "--model", f"{CHATTY}={chatty}", "--queue", "2000") as server:
            attacks: Attacks = [("streams held", asked.streams, held), ("slow clients", asked.slow, slow),
                       ("disconnects", asked.leave, leaving)]  # fmt: skip
            warm_up(server, attacks)
            for name, count, attack in attacks:
                files, memory = resources(server)
                served = asyncio.run(beside(server.url, attack(server.url, count)))
                now_files, now_memory = settled(server, files + 2)
                print(f"{name}: {count}; a client beside them served {served} times; files {files} -> {now_files}, "
                      f"memory {memory:.1f} -> {now_memory:.1f} MiB", flush=True)  # fmt: skip
                if now_files > files + 2 or now_memory > memory * 1.02:
                    return 1
            if asked.requests:
                print(from_description(server.url, asked.requests, asked.minutes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
