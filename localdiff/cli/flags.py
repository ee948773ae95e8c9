"""Flags made from the fields of an options dataclass, so that the command line and the API cannot drift apart.

A field's metadata gives `help`, and where there are any `short`, `choices`, and `many` for flags that may be repeated.
Ranges are checked by the dataclass, which also makes what it keeps (`form`) of the texts that were typed.
Only what was typed is passed on; the rest keeps the dataclass's default. Nothing here knows a particular option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

TYPES = {"int": click.INT, "float": click.FLOAT, "str": click.STRING, "tuple[str, ...]": click.STRING}


def flags(
    options: type, *, without: Collection[str] = (), short: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Decorate a command with the fields of `options`, except `without`; short: field -> one-letter flag."""
    fields = [field for field in dataclasses.fields(options) if field.name not in without]

    def decorate(command: Command) -> Command:
        for field in reversed(fields):
            letter = (short or {}).get(field.name) or field.metadata.get("short")
            names = [f"--{field.name.replace('_', '-')}"] + ([f"-{letter}"] if letter else [])
            kind = str(field.type).removesuffix(" | None")
            settings: dict[str, Any] = {"help": _help(field), "default": None}
            if kind == "bool":
                settings["is_flag"] = True
            elif field.metadata.get("many"):
                settings.update(type=click.STRING, multiple=True, metavar=field.metadata["many"])
            elif field.metadata.get("file"):
                settings.update(type=click.Path(path_type=Path), metavar="FILE")
            elif field.metadata.get("form"):
                settings["type"] = click.STRING
            else:
                choices = field.metadata.get("choices")
                settings["type"] = click.Choice(choices) if choices else TYPES[kind]
                settings["multiple"] = kind.startswith("tuple")
            command = click.option(*names, field.name, **settings)(command)
        return command

    return decorate


def _help(field: dataclasses.Field[Any]) -> str:
    shown = field.default not in (None, (), "", False, dataclasses.MISSING)
    return f"{field.metadata['help']} (default {field.default})" if shown else str(field.metadata["help"])


def given(values: Mapping[str, Any], options: type) -> dict[str, Any]:
    """The values that were typed and are fields of `options`."""
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if name in names and value is not None and value != ()}


class ManyValues(click.Command):
    """A command whose repeatable options take several values each: --data a.txt b.txt, as a shell's * writes them."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        many = {name for each in self.params if isinstance(each, click.Option) and each.multiple for name in each.opts}
        spread: list[str] = []
        current = None
        for argument in args:
            if argument.startswith("-") and argument != "-":
                current = argument if argument in many else None
                spread.append(argument)
            elif current is not None and spread[-1] != current:
                spread += [current, argument]
            else:
                spread.append(argument)
        return super().parse_args(context, spread)
