"""The fields of options dataclasses: what a setting says of itself, and the check of a value against that.

A dataclass with such fields is the API and the command line at once, which cli/flags.py makes of it. Not here: checks
of several settings together, which their dataclasses make. No numpy, so that help stays fast.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

from .errors import OptionError

MOST = 2**31 - 1
ONE_UP = (1, MOST)  # ranges of counts
ZERO_UP = (0, MOST)


def option(
    help: str,
    default: Any = None,
    *,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    range: tuple[float, float] | None = None,
    form: Callable[[str, object], Any] | None = None,
    many: str | None = None,
    file: bool = False,
) -> Any:
    """A field.

    help            as shown
    short           a one-letter flag
    choices, range  what a value may be, ends of the range included
    form            makes the one form that is kept of what was given
    many            what is shown for a flag that may be repeated
    file            the flag takes the name of a file
    """
    metadata = {"help": help, "short": short, "choices": choices, "range": range, "form": form, "many": many}
    return dataclasses.field(default=default, metadata={**metadata, "file": file})


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def check_value(field: dataclasses.Field[Any], value: object, name: str | None = None) -> None:
    """Raise OptionError unless a value is what the metadata of its field ask for; name: in place of the field's own."""
    name = name or field.name
    choices, bounds = field.metadata["choices"], field.metadata["range"]
    if choices is not None:
        if value not in choices:
            raise OptionError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        return
    if str(field.type).startswith("bool"):
        if not isinstance(value, bool):
            raise OptionError(f"{name} is {value!r}, expected True or False")
        return
    if bounds is None:
        return
    whole = str(field.type).startswith("int")
    kind: type = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise OptionError(f"{name} is {value!r}, expected a {'whole number' if whole else 'number'}")
    low, high = bounds
    if not low <= value <= high:
        expected = f"{_plain(low)} or more" if high in (math.inf, MOST) else f"{_plain(low)} to {_plain(high)}"
        raise OptionError(f"{name} is {value}, expected {expected}")


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number  # 1000000 in place of 1000000.0
