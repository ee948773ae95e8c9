"""Who the server lets in, how it starts and how it stops, against the trust rules. Not here: what it answers
(test_serve_http.py)."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from serving import STORIES, Server
from starlette.types import ASGIApp

from localdiff.cli import main
from localdiff.model import Model
from localdiff.serve.app import make_app
from localdiff.serve.guard import Rules, loopback_hosts
from localdiff.serve.hub import Hub
from localdiff.serve.scheduler import Limits

KEY = "a key of some length"


@pytest.fixture(scope="module")
def hub(stories: Model) -> Iterator[Hub]:
    made = Hub([(STORIES, stories)], Limits(2, 2, 60, 1 << 30))
    yield made
    made.close()


def ask(app: ASGIApp, method: str, path: str, headers: list[tuple[str, str]]) -> int:
    """The status of a request with exactly these headers."""
    status: list[int] = []

    async def run() -> None:
        sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": sent,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080),
        }  # fmt: skip

        received = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            return next(received, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        await app(scope, receive, send)

    anyio.run(run)
    return status[0]


ROUTES = [
    ("GET", "/"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/x"),
    ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/v1/infill"), ("POST", "/tokenize"),
    ("POST", "/detokenize"), ("POST", "/api/generate"), ("POST", "/api/chat"), ("GET", "/api/tags"),
    ("POST", "/api/show"), ("GET", "/api/ps"), ("GET", "/api/version"), ("GET", "/static/index.html"),
    ("GET", "/openapi.json"), ("OPTIONS", "/v1/completions"), ("GET", "/nowhere"),
]  # fmt: skip
GOOD_HOSTS = ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LocalHost:8080", "my.box:9"]
BAD_HOSTS = [
    "", "localhost", "127.0.0.1", "localhost:8081", "localhost:80800", "evil.example", "evil.example:8080",
    "localhost.evil.example:8080", "127.0.0.1.evil.example:8080", "localhost.:8080", "localhost:8080.", "0.0.0.0:8080",
    "127.0.0.2:8080", "127.1:8080", "2130706433:8080", "[::]:8080", "[::ffff:127.0.0.1]:8080", "::1:8080",
    "user@localhost:8080", "localhost:8080@evil.example", "localhost :8080", "localhost:8080/", "http://localhost:8080",
    "localhost:8080,evil.example", "local\u00f6st:8080",
]  # fmt: skip
BAD_ORIGINS = [
    "null", "http://evil.example", "http://localhost", "http://localhost:3000", "http://127.0.0.1:8080",
    "https://localhost", "http://localhost:8080.evil.example", "http://localhost:8080@evil.example",
    "http://sub.localhost:8080", "file://", "ws://localhost:8080", "localhost:8080", "",
    "http://localhost:8080 http://evil.example", "http://evil.example:8080",
]  # fmt: skip


def test_only_this_machines_names_and_pages_come_in(hub: Hub) -> None:
    """40 variants of Host and Origin on every route: 403 for all but the list."""
    app = make_app(hub, Rules(loopback_hosts(8080, ["my.box:9"]), None, 1 << 20))
    for method, path in ROUTES:
        for host in GOOD_HOSTS:
            assert ask(app, method, path, [("Host", host)]) != 403, (path, host)
            assert ask(app, method, path, [("Host", host), ("Origin", f"http://{host}")]) != 403
        for host in BAD_HOSTS:
            assert ask(app, method, path, [("Host", host)]) == 403, (path, host)
        for origin in BAD_ORIGINS:
            headers = [("Host", "localhost:8080"), ("Origin", origin)]
            assert ask(app, method, path, headers) == 403, (path, origin)
        assert ask(app, method, path, []) == 403
        assert ask(app, method, path, [("Host", "localhost:8080")] * 2) == 403


def test_a_key_is_wanted_on_all_but_the_page_and_health(hub: Hub) -> None:
    app = make_app(hub, Rules(None, KEY, 1 << 20))
    for method, path in ROUTES:
        for given, right in (
            (None, False), (f"Bearer {KEY}", True), (f"bearer  {KEY}", True), (f"Bearer {KEY}x", False),
            ("Bearer ", False), (f"Basic {KEY}", False), (KEY, False), ("Bearer k\u00e9y", False),
        ):  # fmt: skip
            headers = [("Host", "anything")] + ([] if given is None else [("Authorization", given)])
            free = path in ("/", "/health") or path.startswith("/static/")
            assert (ask(app, method, path, headers) == 401) == (not right and not free), (path, given)
        assert ask(app, method, path, [("Host", "a"), ("Origin", "http://b")]) == 403


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "which needs a key"),
        (["--host", "::"], "which needs a key"),
        (["--host", "example.org"], "which needs a key"),
        (["--host", "0.0.0.0", "--api-key", "short"], "at least 8"),
        (["--port", "99999"], "port is 99999"),
        (["--model", "nameless.gguf"], "expected NAME=FILE.gguf"),
        (["--timeout", "0"], "timeout is 0"),
    ],
)
def test_what_would_be_unsafe_does_not_start(arguments: list[str], said: str, capsys: Any) -> None:
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_taken_port_is_one_sentence(server: str, capsys: Any) -> None:
    assert main(["serve", "--port", server.rpartition(":")[2]]) == 2
    assert re.fullmatch(r"localdiff: 127\.0\.0\.1:\d+ cannot be listened on \(.+\); give .+\n", capsys.readouterr().err)


def test_an_ordinary_model_is_not_served(tmp_path: Path, capsys: Any) -> None:
    from tiny_gguf import write_tiny

    assert main(["serve", str(write_tiny(tmp_path / "plain.gguf", record=False))]) == 2
    assert "plain has no diffusion record" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_server_finishes_what_runs(tmp_path: Path, stream: bool) -> None:
    with Server(LOCALDIFF_API_KEY=KEY) as running:
        head = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        answers: list[httpx.Response] = []
        body = {"prompt": "Once upon a time", "max_tokens": 200, "steps": 200, "seed": 1, "stream": stream}
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{running.url}/v1/completions", json=body, headers=head, timeout=60)
            )
        )
        asking.start()
        while not httpx.get(f"{running.url}/health").json()["models"][0]["live"]:
            time.sleep(0.01)
        assert running.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        asking.join()
        assert answers[0].status_code == 200
        assert answers[0].text.rstrip().endswith("data: [DONE]" if stream else "}")
