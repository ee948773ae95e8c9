"""Batches: the requests of a file, answered by the server's own app in this process, without a socket.

Lines are OpenAI's: {"custom_id", "method", "url", "body"}; answers {"id", "custom_id", "response": {"status_code",
"request_id", "body"}, "error"}. A line that is no request gets an error {"code", "message"}; what an address refuses
has its status and its own body, as over HTTP. Enough requests are under way to keep the scheduler's seats taken.
Not here: the files (batch_file.py), other machines (ray_data.py).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError
from starlette.types import ASGIApp, Message

from .app import make_app
from .batch_file import Line
from .guard import Rules
from .openai import _Strict
from .opening import Opening

if TYPE_CHECKING:
    from .hub import Hub

_BODY_BYTES = 1 << 20
_ANY_QUEUE = 1 << 20  # what waits is bounded by the requests under way


class _Request(_Strict):
    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/infill"]
    body: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request that can be sent; id: of its line, body: JSON."""

    id: str
    custom_id: str
    url: str
    body: str


def opening(files: Iterable[tuple[str | None, str | None]], loading: Mapping[str, Any], parallel: int,
            memory: int | None) -> Opening:  # fmt: skip
    """How models are opened for a batch: requests wait as long as they must."""
    return Opening(tuple(files), loading, parallel, _ANY_QUEUE, math.inf, memory)


def under_way(parallel: int) -> int:
    """How many requests are sent before the first is answered, for `parallel` texts denoised together."""
    return 2 * parallel


def unanswered(lines: Iterable[Line], done: Set[str]) -> Iterator[Asked | dict[str, Any]]:
    """For each line that is not done its request, or the answer that says what is wrong with the line."""
    first: dict[str, int] = {}  # custom_id -> line
    for line in lines:
        values, fault = _read(line.raw)
        custom_id = values.get("custom_id")
        custom_id = custom_id if isinstance(custom_id, str) else None
        code = "invalid_line"
        if custom_id is not None and first.setdefault(custom_id, line.number) != line.number:
            code, fault = "duplicate_custom_id", f"custom_id: line {first[custom_id]} has the same; give another one"
        if line.id in done:
            continue
        if fault is None:
            yield Asked(line.id, values["custom_id"], values["url"], json.dumps(values["body"]))
        else:
            error = {"code": code, "message": f"line {line.number}: {fault}"}
            yield {"id": line.id, "custom_id": custom_id, "response": None, "error": error}


def _read(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """The values of a line as far as they can be read, and what is wrong with it."""
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}, "no JSON; expected an object with custom_id, method, url and body"
    if not isinstance(values, dict):
        return {}, "no JSON object; expected one with custom_id, method, url and body"
    try:
        request = _Request.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        return values, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if request.body.get("stream"):
        return values, "body.stream: a batch has whole answers; leave it out"
    return values, None


def answer(hub: Hub, asked: Iterable[Asked], most: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests, `most` at a time, and tell each answer when it is there. KeyboardInterrupt ends it at once."""
    app = make_app(hub, Rules(None, None, _BODY_BYTES))
    left = iter(asked)

    async def some() -> None:
        for each in left:
            status, body = await _post(app, each.url, each.body.encode())
            response = {"status_code": status, "request_id": each.id, "body": json.loads(body)}
            tell({"id": each.id, "custom_id": each.custom_id, "response": response, "error": None})

    async def all_of_them() -> None:
        await asyncio.gather(*(some() for _ in range(most)))

    asyncio.run(all_of_them())


async def _post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """(status, body) of one call of the app, whose client stays to the end."""
    given, status, parts = False, 0, []

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # the client never leaves
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers,
        "client": None, "server": ("localhost", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return status, b"".join(parts)
