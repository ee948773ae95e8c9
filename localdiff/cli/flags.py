"""Flags made from the fields of an options dataclass, so that the command line and the API cannot drift apart.

A field's metadata gives `help`, and where there are any `short`, `choices`, and `many` for flags that may be repeated.
Ranges are checked by the dataclass, which also makes what it keeps (`form`) of the texts that were typed.
Only what was typed is passed on; the rest keeps the dataclass's default. Command is what help looks like: flags under
headings, and what a flag takes in one word. Nothing here knows a particular option.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

TYPES = {"int": click.INT, "float": click.FLOAT, "str": click.STRING, "tuple[str, ...]": click.STRING}


def flags(
    options: type, *, without: Collection[str] = (), short: Mapping[str, str] | None = None
) -> Callable[[Decorated], Decorated]:
    """Decorate a command with the fields of `options`, except `without`; short: field -> one-letter flag."""
    fields = [field for field in dataclasses.fields(options) if field.name not in without]

    def decorate(command: Decorated) -> Decorated:
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


class Command(click.Command):
    """A subcommand whose help has its flags under headings.

    groups   heading -> names of parameters; those in none of them come first, under "Options"
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Collection[str]] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.groups = {heading: frozenset(names) for heading, names in (groups or {}).items()}

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        grouped = frozenset().union(*self.groups.values())
        own = {parameter.name or "" for parameter in self.get_params(context)} - grouped
        for heading, names in {"Options": own, **self.groups}.items():
            shown = [each for each in self.get_params(context) if each.name in names and isinstance(each, click.Option)]
            if shown:
                with formatter.section(heading):
                    rows = (_row(option, context) for option in shown)
                    formatter.write_dl([(names, self.in_flags(said)) for names, said in rows])

    def flag_of(self, name: str) -> str | None:
        """The long flag of a parameter; None where there is none."""
        options = (each for each in self.params if isinstance(each, click.Option) and each.name == name)
        return next((max(option.opts, key=len) for option in options), None)

    def in_flags(self, message: str) -> str:
        """A message about options with their flags in place of their names: `top_k is -1` becomes `--top-k is -1`.

        Names of several words are found anywhere, others where a message begins with one or says that there is no such
        option. What stands in quotes is the user's.
        """

        def flag(match: re.Match[str]) -> str:
            return self.flag_of(match[0]) or match[0]

        parts = re.split(r"('[^']*')", message)
        parts[::2] = [re.sub(r"(?<![\w=-])[a-z]\w*_\w+(?!\w)", flag, part) for part in parts[::2]]
        parts[0] = re.sub(r"^\w+(?= (?:is |holds |names |$))|(?<=has no option )\w+", flag, parts[0])
        return "".join(parts)


def _row(option: click.Option, context: click.Context) -> tuple[str, str]:
    """What help says of a flag: a number is N or X, a name of many NAME, and these are listed beside it."""
    row = option.get_help_record(context)
    assert row is not None  # no flag is hidden
    names, said = row
    if option.metavar is None and isinstance(option.type, click.Choice) and len(option.type.choices) > _MOST_CHOICES:
        return re.sub(r"\[.*\]", "NAME", names), f"{said}: {', '.join(option.type.choices)}"
    for word, short in _SHORT.items():
        names = names.replace(word, short)
    return names, said


_MOST_CHOICES = 8
_SHORT = {"INTEGER RANGE": "N", "FLOAT RANGE": "X", "INTEGER": "N", "FLOAT": "X"}


class ManyValues(Command):
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
