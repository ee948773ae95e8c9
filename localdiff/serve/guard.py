"""The guard: the outermost layer of the server, which every request of every route passes first.

Against pages of other origins in the user's own browser: on a loopback address only the names of this machine are taken
as Host, and an Origin must be the host itself; nothing here ever allows another one (no CORS). Then the key, where
there is one, and the size of the body and the time it may take to arrive. Not here: what requests ask for.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import Refused, respond

OPEN = ("/", "/health", "/static/")  # without a key; what ends in / stands for all below it
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_BODY_SECONDS = 30.0  # from the first byte of the head to the last of the body


@dataclass(frozen=True)
class Rules:
    """hosts: the Host values that are taken, lower case, None = any; key: None = none; body: bytes."""

    hosts: frozenset[str] | None
    key: str | None
    body: int


def loopback_hosts(port: int, more: Iterable[str] = ()) -> frozenset[str]:
    """The names of this machine with the port; without it too where it is HTTP's own."""
    names = {f"{name}:{port}" for name in _LOOPBACK_NAMES} | {name.lower() for name in more}
    return frozenset(names | (set(_LOOPBACK_NAMES) if port == 80 else set()))


class Guard:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
            body = await _read(receive, self._rules.body)
        except Refused as refused:
            await respond(scope["path"], refused)(scope, receive, send)
            return
        await self._app(_as_json(scope), _replay(body, receive), _hardened(send))

    def _check(self, scope: Scope) -> None:
        hosts, origins, keys, lengths = (_values(scope, name) for name in (b"host", b"origin", b"authorization",
                                                                          b"content-length"))  # fmt: skip
        host = hosts[0].lower() if len(hosts) == 1 else None
        if host is None or (self._rules.hosts is not None and host not in self._rules.hosts):
            raise Refused(403, "the Host of the request is not this server; --allow-host lets another one in")
        if origins and (len(origins) > 1 or origins[0].lower() not in (f"http://{host}", f"https://{host}")):
            raise Refused(403, "the request comes from a page of another origin, which this server does not answer")
        if self._rules.key is not None and not _is_open(scope["path"]) and not self._knows(keys):
            refused = Refused(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY")
            refused.headers["WWW-Authenticate"] = "Bearer"
            raise refused
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self._rules.body:
            raise _too_large(self._rules.body)

    def _knows(self, keys: list[str]) -> bool:
        assert self._rules.key is not None
        scheme, _, key = (keys[0] if len(keys) == 1 else "").partition(" ")
        same = hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._rules.key.encode())
        return same and scheme.lower() == "bearer"


def _as_json(scope: Scope) -> Scope:
    """The request with a body that is called a form taken as JSON, for `curl -d` calls it so. It opens nothing to pages
    of other sites: what their scripts post names its Origin, which was checked, and a form of a browser that names none
    cannot pass for JSON, its { and " are written as %7B and %22."""
    form = b"application/x-www-form-urlencoded"
    if not any(key == b"content-type" and value.lower() == form for key, value in scope["headers"]):
        return scope
    others = [(key, value) for key, value in scope["headers"] if key != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


async def _read(receive: Receive, limit: int) -> bytes:
    """The whole body; Refused where it is too large or too slow."""

    async def reading() -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client has gone")
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    try:
        return await asyncio.wait_for(reading(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body first."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body has more than the {limit} bytes that a request may have")


def _is_open(path: str) -> bool:
    return any(path == place or (len(place) > 1 and place.endswith("/") and path.startswith(place)) for place in OPEN)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def _hardened(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
        await send(message)

    return sending
