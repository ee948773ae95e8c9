"""The command line: one table of subcommands, one module each, imported when it is used; and the exit codes.

The answer goes to stdout, everything else to stderr. 0 = done, 2 = wrong usage, 1 = a failure, 130 = Ctrl-C. Every
failure is one sentence. Nothing heavy is imported here: `localdiff --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from .. import __version__
from ..errors import Cancelled, LocaldiffError, OptionError

COMMANDS = {  # name, also of the module -> help
    "run": "continue a prompt, or chat",
    "infill": "fill the holes of a text",
    "serve": "serve models over HTTP, with a web page",
    "batch": "answer a file of requests in OpenAI's batch form",
    "convert": "make a GGUF file from a checkpoint",
    "quantize": "make a GGUF file smaller",
    "imatrix": "gather an importance matrix for quantize",
    "adapt": "train an autoregressive checkpoint into a diffusion model",
    "eval": "measure how good a model is",
    "tune": "find the fastest settings of a model on this machine",
    "bench": "measure the speed of a model on this machine",
    "info": "show what a GGUF file holds",
    "plan": "show the memory that a generation takes",
    "pull": "download a model",
    "list": "show the models on this machine",
    "rm": "remove a downloaded model",
    "doctor": "show what this installation can use; compiler flags for C programs",
}


class _Table(click.Group):
    """The subcommands of COMMANDS; their modules hold them as `command`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{name}", __name__).command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, 1)
            raise click.UsageError(f"No such command '{name}'{f', perhaps {near[0]}' if near else ''}.", context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="localdiff", message="%(prog)s %(version)s")
def _localdiff() -> None:
    """The local runtime for diffusion language models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with _localdiff.make_context("localdiff", list(given)) as context:
            code = _localdiff.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # of --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "", file=sys.stderr)
        return 2
    except click.UsageError as error:
        return _failed(f"{error.format_message()} See {_command_path(error, given)} --help", 2)
    except OptionError as error:
        return _failed(_in_flags(str(error), given), 2)
    except (click.Abort, KeyboardInterrupt, Cancelled):
        return 130
    except BrokenPipeError:  # whoever read the answer has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LocaldiffError, click.ClickException) as error:
        return _failed(str(error), 1)
    except MemoryError:
        return _failed("not enough memory; a shorter canvas or a smaller model needs less", 1)
    except OSError as error:
        return _failed(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    return code if isinstance(code, int) else 0


def _command_path(error: click.UsageError, given: Sequence[str]) -> str:
    path = error.ctx.command_path if error.ctx else "localdiff"
    return f"{path} {given[0]}" if path == "localdiff" and given and given[0] in COMMANDS else path


def _in_flags(message: str, given: Sequence[str]) -> str:
    """What the library says of an option, in the words of the command line."""
    command = _localdiff.get_command(click.Context(_localdiff), given[0])
    from .flags import Command

    return command.in_flags(message) if isinstance(command, Command) else message


def _failed(message: str, code: int) -> int:
    print(f"localdiff: {message}", file=sys.stderr)
    return code
