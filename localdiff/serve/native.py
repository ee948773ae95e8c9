"""localdiff's own addresses: /health, /v1/infill, /v1/options, /tokenize, /detokenize."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from ..canvas import Hole
from ..generation import DenoiseEvent
from ..options import GenerateOptions
from .answers import Deltas
from .canvas_event import canvas_event
from .fields import OPTIONS, Body, with_options
from .hub import hub_of
from .openai import Streamed, StreamOptions, _Strict, totals, usage
from .refusals import Refused, refusal, shape

router = APIRouter()


class HoleBody(_Strict):
    """A hole of so many tokens; null: the model chooses."""

    hole: int | None = Field(ge=1)


class _Infill(Streamed):
    """text: "Once [[8]] time [[]]."; or parts: texts and holes, where [[ has no meaning."""

    text: str | None = None
    parts: list[str | HoleBody] | None = Field(None, max_length=1000)


class TokenizeBody(Body):
    content: str


class DetokenizeBody(Body):
    tokens: list[int]


InfillBody = with_options("InfillBody", _Infill, without=("max_new_tokens",))


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    hub = hub_of(request)
    return {
        "status": "ok",
        "seconds": round(time.time() - hub.started, 3),
        "models": [
            {"id": served.name, "live": served.scheduler.live, "waiting": served.scheduler.waiting}
            for served in hub.models.values()
        ],
    }


@router.get("/v1/options")
async def options() -> dict[str, Any]:
    """The options that requests may have, with their help and choices."""
    known = {field.name: field.metadata for field in dataclasses.fields(GenerateOptions)}
    return {name: {"help": known[name]["help"], "choices": known[name]["choices"]} for name in OPTIONS}


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    body.check_fields()
    served = hub_of(request).find(body.model)
    return {"tokens": await to_thread.run_sync(served.model.tokenize, body.content)}


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    body.check_fields()
    model = hub_of(request).find(body.model).model
    vocab = model.tokenizer.vocab_size
    wrong = next((token for token in body.tokens if not 0 <= token < vocab), None)
    if wrong is not None:
        raise Refused(400, f"tokens holds {wrong}, expected ids from 0 to {vocab - 1}", "tokens")
    return {"content": model.detokenize(body.tokens)}


@router.post("/v1/infill")
async def infill(body: InfillBody, request: Request) -> Response:  # type: ignore[valid-type]
    asked: Any = body
    asked.check_fields()
    asked.check_stream()
    served = hub_of(request).find(asked.model)
    if (asked.text is None) == (asked.parts is None):
        raise Refused(400, "give text with [[8]] for holes, or parts, and not both", "text")
    text = asked.text
    if text is None:
        text = [part if isinstance(part, str) else Hole(part.hole) for part in asked.parts]
    if (asked.n or 1) > 1:
        raise Refused(400, f"n is {asked.n}, but an infill has one text; ask again with another seed", "n")
    options = asked.wanted()
    pages = await served.compose(lambda: served.infill(text, options))
    head = {"object": "infill", "model": served.name}
    if not asked.stream:
        answer = served.answer(pages)
        results = await answer.results(request)
        return JSONResponse({**head, "text": results[0].text, "holes": results[0].holes,
                             "finish_reason": results[0].stop_reason, "usage": usage(results),
                             "timings": {**totals(answer, results), **answer.timings(0)}})  # fmt: skip
    wanted = asked.stream_options or StreamOptions()
    answer = served.answer(pages, events=True, every=wanted.canvas)

    async def stream() -> AsyncIterator[ServerSentEvent]:
        deltas = Deltas()
        try:
            async for _, what in answer.events():
                last = not isinstance(what, DenoiseEvent)
                if isinstance(what, DenoiseEvent):
                    if wanted.canvas:
                        yield ServerSentEvent(json.dumps(canvas_event(0, what)), event="canvas")
                    more: dict[str, Any] = {}
                else:
                    more = {"holes": what.holes, "finish_reason": what.stop_reason, "usage": usage([what]),
                            "timings": answer.timings(0)}  # fmt: skip
                piece = deltas.next(what.text, last)
                if piece or last:
                    yield ServerSentEvent(json.dumps({**head, "text": piece, "finish_reason": None, **more}))
        except Exception as error:
            yield ServerSentEvent(json.dumps(shape("/v1/", refusal(error))))
        yield ServerSentEvent("[DONE]")

    return EventSourceResponse(stream(), ping=15, headers={"Cache-Control": "no-store"})
