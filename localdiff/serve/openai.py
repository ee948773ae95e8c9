"""OpenAI's shapes: /v1/models, /v1/completions, /v1/chat/completions.

Beside OpenAI's own fields every option of GenerateOptions is one. A stream carries the settled text as ordinary chunks,
which are never taken back; with "stream_options": {"canvas": true} it also carries `event: canvas` messages, one per
denoise step (canvas_event.py). A completion with a suffix is an infill, a chat with tools ends in a call (tools.py).
Every answer has usage and timings.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from ..canvas import Hole
from ..generation import DenoiseEvent, Generation
from . import logprobs
from .answers import Answer, Deltas
from .canvas_event import canvas_event
from .fields import OPENAI_NEUTRAL, Body, with_options
from .hub import Served, hub_of
from .refusals import Refused, refusal, shape
from .tools import MOST_TOOLS, Called, Calls, Choice, Tool, Turn, calls_for, conversation

if TYPE_CHECKING:
    from ..details import TokenDetail
    from ..options import GenerateOptions
    from ..page import Page

router = APIRouter(prefix="/v1")
_PING_SECONDS = 15


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Strict):
    """include_usage: one more chunk with the usage; canvas: one message per denoise step."""

    include_usage: bool = False
    include_obfuscation: bool = False
    canvas: bool = False


class JsonSchema(_Strict):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # the text matches in any case


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def options(self) -> dict[str, Any]:
        """The option that it stands for."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise Refused(
                400, "response_format.json_schema goes with the type json_schema and no other", "response_format"
            )
        if self.json_schema is not None:
            return {"json_schema": self.json_schema.schema_}
        return {"json_object": True} if self.type == "json_object" else {}


class Streamed(Body):
    response_format: ResponseFormat | None = None
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def wanted(self, **named: Any) -> GenerateOptions:
        """The options of the body."""
        matching = {} if self.response_format is None else self.response_format.options()
        return self.decoding(samples=self.n, **named, **self.details(), **matching)

    def details(self) -> dict[str, Any]:
        """Options that the endpoint's own fields ask for."""
        return {}

    @property
    def logs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return getattr(self, "logprobs", None) not in (None, False)

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise Refused(
                400, "stream_options is only for a stream; give stream too, or leave it out", "stream_options"
            )
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise Refused(400, "stream_options.include_obfuscation is not offered here; leave it out", "stream_options")


class _Completion(Streamed):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=0)
    suffix: str | None = None
    max_tokens: int | None = None
    logprobs: int | None = Field(None, ge=0, le=64)

    def details(self) -> dict[str, Any]:
        return {} if not self.logprobs else {"alternatives": self.logprobs}


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message; the developer is what OpenAI now calls the system, a tool tells what a call gave."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: None = None
    refusal: None = None
    tool_calls: list[Called] | None = Field(None, max_length=MOST_TOOLS)
    tool_call_id: str | None = None

    def check(self) -> None:
        """Refuse what does not go with the role."""
        wrong = None
        if self.content is None and not self.tool_calls:
            wrong = "has no content"
        elif self.tool_calls and self.role != "assistant":
            wrong = "has tool_calls, which only the assistant makes"
        elif (self.tool_call_id is None) == (self.role == "tool"):
            wrong = "needs tool_call_id" if self.role == "tool" else "has a tool_call_id, which goes with the role tool"
        if wrong is not None:
            raise Refused(400, f"messages: one of the role {self.role} {wrong}", "messages")

    def as_turn(self) -> Turn:
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        return Turn(role, text, tuple(self.tool_calls or ()), self.tool_call_id)


class _Chat(Streamed):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=64)
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Choice | None = None

    def calls(self) -> Calls | None:
        """The function calls that are wanted instead of text."""
        wanted = calls_for(self.tools, self.tool_choice)
        for name in ("response_format", "json_schema", "json_object", "regex", "grammar"):
            if wanted is not None and getattr(self, name) not in (None, False):
                raise Refused(400, f"{name} is about a text, but tool_choice asks for a call; leave one out", name)
        return wanted

    def details(self) -> dict[str, Any]:
        if self.top_logprobs and not self.logprobs:
            raise Refused(400, "top_logprobs needs logprobs; give it too, or leave it out", "top_logprobs")
        return {} if not self.top_logprobs else {"alternatives": self.top_logprobs}


