"""Trees of language.py as deterministic automata over bytes.

Thompson's construction gives states with edges for sets of bytes, the subset construction makes them deterministic.
Bytes that no edge tells apart are one class, so that a row has as many entries as there are classes. Both steps have
limits, so that small patterns that ask for huge automata end soon. Not here: tokens (tokens.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..canvas import Int32
from .language import Alt, Members, Node, OneOf, Repeat, Seq, Text, Unsupported, size

MAX_SIZE = 20_000  # states that the tree may have
MAX_STATES = 6_000  # of the deterministic automaton
_MAX_WORK = 3_000_000  # edges followed while it is made


@dataclass(frozen=True)
class ByteAutomaton:
    """State 0 is the start.

    following   int32 [states, classes]  the next state, -1 where no text goes on so
    class_of    int32 [256]              the class of each byte
    accepting   bool [states]
    """

    following: Int32
    class_of: Int32
    accepting: npt.NDArray[np.bool_]

    def swallowing_space(self) -> ByteAutomaton:
        """The automaton of the texts that match once a space at their beginning is taken away."""
        start: Int32 = self.following[0].copy()
        kind = int(self.class_of[0x20])
        class_of, following = self.class_of, self.following
        if np.count_nonzero(class_of == kind) > 1:  # the space needs a class of its own
            class_of = class_of.copy()
            class_of[0x20] = following.shape[1]
            following = np.hstack([following, following[:, kind : kind + 1]])
            start = np.append(start, 0)
            kind = following.shape[1] - 1
        start[kind] = 1
        shifted = np.where(following >= 0, following + 1, -1)
        start = np.where((start >= 0) & (np.arange(len(start)) != kind), start + 1, start)
        return ByteAutomaton(
            np.vstack([start[None], shifted]).astype(np.int32), class_of, np.append(self.accepting[:1], self.accepting)
        )

    def avoiding(self, texts: Sequence[bytes]) -> ByteAutomaton:
        """The automaton of the texts that match and hold none of these; Unsupported where it would be too large."""
        goto, whole = _found(texts)
        own = np.isin(np.arange(256), list(b"".join(texts)))
        keys = self.class_of * 257 + np.where(own, np.arange(256), 256)
        _, first, class_of = np.unique(keys, return_index=True, return_inverse=True)
        following, goto = self.following[:, self.class_of[first]], goto[:, first]
        numbers = {(0, 0): 0}
        queue, rows = [(0, 0)], []
        for finder, state in queue:
            row = []
            for to, target in zip(goto[finder].tolist(), following[state].tolist(), strict=True):
                if target < 0 or whole[to]:
                    row.append(-1)
                    continue
                row.append(numbers.setdefault((to, target), len(numbers)))
                if row[-1] == len(queue):
                    queue.append((to, target))
            rows.append(row)
            if len(queue) > MAX_STATES:
                raise Unsupported(f"its automaton has more than {MAX_STATES} states")
        accepting = self.accepting[[state for _, state in queue]]
        return ByteAutomaton(np.array(rows, np.int32), class_of.astype(np.int32), accepting)

    def forced(self, state: int, limit: int) -> tuple[bytes, bool]:
        """The bytes that must follow after `state`, up to `limit` of them, and whether the text must end there."""
        out = bytearray()
        while len(out) < limit and not self.accepting[state]:
            kinds = np.flatnonzero(self.following[state] >= 0)
            if len(kinds) != 1:
                break
            values = np.flatnonzero(self.class_of == kinds[0])
            if len(values) != 1:
                break
            out.append(int(values[0]))
            state = int(self.following[state, kinds[0]])
        return bytes(out), bool(self.accepting[state] and self.following[state].max(initial=-1) < 0)


def compile(node: Node) -> ByteAutomaton:
    """The automaton of `node`; Unsupported where it would be too large."""
    if size(node) > MAX_SIZE:
        raise Unsupported(f"its automaton is made from more than {MAX_SIZE} states")
    graph = _Graph()
    start = graph.state()
    final = graph.add(node, start)
    return _deterministic(graph, start, final)


class _Graph:
    """edges: (set of bytes, target) of each state; free: targets that are reached without a byte."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int]]] = []
        self.free: list[list[int]] = []

    def state(self) -> int:
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def add(self, node: Node, start: int) -> int:
        """Paths for `node` from `start`, which may have others; returns where they end. No path leads back."""
        if isinstance(node, OneOf):
            end = self.state()
            self.edges[start].append((node.bytes, end))
            return end
        if isinstance(node, Text):
            for byte in node.data:
                start = self.add(OneOf(1 << byte), start)
            return start
        if isinstance(node, Seq):
            for part in node.parts:
                start = self.add(part, start)
            return start
        if isinstance(node, Alt):
            end = self.state()
            for part in node.parts:
                self.free[self.add(part, self._after(start))].append(end)
            return end
        return self._repeat(node, start) if isinstance(node, Repeat) else self._members(node, start)

    def _after(self, *starts: int) -> int:
        """A new state that is reached from `starts` without a byte."""
        new = self.state()
        for start in starts:
            self.free[start].append(new)
        return new

    def _repeat(self, node: Repeat, start: int) -> int:
        copies = max(node.least, 1) if node.most is None else node.most
        ends = [start] if node.least == 0 else []
        before = self._after(start)
        for count in range(1, copies + 1):
            end = self.add(node.part, before)
            if count >= node.least:
                ends.append(end)
            if count < copies:
                before = self._after(self.add(node.separator, self._after(end)))
            elif node.most is None:
                self.free[self.add(node.separator, self._after(end))].append(before)
        return self._after(*ends)

    def _members(self, node: Members, start: int) -> int:
        none, some = self._after(start), self.state()  # nothing or something was written so far
        for part, may_be_absent in node.parts:
            entry = self._after(none, self.add(node.separator, self._after(some)))
            end = self.add(part, entry)
            some = self._after(end, some) if may_be_absent else self._after(end)
            none = none if may_be_absent else self.state()
        return self._after(none, some)


