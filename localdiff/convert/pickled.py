"""Pickles as data: an interpreter of the few pickle instructions that a table of tensors is made of.

Nothing is imported, called or executed: a global is a name looked up in the table the caller gives, and a "call" is
one of that table's functions on values made here. Values are None, bool, int, float, str, tuple, list, dict, Global and
what the caller's functions return. Every other instruction and every other global is refused by name. Time and memory
are linear in the pickle's length, which is limited. Not here: tensors and storages (torch_file.py).
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 64 << 20  # of one pickle: some 200 bytes describe a tensor

Call = Callable[[tuple[Any, ...]], Any]

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_VALUES |= {"BINSTRING", "SHORT_BINSTRING"}  # of Python 2
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME"}


class Refused(Exception):
    """A pickle that is damaged or asks for more than data; the text is half a sentence about it."""


@dataclass(frozen=True)
class Global:
    """The dotted name of something that a pickle would import."""

    name: str


_MARK = object()


def read_pickle(
    data: bytes | memoryview, calls: Mapping[str, Call | None], persistent: Call | None = None
) -> tuple[Any, int]:
    """The value of the pickle at the start of `data`, and its length in bytes.

    calls       by dotted name, functions of a tuple of arguments; None where the global may only be named
    persistent  what stands for a persistent id, called with ids that are tuples; None refuses them
    raises      Refused, and what `calls` and `persistent` raise
    """
    machine = _Machine(calls, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream := io.BytesIO(data[:MOST_BYTES])):
            if opcode.name == "STOP":
                return machine.result(), stream.tell()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise Refused(f"is damaged or too long: {error}") from None
    raise Refused("has no end")


class _Machine:
    def __init__(self, calls: Mapping[str, Call | None], persistent: Call | None) -> None:
        self._calls = calls
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise Refused(f"ends with {len(self._stack)} values, expected one")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("APPEND", "APPENDS"):
            values = self._pop_to_mark() if name == "APPENDS" else [self._pop()]
            self._top_of(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop_to_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            self._set_items(values)
        elif name == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._name(module, attribute)
        elif name == "REDUCE":
            self._call()
        elif name == "BUILD":
            # The attributes of a dictionary (state dicts carry version numbers in one) say nothing about tensors.
            self._pop()
            self._top_of(dict)
        elif name == "BINPERSID":
            self._stack.append(self._find(self._pop()))
        elif name not in _NOTHING:
            raise Refused(f"holds the instruction {name}, which no table of tensors needs")

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused("takes a value where there is none")
        return self._stack[-1]

    def _top_of(self, kind: type) -> Any:
        if not isinstance(self._top(), kind):
            raise Refused(f"changes a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise Refused("takes values up to a mark that it did not set")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _set_items(self, values: list[Any]) -> None:
        target = self._top_of(dict)
        if len(values) % 2:
            raise Refused("gives a dictionary a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise Refused(f"has a dictionary key of type {type(key).__name__}, expected str or int")
            target[key] = value

    def _name(self, module: Any, attribute: Any) -> None:
        name = f"{module}.{attribute}"
        if name not in self._calls:
            raise Refused(f"asks for {name[:100]!r}, which no table of tensors needs")
        self._stack.append(Global(name))

    def _call(self) -> None:
        arguments, target = self._pop(), self._pop()
        call = self._calls[target.name] if isinstance(target, Global) else None
        if call is None or not isinstance(arguments, tuple):
            raise Refused("calls something that is no function")
        self._stack.append(call(arguments))

    def _find(self, identity: Any) -> Any:
        if self._persistent is None or not isinstance(identity, tuple):
            raise Refused("refers to something outside of it")
        return self._persistent(identity)