CompletionBody = with_options("CompletionBody", _Completion, without=("max_new_tokens",))
ChatBody = with_options("ChatBody", _Chat, without=("max_new_tokens",))


def finish_reason(result: Generation) -> str:
    """The stop reason in OpenAI's words."""
    return "length" if result.stop_reason == "deadline" else result.stop_reason


@dataclass(frozen=True)
class Shape:
    """How one endpoint writes its objects.

    whole, piece   a choice of the answer, and of a chunk with new text ("" where there is none)
    logprobs       those of a text
    first          makes the first chunk of a choice, None where there is none
    at_once        text is of no use before its end
    reason         what a text that is not cut off ends with
    """

    prefix: str
    object: str
    chunk: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    logprobs: Callable[[Sequence[TokenDetail]], dict[str, Any]]
    first: Callable[[], dict[str, Any]] | None = None
    at_once: bool = False
    reason: Callable[[Generation], str] = finish_reason


COMPLETION = Shape(
    "cmpl-", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text},
    logprobs.of_completion,
)  # fmt: skip
CHAT = Shape(
    "chatcmpl-", "chat.completion", "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    logprobs.of_chat, lambda: {"delta": {"role": "assistant", "content": ""}},
)  # fmt: skip


def calling(calls: Calls) -> Shape:
    """The shape of chats that end in calls."""
    return dataclasses.replace(
        CHAT,
        whole=lambda text: {"message": calls.message(text)},
        piece=lambda text: {"delta": calls.piece(text)},
        first=lambda: {"delta": calls.begin()},
        at_once=calls.at_once,
        reason=lambda result: finish_reason(result) if calls.call(result.text) is None else "tool_calls",
    )


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_described(served) for served in hub_of(request).models.values()]}


@router.get("/models/{name}")
async def model(name: str, request: Request) -> dict[str, Any]:
    return _described(hub_of(request).find(name))


def _described(served: Served) -> dict[str, Any]:
    model = served.model
    return {
        "id": served.name, "object": "model", "created": served.created, "owned_by": "localdiff",
        "context_length": model.canvas_limit, "chat": model.chat_template is not None,
        "parameters": model.info.parameters, "weight_bytes": model.info.weight_bytes,
        "session_bytes": served.scheduler.session_bytes,
    }  # fmt: skip


@router.post("/completions")
async def completions(body: CompletionBody, request: Request) -> Response:  # type: ignore[valid-type]
    asked: Any = body
    served = _checked(asked, request)
    prompt, suffix = asked.prompt, asked.suffix
    prompts = 1 if isinstance(prompt, str) or isinstance(next(iter(prompt), 0), int) else len(prompt)
    hub_of(request).check_texts(prompts * (asked.n or 1), "prompt" if prompts > 1 else "n")
    if suffix is None:
        options = asked.wanted(max_new_tokens=asked.max_tokens)
        pages = await served.compose(lambda: served.prompt(prompt, options))
    else:
        if not isinstance(prompt, str):
            raise Refused(400, "suffix needs one prompt that is a text; leave one of them out", "suffix")
        hole, options = Hole(asked.max_tokens), asked.wanted()
        parts = [part for part in (prompt, hole, suffix) if part != ""]
        pages = await served.compose(lambda: served.infill(parts, options))
    return await respond(served, pages, asked, request, COMPLETION, filling=suffix is not None)


@router.post("/chat/completions")
async def chat(body: ChatBody, request: Request) -> Response:  # type: ignore[valid-type]
    asked: Any = body
    served = _checked(asked, request)
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise Refused(400, "max_tokens and max_completion_tokens are the same; leave one of them out", "max_tokens")
    calls = asked.calls()
    matching = {} if calls is None else {"json_schema": calls.schema()}
    count = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    options = asked.wanted(max_new_tokens=count, **matching)
    hub_of(request).check_texts(asked.n or 1, "n")
    for message in asked.messages:
        message.check()
    turns = [message.as_turn() for message in asked.messages]
    pages = await served.compose(lambda: chat_pages(served, turns, options, calls))
    return await respond(served, pages, asked, request, CHAT if calls is None else calling(calls))


