"""Automata over tokens in the engine, and what a canvas asks of one.

The engine keeps a copy of the tables and does what every pass needs: a text that matches with the scores of its tokens
(sessions.propose_logits), and whether any text fits. Not here: how automata are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._abi import ffi
from ..errors import EngineError
from .binding import Closable, Handle, Int32, check, library, new_struct


class Automaton(Closable):
    """A finite automaton over the tokens of a vocabulary; immutable, may be shared between threads.

    class_of   int32 [vocab], the class of each token, `classes` where it is never allowed
    first      int32 [states + 1], where the edges of each state begin
    kind       int32 [edges], the class of each, ascending within a state; every class below `classes` has a token
    target     int32 [edges], the state it leads to
    distance   int32 [states], the fewest tokens after which a text may end, 0 where it may end there
    raises     EngineError for a table that is inconsistent
    """

    def __init__(
        self, class_of: Int32, classes: int, first: Int32, kind: Int32, target: Int32, distance: Int32
    ) -> None:
        arrays = {"class_of": class_of, "first": first, "kind": kind, "target": target, "distance": distance}
        if len(first) != len(distance) + 1 or not len(kind) == len(target) == first[-1]:
            shapes = ", ".join(f"{name} [{len(array)}]" for name, array in arrays.items())
            raise EngineError(f"the tables of an automaton do not belong together: {shapes}")
        pointers, keep = {}, []
        for name, array in arrays.items():
            pointers[name], kept = tokens_at(array)
            keep.append(kept)
        table = new_struct("ld_automaton_table", vocab=len(class_of), states=len(distance), classes=classes, **pointers)
        out = ffi.new("ld_automaton **")
        check(library().ld_automaton_create(table, out))
        del keep
        self._handle = Handle("automaton", out[0], library().ld_automaton_free)

    @property
    def raw(self) -> Any:
        """The handle for a call."""
        return self._handle.pointer()


@dataclass(frozen=True)
class Match:
    """What stands in the stretch of a canvas that must match.

    first    its first position
    state    of the automaton before it
    tokens   int32 [n], -1 where nothing is known, as at scored positions
    left     positions behind it, of which the text may use any number
    """

    automaton: Automaton
    first: int
    state: int
    tokens: Int32
    left: int

    @property
    def possible(self) -> bool:
        """Whether any text that goes on like this matches."""
        out = ffi.new("int32_t *")
        pointer, keep = tokens_at(self.tokens)
        check(library().ld_automaton_fits(self.automaton.raw, self.state, pointer, len(self.tokens), self.left, out))
        del keep
        return bool(out[0])


def tokens_at(values: Int32) -> tuple[Any, Int32]:
    """A pointer to int32 values, and the array that must live as long as it is used."""
    array = np.ascontiguousarray(values, np.int32)
    return ffi.cast("int32_t *", array.ctypes.data), array
