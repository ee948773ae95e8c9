"""What goes wrong with a request, and how it is said: one sentence, a status, and the name of the field.

OpenAI's clients read {"error": {"message", "type", "param", "code"}}, Ollama's {"error": "..."}; the path decides. No
message holds a path of the file system, and no exception's text goes out unless it was written for users.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ..errors import LocaldiffError, OptionError
from .scheduler import Busy, Stopping, TooLate

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         429: "rate_limit_error"}  # fmt: skip
_STATUS: tuple[tuple[type[LocaldiffError], int], ...] = (
    (OptionError, 400), (Busy, 429), (Stopping, 503), (TooLate, 503),
)  # fmt: skip


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}


def refusal(error: Exception) -> Refused:
    """The refusal that an exception becomes; what was not written for users is logged and not shown."""
    if isinstance(error, Refused):
        return error
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        logging.getLogger(__name__).error("a request failed", exc_info=error)
    known = isinstance(error, LocaldiffError)
    refused = Refused(status, str(error) if known else "the server failed on this request; its log says why")
    if isinstance(error, OptionError):
        named = re.match(r"([a-z_]+)( is |: )", str(error))
        refused.param = named[1] if named else None
    if isinstance(error, Busy):
        refused.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Stopping):
        refused.headers["Retry-After"] = "5"
    return refused


def shape(path: str, refused: Refused) -> dict[str, Any]:
    """The JSON of a refusal for the clients of a path."""
    ollama = path.startswith("/api/")
    name = "num_predict" if ollama else "max_tokens"  # what clients call it
    message = refused.message.encode("utf-8", "replace").decode().replace("max_new_tokens", name)
    if ollama:
        return {"error": message}
    param = name if refused.param == "max_new_tokens" else refused.param
    kind = KINDS.get(refused.status, "server_error" if refused.status >= 500 else KINDS[400])
    return {"error": {"message": message, "type": kind, "param": param, "code": refused.code}}


def respond(path: str, refused: Refused) -> JSONResponse:
    return JSONResponse(shape(path, refused), refused.status, refused.headers)


def _is_name(part: str | int) -> bool:
    """Whether a part of pydantic's location is a place in the body; members of unions are none."""
    return isinstance(part, int) or (part.isidentifier() and part.islower() and part not in ("str", "int", "float"))


def install(app: FastAPI) -> None:
    """Let the app answer every failure in these shapes."""

    async def known(request: Request, error: Exception) -> Response:
        return respond(request.url.path, refusal(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] in ("json_invalid", "model_attributes_type", "missing") and len(first["loc"]) < 3:
            missing = first["type"] == "missing" and len(first["loc"]) == 2
            name = str(first["loc"][-1]) if missing else None
            message = f"{name} is missing" if missing else "the body is no JSON object; send one"
            kind = request.headers.get("content-type", "missing")
            if not missing and not kind.startswith("application/json"):
                message = f"the Content-Type is {kind}, expected application/json; send it as a header"
            return respond(request.url.path, Refused(400, message, name))
        name = str(first["loc"][1]) if len(first["loc"]) > 1 else None
        place = ".".join(str(part) for part in first["loc"][1:] if _is_name(part))
        return respond(request.url.path, Refused(400, f"{place}: {first['msg']}", name))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: "there is no such address here", 405: "this address does not take that method"}
        refused = Refused(error.status_code, said.get(error.status_code, "the body cannot be read, expected JSON"))
        refused.headers.update(error.headers or {})
        return respond(request.url.path, refused)

    for kind in (Refused, LocaldiffError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
