"""`localdiff run`: continue a prompt, answer a message, or talk.

A model with a chat template gets the prompt as a user's message unless --no-chat. Without a prompt, stdin is read;
where that is a terminal, a loop begins: a chat with its history, or single continuations where the model cannot chat.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..atomic import check_target
from ..errors import OptionError
from . import flags, generating

if TYPE_CHECKING:
    from ..generation import DenoiseStream, Generation
    from ..model import Model
    from ..options import GenerateOptions


@click.command(cls=flags.Command, groups=generating.GROUPS)
@click.argument("arguments", nargs=-1, metavar="[MODEL.gguf] [PROMPT]")
@click.option("-p", "--prompt", help="the prompt, whatever it looks like")
@click.option("-f", "--file", help="read the prompt from a file; - is stdin")
@click.option("--system", help="system message for a model with a chat template")
@click.option("--no-chat", is_flag=True, help="continue the prompt as it is, without the chat template")
@click.option("--prompt-cache", metavar="FILE", help="keep the computed prompt in FILE, and begin with what it holds")
@generating.generation_flags()
def command(arguments: tuple[str, ...], **values: Any) -> None:
    """Continue PROMPT with a diffusion language model.

    Without MODEL.gguf the small story model of the package is used; without PROMPT, stdin or a conversation.
    """
    path, text = generating.split_model(arguments, "prompt")
    prompt = _prompt(text, values["prompt"], values["file"])
    options = generating.options(values)
    with generating.load(path, values) as model:
        talk = _Talk(model, options, values["system"], not values["no_chat"], values["prompt_cache"])
        if prompt is None:
            if values["as_json"]:
                raise OptionError("--json needs a prompt; give one, or -p, -f or stdin")
            talk.loop(not values["no_live"])
            return
        results = generating.watch(talk.stream(prompt), not values["no_live"])
        generating.answers(results, values["as_json"])
        talk.keep(prompt)


def _prompt(argument: str | None, option: str | None, file: str | None) -> str | None:
    """The one prompt that was given; None for a conversation."""
    sources = [name for name, value in (("PROMPT", argument), ("-p", option), ("-f", file)) if value is not None]
    if len(sources) > 1:
        raise OptionError(f"{' and '.join(sources)} exclude each other; give one prompt")
    if argument == "-":
        argument, file = None, "-"
    if argument is not None or option is not None:
        return argument if argument is not None else option
    if file is None and sys.stdin.isatty():
        return None
    return _read(file or "-")


def _read(file: str) -> str:
    origin = "stdin" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as source:
                data = source.read()
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{origin}: byte {error.start} is not UTF-8 text; convert it first") from None
    except OSError as error:
        raise OptionError(f"-f {file}: {error.strerror}; name a readable text file") from None
    text = text.removesuffix("\n").removesuffix("\r")  # the editor's, not the writer's
    if not text:
        raise OptionError(f"the prompt from {origin} is empty; give some text")
    return text


class _Talk:
    """A model and how it is spoken to."""

    def __init__(
        self, model: Model, options: GenerateOptions, system: str | None, chat: bool, kept: str | None
    ) -> None:
        self._model, self._options, self._kept = model, options, kept
        if kept is not None:
            _begin_with(model, options, Path(kept))
        self._chats = chat and model.chat_template is not None
        if system is not None and not self._chats:
            why = "--no-chat is given" if not chat else f"{model.name} has no chat template"
            raise OptionError(f"--system has no meaning where {why}; leave it out")
        self._history = [{"role": "system", "content": system}] if system is not None else []

    def stream(self, prompt: str) -> DenoiseStream:
        options = self._model.chat_options(self._messages(prompt), self._options) if self._chats else self._options
        return self._model.stream(self._given(prompt), options)

    def keep(self, prompt: str) -> None:
        """Write the computed prompt to its file, where one was asked for."""
        if self._kept is not None:
            self._model.save_prompt(self._given(prompt), self._kept)

    def _given(self, prompt: str) -> str | list[int]:
        if not self._chats:
            return prompt
        return self._model.chat_tokens(self._messages(prompt))

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        return [*self._history, {"role": "user", "content": prompt}]

    def loop(self, live: bool) -> None:
        """Ask and answer until Ctrl-D; Ctrl-C ends an answer, or the loop where none is being made."""
        kind = (
            "a chat" if self._chats else f"{self._model.name} has no chat template, so each line is continued by itself"
        )
        print(f"{kind}; Ctrl-D ends", file=sys.stderr)
        while (line := _ask()) is not None:
            if not line.strip():
                continue
            try:
                results = generating.watch(self.stream(line), live)
            except KeyboardInterrupt:
                continue
            except OptionError as error:  # a line that is too long must not end the conversation
                print(f"localdiff: {error}", file=sys.stderr)
                continue
            generating.answers(results, False)
            self.keep(line)
            self._remember(line, results[0])

    def _remember(self, line: str, result: Generation) -> None:
        self._history.append({"role": "user", "content": line})
        self._history.append({"role": "assistant", "content": result.text})


def _begin_with(model: Model, options: GenerateOptions, kept: Path) -> None:
    """Load the prompt that a file holds; OptionError where it could not be written or would be of no use."""
    from ..cache.saved import check_attention

    if options.cache not in (None, "block"):
        raise OptionError(f"--prompt-cache needs the cache block, not {options.cache}; leave one of them out")
    check_target(kept)
    if kept.exists():
        model.load_prompt(kept)
    elif model.spec is not None:
        check_attention(model.spec)


def _ask() -> str | None:
    """A line from the terminal, None at its end."""
    try:
        if sys.stdout.isatty():
            import readline  # noqa: F401  editing and history for input()

            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)
        return input()
    except EOFError:
        print(file=sys.stderr)
        return None
