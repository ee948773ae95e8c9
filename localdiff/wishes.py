"""What options accept that are neither numbers nor words: tokens by text or id, biases, stop strings, prompts.

Each function takes what a caller gave - from Python, or a list of strings from the command line - and returns it in the
one form that GenerateOptions keeps, or raises OptionError. What a text is in tokens is found out later, by the
tokenizer of the model: token_of(). No numpy here, so that help stays fast.
"""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError

if TYPE_CHECKING:
    from .text import Tokenizer

MOST_STOPS = 16
_OFFSET = re.compile(r"(\d+)([+-].*)")  # 15043+1, as other programs write it


def strings(name: str, value: object) -> tuple[str, ...]:
    """Texts to stop at: one, or several."""
    given = (value,) if isinstance(value, str) else _sequence(name, value)
    for each in given:
        if not isinstance(each, str) or not each:
            raise OptionError(f"{name} holds {each!r}, expected texts that are not empty")
    if len(given) > MOST_STOPS:
        raise OptionError(f"{name} holds {len(given)} texts, expected at most {MOST_STOPS}")
    return tuple(given)


def tokens(name: str, value: object) -> tuple[str | int, ...]:
    """Tokens by text or id: one, or several."""
    given = (value,) if isinstance(value, (str, numbers.Integral)) else _sequence(name, value)
    return tuple(_token(name, each) for each in given)


def prompt(name: str, value: object) -> str | tuple[int, ...]:
    """A text, or token ids."""
    if isinstance(value, str):
        return value
    ids = _sequence(name, value)
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, numbers.Integral):
            raise OptionError(f"{name} holds {each!r}, expected a text or token ids")
    return tuple(int(each) for each in ids)


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{name} is a {type(value).__name__}, expected a text")
    return value


def grammar(name: str, value: object) -> str | Path:
    """A grammar, or the path of a file with one."""
    return Path(value) if isinstance(value, os.PathLike) else text(name, value)


def json_schema(name: str, value: object) -> Mapping[str, Any] | bool | Path:
    """A schema, or the path of a file with one."""
    if isinstance(value, (str, os.PathLike)):
        return Path(value)
    if not isinstance(value, (Mapping, bool)):
        raise OptionError(f"{name} is a {type(value).__name__}, expected a schema as a dict, or the path of a file")
    return value


def biases(name: str, value: object) -> dict[str | int, float]:
    """What is added to the logits of tokens: {token: number}, or strings TOKEN=NUMBER; -inf or False bans a token."""
    pairs: Iterable[tuple[object, object]]
    pairs = value.items() if isinstance(value, Mapping) else [_pair(name, each) for each in _sequence(name, value)]
    found: dict[str | int, float] = {}
    for token, bias in pairs:
        key = _token(name, token)
        if key in found:
            raise OptionError(f"{name} names the token {key!r} twice, expected one value for each")
        number = -math.inf if bias is False else bias
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise OptionError(f"{name} of {key!r} is {bias!r}, expected a number, or -inf to ban the token")
        if not (-1e6 <= number <= 1e6 or number == -math.inf):
            raise OptionError(f"{name} of {key!r} is {number}, expected -1e6 to 1e6, or -inf to ban the token")
        found[key] = float(number)
    return found


def token_of(name: str, wanted: str | int, tokenizer: Tokenizer, vocab: int) -> int:
    """The id of a token; OptionError for an id outside the vocabulary and for a text that is not one token."""
    if isinstance(wanted, int):
        if not 0 <= wanted < vocab:
            raise OptionError(f"{name} names the token {wanted}, expected an id from 0 to {vocab - 1}")
        return wanted
    ids = tokenizer.encode_parts(["", wanted], add_bos=False)  # "" first: this is not the beginning of a text
    if len(ids) != 1:
        parts = ", ".join(f"{token} {tokenizer.decode([token], continues=True)!r}" for token in ids) or "none"
        instead = ", or avoid the text" if name == "ban" else ""
        raise OptionError(
            f"{name} names {wanted!r}, which is {len(ids)} tokens of the model ({parts}); name one token{instead}"
        )
    return ids[0]


def _token(name: str, value: object) -> str | int:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise OptionError(f"{name} names the token {value!r}, expected a text or a token id")


def _pair(name: str, value: object) -> tuple[object, object]:
    """TOKEN=NUMBER, where digits are an id; or ID+NUMBER, ID-NUMBER."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return value[0], value[1]
    text = value if isinstance(value, str) else ""
    token, separator, number = text.rpartition("=")
    if not separator and (offset := _OFFSET.fullmatch(text)):
        token, number = offset[1], offset[2]
    try:
        bias: Any = False if number == "false" else float(number)
    except ValueError:
        bias = None
    if not token or bias is None:
        raise OptionError(f"{name} is {value!r}, expected TOKEN=NUMBER such as 15043=1.5 or ' cat=-inf'")
    return int(token) if token.isdecimal() else token, bias


def _sequence(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise OptionError(f"{name} is {value!r}, expected a list")
    return list(value)
