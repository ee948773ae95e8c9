"""The app: all addresses behind the guard, and the command's way of running it.

run() binds the socket itself, so that a taken port is one sentence, and ends as uvicorn does on SIGINT and SIGTERM: no
new requests, running ones are finished within a time, then the schedulers stop.
"""

from __future__ import annotations

import ipaddress
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from .. import __version__
from ..errors import OptionError, counted
from . import native, ollama, openai, refusals
from .guard import Guard, Rules, loopback_hosts
from .hub import Hub
from .metrics import CountRequests, Metrics

STATIC = Path(__file__).parent / "static"
_PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Binding:
    """Where to listen and who may come; key: None = none; patience: seconds for running requests at the end."""

    host: str
    port: int
    key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    body: int = 1 << 20
    patience: int = 30


def make_app(hub: Hub, rules: Rules) -> ASGIApp:
    """The ASGI app; the hub is closed when it ends."""
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # it would cut running streams

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        hub.close()

    app = FastAPI(title="localdiff", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.hub = hub
    metrics = Metrics(hub)
    for module in (openai, ollama, native):
        app.include_router(module.router)
    refusals.install(app)

    @app.get("/metrics", response_class=Response)
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return Guard(CountRequests(app, metrics), rules)


def check(binding: Binding) -> None:
    """Raise OptionError where the server would be open to others without a key."""
    if binding.key is not None and len(binding.key) < 8:
        found = counted(len(binding.key), "character")
        raise OptionError(f"the API key has {found}, expected at least 8; choose a longer one")
    if not is_loopback(binding.host) and binding.key is None:
        raise OptionError(
            f"--host {binding.host} can be reached from other machines, which needs a key; give --api-key KEY or set "
            "LOCALDIFF_API_KEY"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(hub: Hub, binding: Binding, ready: Callable[[str], None]) -> None:
    """Serve until a signal; ready(url) is called when the port is open."""
    check(binding)
    with listen(binding) as listening:
        port = listening.getsockname()[1]
        hosts = loopback_hosts(port, binding.allow_hosts) if is_loopback(binding.host) else None
        app = make_app(hub, Rules(hosts, binding.key, binding.body))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15,
            timeout_graceful_shutdown=binding.patience, backlog=2048, proxy_headers=False, ws="none",
        )  # fmt: skip
        _raise_file_limit()
        ready(f"http://{f'[{binding.host}]' if ':' in binding.host else binding.host}:{port}")
        uvicorn.Server(config).run(sockets=[listening])


def listen(binding: Binding) -> socket.socket:
    """The bound socket; OptionError where the address or port cannot be had."""
    try:
        family = socket.getaddrinfo(binding.host, binding.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((binding.host, binding.port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(
            f"{binding.host}:{binding.port} cannot be listened on ({reason}); give --port or --host"
        ) from None
    listening.listen(2048)
    return listening


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
