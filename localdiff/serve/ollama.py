"""Ollama's shapes: /api/generate, /api/chat, /api/tags, /api/show, /api/ps, /api/version.

Its options become those of GenerateOptions; ours may be given among them. Streams are one JSON object per line, in
which settled text is never taken back. Models cannot be pulled, copied or removed here.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from .. import __version__
from ..canvas import Hole
from ..generation import DenoiseEvent, Generation
from ..options import GenerateOptions
from .answers import Answer, Deltas
from .fields import OLLAMA_NEUTRAL, Body, with_options
from .hub import Served, hub_of
from .openai import _Strict, chat_pages
from .refusals import refusal, shape
from .tools import Turn

if TYPE_CHECKING:
    from ..page import Page

router = APIRouter(prefix="/api")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "keep_alive": (), "raw": (False,), "think": (False,), "images": ([],), "tools": ([],),
    "context": ([],), "template": ("",), "logprobs": (False,), "top_logprobs": (0,), "dimensions": (),
}  # fmt: skip


class _Options(Body):
    model: None = None
    num_predict: int | None = None
    repeat_penalty: float | None = None

    def penalty(self) -> dict[str, float]:
        return {} if self.repeat_penalty is None else {"repetition_penalty": self.repeat_penalty}


OptionsBody = with_options("OptionsBody", _Options, without=("max_new_tokens",))


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str
    images: None = None
    tool_calls: None = None
    tool_name: None = None
    thinking: None = None


class _Asked(Body):
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: OptionsBody | None = None  # type: ignore[valid-type]

    def wanted(self) -> GenerateOptions:
        asked: Any = self.options if self.options is not None else OptionsBody()
        asked.check_fields(OLLAMA_NEUTRAL)
        # -1 and -2 stand for as many tokens as there are
        count = None if asked.num_predict in (-1, -2) else asked.num_predict
        matching: dict[str, Any] = {"json_object": True} if self.format == "json" else {}
        if isinstance(self.format, dict):
            matching = {"json_schema": self.format}
        options: GenerateOptions = asked.decoding(max_new_tokens=count, **asked.penalty(), **matching)
        return options


class GenerateBody(_Asked):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None


class ChatBody(_Asked):
    messages: list[_Message] = Field(max_length=1000)


class NameBody(Body):
    name: str | None = None
    verbose: bool | None = None


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/tags")
async def tags(request: Request) -> dict[str, Any]:
    return {"models": [_listed(served) for served in hub_of(request).models.values()]}


@router.get("/ps")
async def running(request: Request) -> dict[str, Any]:
    never = "9999-12-31T23:59:59Z"
    return {
        "models": [
            {**_listed(served), "size_vram": 0, "expires_at": never, "context_length": served.model.canvas_limit}
            for served in hub_of(request).models.values()
        ]
    }


@router.post("/show")
async def show(body: NameBody, request: Request) -> dict[str, Any]:
    body.check_fields()
    served = hub_of(request).find(body.model or body.name)
    arch = served.model.info.arch
    plain = {key: value for key, value in served.model.metadata.items() if isinstance(value, str | int | float | bool)}
    chats = served.model.chat_template is not None
    return {
        "modelfile": "", "parameters": "", "template": plain.pop("tokenizer.chat_template", ""),
        "details": _details(served), "model_info": {**plain, "general.architecture": arch},
        "capabilities": ["completion", "insert"], "modified_at": _modified(served), "chat": chats,
    }  # fmt: skip


@router.post("/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    body.check_fields(_NEUTRAL)
    served, options = hub_of(request).find(body.model), body.wanted()
    if not body.prompt and not body.suffix:
        return JSONResponse({**_head(served), "response": "", "done": True, "done_reason": "load"})
    if body.suffix:
        parts = [part for part in (body.prompt, Hole(options.max_new_tokens), body.suffix) if part != ""]
        chosen = GenerateOptions(**{**vars(options), "max_new_tokens": None})
        pages = await served.compose(lambda: served.infill(parts, chosen))
    elif body.raw or (served.model.chat_template is None and not body.system):
        pages = await served.compose(lambda: served.prompt(body.prompt, options))
    else:
        turns = [Turn("system", body.system)] if body.system else []
        turns.append(Turn("user", body.prompt))
        pages = await served.compose(lambda: chat_pages(served, turns, options))
    text: Callable[[Any], str] = lambda result: result.holes[0] if result.holes else result.text  # noqa: E731
    return await _respond(served, pages, body, request, lambda piece: {"response": piece}, text)


@router.post("/chat")
async def chat(body: ChatBody, request: Request) -> Response:
    body.check_fields(_NEUTRAL)
    served, options = hub_of(request).find(body.model), body.wanted()
    whole: Callable[[str], dict[str, Any]] = lambda piece: {"message": {"role": "assistant", "content": piece}}  # noqa: E731
    if not body.messages:
        return JSONResponse({**_head(served), **whole(""), "done": True, "done_reason": "load"})
    turns = [Turn(message.role, message.content) for message in body.messages]
    pages = await served.compose(lambda: chat_pages(served, turns, options))
    return await _respond(served, pages, body, request, whole, lambda result: result.text)


async def _respond(
    served: Served, pages: list[Page], body: _Asked, request: Request, piece: Callable[[str], dict[str, Any]],
    text: Callable[[Any], str],
) -> Response:  # fmt: skip
    if body.stream is False:
        answer = served.answer(pages)
        (result,) = await answer.results(request)
        return JSONResponse({**_head(served), **piece(text(result)), **_done(answer, result)})
    answer = served.answer(pages, events=True)

    async def lines() -> AsyncIterator[str]:
        deltas = Deltas()
        try:
            async for _, what in answer.events():
                if isinstance(what, DenoiseEvent):
                    new = "" if pages[0].parts else deltas.next(what.text)
                    if new:
                        yield _line({**_head(served), **piece(new), "done": False})
                    continue
                new = deltas.next(text(what), last=True)
                if new:
                    yield _line({**_head(served), **piece(new), "done": False})
                yield _line({**_head(served), **piece(""), **_done(answer, what)})
        except Exception as error:
            yield _line(shape("/api/", refusal(error)))

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


def _line(what: dict[str, Any]) -> str:
    return json.dumps(what) + "\n"


def _head(served: Served) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"model": served.name, "created_at": now.isoformat().replace("+00:00", "Z")}


def _done(answer: Answer, result: Generation) -> dict[str, Any]:
    timings = answer.timings(0)
    first = result.first_settled_seconds or 0.0
    return {
        "done": True,
        "done_reason": result.stop_reason,
        "total_duration": round(1e9 * (timings["queued_seconds"] + result.seconds)),
        "load_duration": 0,
        "prompt_eval_count": result.prompt_tokens,
        "prompt_eval_duration": round(1e9 * first),
        "eval_count": len(result.tokens),
        "eval_duration": round(1e9 * (result.seconds - first)) or 1,
        "timings": timings,
    }


def _listed(served: Served) -> dict[str, Any]:
    size = sum(part.stat().st_size for part in _files(served))
    return {"name": served.name, "model": served.name, "modified_at": _modified(served), "size": size, "digest": "",
            "details": _details(served)}  # fmt: skip


def _files(served: Served) -> Iterator[Any]:
    if served.model.path.is_file():
        yield served.model.path


def _modified(served: Served) -> str:
    when = max((part.stat().st_mtime for part in _files(served)), default=0.0)
    return datetime.datetime.fromtimestamp(when, datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def _details(served: Served) -> dict[str, Any]:
    info = served.model.info
    size = f"{info.parameters / 1e9:.1f}B" if info.parameters >= 1e9 else f"{info.parameters / 1e6:.1f}M"
    return {
        "parent_model": "", "format": "gguf", "family": info.arch, "families": [info.arch],
        "parameter_size": size,
        "quantization_level": _quantization(served.model.metadata.get("general.file_type")),
    }  # fmt: skip


def _quantization(file_type: Any) -> str:
    from gguf import LlamaFileType

    try:
        return str(LlamaFileType(file_type).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return "unknown"