def chat_pages(
    served: Served, turns: Sequence[Turn], options: GenerateOptions, calls: Calls | None = None
) -> list[Page]:
    model = served.model
    if model.chat_template is None:
        raise Refused(400, f"{served.name} has no chat template; ask for a completion of a prompt", "messages")
    knows = model.chat_template.knows_tools
    messages = conversation(turns, knows)
    if calls is not None and not knows:
        messages = calls.told(messages)
    tokens = model.chat_tokens(messages, calls.described() if calls is not None and knows else None)
    return served.prompt(tokens, model.chat_options(messages, options))


def _checked(body: Any, request: Request) -> Served:
    body.check_fields(OPENAI_NEUTRAL)
    body.check_stream()
    return hub_of(request).find(body.model)


async def respond(
    served: Served, pages: list[Page], body: Streamed, request: Request, shape: Shape, filling: bool = False
) -> Response:
    """The answer of one of the two endpoints. filling: the texts are what stands in the only hole."""
    head = {"id": shape.prefix + secrets.token_hex(12), "created": int(time.time()), "model": served.name}
    if body.stream:
        wanted = body.stream_options or StreamOptions()
        answer = served.answer(pages, events=True, every=wanted.canvas)
        logs = shape.logprobs if body.logs else None
        events = _stream(answer, len(pages), {**head, "object": shape.chunk}, shape, wanted, filling, logs)
        return EventSourceResponse(events, ping=_PING_SECONDS, headers={"Cache-Control": "no-store"})
    answer = served.answer(pages)
    results = await answer.results(request)
    choices = [
        {"index": index, **shape.whole(_text(result, filling)), "finish_reason": shape.reason(result),
         "logprobs": shape.logprobs(result.token_details) if body.logs else None, "timings": answer.timings(index)}
        for index, result in enumerate(results)
    ]  # fmt: skip
    whole = {
        **head,
        "object": shape.object,
        "choices": choices,
        "usage": usage(results),
        "timings": totals(answer, results),
    }
    return Response(json.dumps(whole), media_type="application/json")


async def _stream(
    answer: Answer, texts: int, head: dict[str, Any], shape_: Shape, wanted: StreamOptions, filling: bool,
    logs: Callable[[Sequence[TokenDetail]], dict[str, Any]] | None,
) -> AsyncIterator[ServerSentEvent]:  # fmt: skip
    def chunk(
        index: int, piece: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any
    ) -> ServerSentEvent:
        choice = {"index": index, **piece, "finish_reason": reason, "logprobs": logprobs}
        return _message({**head, "choices": [choice], **more})

    deltas = [Deltas() for _ in range(texts)]
    results: list[Generation] = []
    try:
        if shape_.first is not None:
            for index in range(texts):
                yield chunk(index, shape_.first())
        async for index, what in answer.events():
            if isinstance(what, DenoiseEvent):
                if wanted.canvas:
                    yield ServerSentEvent(json.dumps(canvas_event(index, what)), event="canvas")
                piece = "" if filling or shape_.at_once else deltas[index].next(what.text)
                if piece:
                    yield chunk(index, shape_.piece(piece))
                continue
            results.append(what)
            piece = deltas[index].next(_text(what, filling), last=True)
            if piece:
                yield chunk(index, shape_.piece(piece))
            # a token's log-probability is known when it is written, which is in no order: all of them at the end
            known = None if logs is None else logs(what.token_details)
            more = {"usage": usage([what]), "timings": answer.timings(index)}
            yield chunk(index, shape_.piece(""), shape_.reason(what), known, **more)
        if wanted.include_usage:
            yield _message({**head, "choices": [], "usage": usage(results), "timings": totals(answer, results)})
    except Exception as error:
        yield _message(shape("/v1/", refusal(error)))
    yield ServerSentEvent("[DONE]")


def _message(what: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(what))


def _text(result: Generation, filling: bool) -> str:
    return result.holes[0] if filling else result.text


def usage(results: list[Generation]) -> dict[str, int]:
    given, made = sum(result.prompt_tokens for result in results), sum(len(result.tokens) for result in results)
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def totals(answer: Answer, results: list[Generation]) -> dict[str, Any]:
    """The timings of all texts of an answer together."""
    each = [answer.timings(index) for index in range(len(results))]
    seconds = max(timing["seconds"] for timing in each)
    tokens = sum(len(result.tokens) for result in results)
    return {
        "queued_seconds": max(timing["queued_seconds"] for timing in each),
        "seconds": seconds,
        "nfe": sum(timing["nfe"] for timing in each),
        "answer_tokens_per_second": tokens / seconds if seconds else 0.0,
    }