def _deterministic(graph: _Graph, start: int, final: int) -> ByteAutomaton:
    class_of, members = _classes({mask for edges in graph.edges for mask, _ in edges})
    reached: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """The states with edges, or the final one, that are reached from `state` without a byte."""
        found = reached.get(state)
        if found is None:
            seen, todo = {state}, [state]
            while todo:
                for target in graph.free[todo.pop()]:
                    if target not in seen:
                        seen.add(target)
                        todo.append(target)
            found = reached[state] = frozenset(each for each in seen if graph.edges[each] or each == final)
        return found

    first = closure(start)
    numbers = {first: 0}
    queue = [first]
    rows: list[list[int]] = []
    work, width = 0, int(class_of.max()) + 1
    for states in queue:
        row = [-1] * width
        edges = [edge for state in states for edge in graph.edges[state]]
        to: dict[int, list[int]] = {}  # class -> targets
        for mask, target in edges:
            for kind in members[mask]:
                to.setdefault(kind, []).append(target)
        work += sum(map(len, to.values())) + len(edges) + 1
        known: dict[tuple[int, ...], int] = {}
        for kind, targets in to.items():
            key = tuple(targets)
            number = known.get(key)
            if number is None:
                union = closure(key[0]).union(*(closure(each) for each in key[1:]))
                number = numbers.setdefault(union, len(numbers))
                if number == len(queue):
                    queue.append(union)
                known[key] = number
                work += len(union)
            row[kind] = number
        rows.append(row)
        if len(queue) > MAX_STATES or work > _MAX_WORK:
            raise Unsupported(f"its automaton has more than {min(len(queue), MAX_STATES)} states")
    accepting = np.array([final in states for states in queue])
    return ByteAutomaton(np.array(rows, np.int32).reshape(len(rows), width), class_of, accepting)


def _found(texts: Sequence[bytes]) -> tuple[Int32, npt.NDArray[np.bool_]]:
    """Aho and Corasick's automaton (1975), which finds texts: the next state for each byte, and where one was found."""
    children: list[dict[int, int]] = [{}]
    whole = [False]
    for text in texts:
        at = 0
        for byte in text:
            if byte not in children[at]:
                children[at][byte] = len(children)
                children.append({})
                whole.append(False)
            at = children[at][byte]
        whole[at] = True
    goto = np.zeros((len(children), 256), np.int32)
    queue = [(0, 0)]  # a state, and that of its longest proper suffix
    for state, suffix in queue:
        whole[state] |= whole[suffix]
        if state:
            goto[state] = goto[suffix]
        for byte, child in children[state].items():
            queue.append((child, int(goto[state, byte])))
            goto[state, byte] = child
    return goto, np.array(whole)


def _classes(masks: set[int]) -> tuple[Int32, dict[int, list[int]]]:
    """The class of each byte, and for each set of bytes the classes in it."""
    groups = [(1 << 256) - 1]
    for mask in masks:
        groups = [part for group in groups for part in (group & mask, group & ~mask) if part]
    class_of = np.zeros(256, np.int32)
    for number, group in enumerate(groups):
        for byte in range(256):
            if group >> byte & 1:
                class_of[byte] = number
    return class_of, {mask: [number for number, group in enumerate(groups) if group & mask] for mask in masks}
