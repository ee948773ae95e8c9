"""Tools: functions that the model is to call. The call is constrained by the function's JSON schema, so it always fits.

Where tool_choice names a function the text is its arguments; where it is "required", {"name", "arguments"} of one of
them. A chat template that knows tools is given them, for others they become a system message. "auto" is refused:
whether a text is to be a call is not decided here. Earlier calls and their results are given to templates that know
tools as they are; for others a call is the text that makes it, and its result the user's word.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .refusals import Refused

MOST_TOOLS = 128  # of a request


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Function(_Strict):
    """parameters: the schema of the arguments; without it there are none."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # the arguments match in any case

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": False} if self.parameters is None else self.parameters


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class _Name(_Strict):
    name: str


class _CalledFunction(_Strict):
    name: str
    arguments: str


class Called(_Strict):
    """An earlier call."""

    id: str
    type: Literal["function"]
    function: _CalledFunction

    def arguments(self) -> Any:
        try:
            return json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            raise Refused(
                400, f"messages: the arguments of {self.function.name[:64]} are no JSON", "messages"
            ) from None


class NamedTool(_Strict):
    type: Literal["function"]
    function: _Name


Choice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True)
class Calls:
    """What a request wants to be called: the functions that it may be, and all that the model is told of."""

    functions: tuple[Function, ...]
    tools: tuple[Tool, ...]

    @property
    def at_once(self) -> bool:
        """The name of the function is part of the text, so that nothing can be said before its end."""
        return len(self.functions) > 1

    def schema(self) -> dict[str, Any]:
        """What the text must match."""
        if not self.at_once:
            return self.functions[0].schema_of_arguments
        return {"anyOf": [_call(function) for function in self.functions]}

    def described(self) -> list[dict[str, Any]]:
        """The tools as templates want them."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def told(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with a system message about the tools, for templates that know none."""
        listed = "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in self.described())
        asked = 'Answer with {"name", "arguments"} of one of them.' if self.at_once else (
            f"Answer with the arguments of {self.functions[0].name}, as JSON."
        )  # fmt: skip
        text = f"You can call these functions:\n{listed}\n{asked}"
        first, rest = messages[0], list(messages[1:])
        if first["role"] != "system":
            return [{"role": "system", "content": text}, *map(dict, messages)]
        return [{"role": "system", "content": f"{first['content']}\n\n{text}"}, *map(dict, rest)]

    def call(self, text: str) -> dict[str, Any] | None:
        """The finished call, None where the text was cut off."""
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not self.at_once:
            return _function(self.functions[0].name, text.strip())
        return _function(value["name"], json.dumps(value["arguments"], ensure_ascii=False))

    def message(self, text: str) -> dict[str, Any]:
        """The assistant's message."""
        call = self.call(text)
        if call is None:
            return {"role": "assistant", "content": text, "refusal": None}
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}

    def begin(self) -> dict[str, Any]:
        """The first delta of a stream."""
        if self.at_once:
            return {"role": "assistant", "content": None}
        begun = {"index": 0, **_function(self.functions[0].name, "")}
        return {"role": "assistant", "content": None, "tool_calls": [begun]}

    def piece(self, text: str) -> dict[str, Any]:
        """The delta that new text becomes; where the calls come at once, that of all of it."""
        if not text:
            return {}
        if not self.at_once:
            return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        call = self.call(text)
        return {"content": text} if call is None else {"tool_calls": [{"index": 0, **call}]}


@dataclass(frozen=True)
class Turn:
    """A message of a conversation; calls: those of the assistant; answers: the id of the call that a tool answers."""

    role: str
    text: str
    calls: tuple[Called, ...] = ()
    answers: str | None = None


def conversation(turns: Sequence[Turn], knows_tools: bool) -> list[dict[str, Any]]:
    """The messages of a conversation for a chat template. Raises Refused for a result that no call asked for."""
    names: dict[str, str] = {}
    messages: list[dict[str, Any]] = []
    for turn in turns:
        names.update({call.id: call.function.name for call in turn.calls})
        made = [{"name": call.function.name, "arguments": call.arguments()} for call in turn.calls]
        if turn.answers is not None and turn.answers not in names:
            raise Refused(400, f"messages: tool_call_id is {turn.answers[:64]!r}, which no call before has", "messages")
        if knows_tools:
            more = {"tool_calls": [{"type": "function", "function": call} for call in made]} if made else {}
            messages.append({"role": turn.role, "content": turn.text, **more})
        elif turn.answers is not None:
            messages.append({"role": "user", "content": f"{names[turn.answers]} gave: {turn.text}"})
        else:
            lines = [turn.text] if turn.text or not made else []
            lines += [json.dumps(call, ensure_ascii=False) for call in made]
            messages.append({"role": turn.role, "content": "\n".join(lines)})
    return messages


def calls_for(tools: Sequence[Tool] | None, choice: Choice | None) -> Calls | None:
    """The calls that a request wants, None where it wants text. Raises Refused."""
    if not tools:
        if isinstance(choice, NamedTool) or choice == "required":
            raise Refused(400, "tool_choice asks for a call, but tools names no function; give tools", "tool_choice")
        return None
    if choice == "none":
        return None
    functions = {tool.function.name: tool.function for tool in tools}
    if len(functions) != len(tools):
        raise Refused(400, "tools names a function twice; leave one of them out", "tools")
    if choice is None or choice == "auto":
        raise Refused(
            400, "tool_choice auto is not offered here: whether the model calls is yours to say; give required, none "
            "or a function", "tool_choice", "unsupported_parameter",
        )  # fmt: skip
    if choice == "required":
        return Calls(tuple(functions.values()), tuple(tools))
    found = functions.get(choice.function.name)
    if found is None:
        raise Refused(400, f"tool_choice is {choice.function.name[:64]}, expected one of {', '.join(functions)}",
                      "tool_choice")  # fmt: skip
    return Calls((found,), tuple(tools))


def _call(function: Function) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": function.schema_of_arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _function(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
