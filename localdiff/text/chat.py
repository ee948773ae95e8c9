"""Chat templates: from messages to the tokens of a prompt.

The template comes with the model file. It is rendered by `render_template`, the one place where that happens, in a
child process with limits (template_worker.py). Control tokens are then made from the template's own text only: while
rendering, every character of a message that could begin a control token is replaced by a private-use character, which
is put back only after control tokens have been cut out; descriptions of tools count as messages. Not here: the
conversation, calls of tools.
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localdiff.errors import EngineError, ModelFileError, OptionError
from localdiff.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
TOOL_ROLE = "tool"  # of results, for templates that know tools; the assistant's calls are tool_calls there
_TOOL_NAMES = frozenset({"type", "function", "name", "description", "parameters", "arguments"})  # templates read them
_MAX_SOURCE = 1 << 18  # characters of a template; the longest known ones have 20,000
_FUEL = 500_000  # instructions; a conversation of 1,000 messages takes some 50,000
_MEMORY = 192 << 20  # bytes of address space, of which Python and minijinja take some 60 MB
_SECONDS = 0.5  # of processor time; rendering a real template takes a few milliseconds
_WALL_SECONDS = 10.0  # only where the system is very busy or cannot limit processor time
_PRIVATE_USE = range(0x100000, 0x10FFFE)  # plane 16, stand-ins are chosen here


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the model wants it.

    text     what the template made of the messages
    tokens   its ids, bos included where the file asks for it
    """

    text: str
    tokens: list[int]


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self._source = source
        self._tokenizer = tokenizer
        # One stand-in for each character that begins a control token.
        self._starts = sorted({text[0] for text in tokenizer.special_texts})

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template under `tokenizer.chat_template`, None where the file has none.

        raises   ModelFileError where it is no text or longer than any template can be
        """
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelFileError(f"tokenizer.chat_template is {type(source).__name__}, expected a string")
        if len(source) > _MAX_SOURCE:
            raise ModelFileError(
                f"tokenizer.chat_template has {len(source)} characters, expected at most {_MAX_SOURCE}"
            )
        return ChatTemplate(source, tokenizer)

    @property
    def knows_tools(self) -> bool:
        """Whether the template writes the functions that may be called."""
        return "tools" in self._source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RenderedChat:
        """The prompt for a conversation.

        messages                each {"role": one of ROLES, "content": text}, oldest first
        add_generation_prompt   end where the assistant's answer begins
        tools                   functions that may be called, as OpenAI describes them
        raises                  OptionError for another shape of messages, or where the template refuses them, fails or
                                goes over its limits
        """
        return self.render_all([messages], add_generation_prompt, tools)[0]

    def render_all(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RenderedChat]:
        """The prompts of several conversations, rendered by one process within the limits of one; a few dozen."""
        tokenizer = self._tokenizer
        for text in _texts(tools):
            _check_unicode("tools", text)
        common = {
            "add_generation_prompt": add_generation_prompt,
            "documents": None,
            "bos_token": tokenizer.token_text(tokenizer.bos),
            "eos_token": tokenizer.token_text(tokenizer.eos),
            "pad_token": tokenizer.token_text(tokenizer.pad),
        }
        contexts: list[Mapping[str, Any]] = []
        guards: list[dict[str, str]] = []
        for messages in conversations:
            checked = _checked(messages, self.knows_tools)
            guard = self._guard([*_texts(checked), *_texts(tools)])
            guards.append(guard)
            if guard:
                table = str.maketrans(guard)
                hidden = [
                    {name: value if name == "role" else _translated(value, table) for name, value in message.items()}
                    for message in checked
                ]
                contexts.append({"messages": hidden, "tools": _translated(tools, table), **common})
            contexts.append({"messages": checked, "tools": tools, **common})
        texts = iter(render_template(self._source, contexts))
        return [self._rendered([next(texts) for _ in range(2 if guard else 1)], guard) for guard in guards]

    def _guard(self, given: Sequence[str]) -> dict[str, str]:
        """Stand-ins for the characters in `given` that could begin a control token."""
        there = {char for text in given for char in text}
        used = there.union(self._source)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        return {char: next(free) for char in self._starts if char in there}

    def _rendered(self, texts: Sequence[str], guard: Mapping[str, str]) -> RenderedChat:
        """texts: with stand-ins, where there are any, and as they are."""
        tokenizer = self._tokenizer
        parts = [tokenizer.split(text, parse_special=True) for text in texts]
        # Templates may look into messages ("</think>" in content), which the stand-ins hide from them. The messages as
        # they are give the truth wherever they make no difference to the control tokens.
        if len(parts) > 1 and _controls(parts[0]) != _controls(parts[1]):
            parts.pop()
        back = str.maketrans({private: char for char, private in guard.items()})
        ordinary = [part if isinstance(part, int) else part.translate(back) for part in parts[-1]]
        text = texts[len(parts) - 1].translate(back)
        begins = bool(ordinary) and ordinary[0] == tokenizer.bos
        return RenderedChat(text, tokenizer.encode_parts(ordinary, add_bos=False if begins else None))


def render_template(source: str, contexts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render one template with each of `contexts`, in a child process with limits on instructions, memory and time.

    raises   OptionError where the template fails or goes over a limit; EngineError where no process can be started
    """
    from multiprocessing import spawn  # knows the interpreter even where a program embeds Python

    interpreter = spawn.get_executable()
    found = importlib.util.find_spec("minijinja")
    if not interpreter or found is None or found.origin is None:
        raise EngineError("chat templates need the Python interpreter and minijinja, one was not found; use --no-chat")
    given = sum(len(text) for context in contexts for text in _texts([context["messages"], context["tools"]]))
    request = {
        "path": str(Path(found.origin).parent.parent), "source": source, "contexts": contexts, "fuel": _FUEL,
        "memory": _MEMORY + 64 * given, "seconds": _SECONDS + 1e-7 * given, "output": _MAX_SOURCE + 8 * given,
    }  # fmt: skip
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows cannot start without
    worker = str(Path(__file__).with_name("template_worker.py"))
    try:
        # -I -S: no environment variables, user packages or site hooks; nothing is inherited but these pipes.
        done = subprocess.run(
            [interpreter, "-I", "-S", worker], input=json.dumps(request), capture_output=True, encoding="ascii",
            timeout=_WALL_SECONDS, check=False, env=kept,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _failure("it takes too long") from None
    except OSError as error:
        raise EngineError(f"chat templates need a process of their own, which the system refused ({error})") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise _failure("it needs more memory or time than it may have") from None
    if "error" in answer:
        raise _failure(str(answer["error"]))
    return [str(text) for text in answer["texts"]]


def _failure(reason: str) -> OptionError:
    first = reason.splitlines()[0][:300] if reason else "no reason given"
    return OptionError(f"the chat template of the model cannot be used: {first}; use --no-chat or another model file")


def _checked(messages: Sequence[Mapping[str, Any]], knows_tools: bool) -> list[dict[str, Any]]:
    """The messages as plain dictionaries, or OptionError."""
    roles = (*ROLES, TOOL_ROLE) if knows_tools else ROLES
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise OptionError("messages is not a list of messages, expected at least one {'role': ..., 'content': ...}")
    checked = []
    for place, message in enumerate(messages):
        calls = isinstance(message, Mapping) and knows_tools and message.get("role") == "assistant"
        more = {"tool_calls"} & set(message) if calls else set()
        if not isinstance(message, Mapping) or set(message) != {"role", "content"} | more:
            keys = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise OptionError(f"message {place} has {keys}, expected exactly the keys role and content")
        role, content = message["role"], message["content"]
        if role not in roles:
            raise OptionError(f"message {place} has the role {role!r}, expected one of {', '.join(roles)}")
        if not isinstance(content, str):
            raise OptionError(f"message {place} has content of type {type(content).__name__}, expected text")
        for text in _texts(message):
            _check_unicode(f"message {place}", text)
        checked.append(dict(message))
    return checked


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{what} has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "expected Unicode text; decode the input as UTF-8 first"
        ) from None


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield name
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _translated(value: Any, table: Mapping[int, str]) -> Any:
    """The same value with its texts translated."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {
            name if name in _TOOL_NAMES else name.translate(table): _translated(each, table)
            for name, each in value.items()
        }
    return [_translated(each, table) for each in value] if isinstance(value, Sequence) else value


def _controls(parts: Sequence[str | int]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]
