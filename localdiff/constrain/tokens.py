"""The tokens of a vocabulary as a tree of bytes, and every step that they make in an automaton over bytes.

All states go down the tree at once, one level of bytes after the other, as arrays of (state, node); only those pairs go
on that some text allows. Not here: classes of tokens, lengths (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..canvas import Int32
from .automaton import ByteAutomaton
from .language import Unsupported

_MAX_STEPS = 20_000_000  # of all tokens in all states
_MAX_WIDTH = 20_000_000  # pairs at one level


@dataclass(frozen=True)
class TokenTree:
    """Node 0 is the root; the children of a node, and the tokens that end there, stand one after another.

    first_child, children   int32 [nodes]   of each node
    byte                    int32 [nodes]   that leads to the node
    first_token, tokens     int32 [nodes]   places in `token`, and how many
    token                   int32 [tokens]  ids
    """

    first_child: Int32
    children: Int32
    byte: Int32
    first_token: Int32
    tokens: Int32
    token: Int32

    @staticmethod
    def of(pieces: Mapping[int, bytes]) -> TokenTree:
        """The tree of tokens: id -> bytes, at least one."""
        ids = np.array(sorted(pieces), np.int32)
        texts = [pieces[token] for token in ids.tolist()]
        lengths = np.array([len(text) for text in texts], np.int64)
        starts = np.cumsum(lengths) - lengths
        joined = np.frombuffer(b"".join(texts), np.uint8)
        at = np.zeros(len(ids), np.int64)  # the node that each token has come to
        first_child, children, byte = [0], [0], [0]
        for level in range(int(lengths.max(initial=0))):
            going = np.flatnonzero(lengths > level)
            keys = at[going] * 256 + joined[starts[going] + level]
            found, place = np.unique(keys, return_inverse=True)
            base = len(byte)
            at[going] = base + place
            parents, counts = np.unique(found // 256, return_counts=True)
            first = base + np.cumsum(counts) - counts
            byte += (found % 256).tolist()
            first_child += [0] * len(found)
            children += [0] * len(found)
            for parent, begin, count in zip(parents.tolist(), first.tolist(), counts.tolist(), strict=True):
                first_child[parent], children[parent] = begin, count
        ends, nodes = np.argsort(at, kind="stable"), np.arange(len(byte) + 1)
        edges = np.searchsorted(at[ends], nodes)
        arrays = (first_child, children, byte, edges[:-1], np.diff(edges), ids[ends])
        return TokenTree(*(np.asarray(array, np.int32) for array in arrays))


def steps(tree: TokenTree, automaton: ByteAutomaton) -> tuple[Int32, Int32, Int32]:
    """(state, token, next state) of every token in every state that goes on; Unsupported where they are too many."""
    origin = np.arange(len(automaton.following), dtype=np.int32)
    state, node = origin, np.zeros_like(origin)
    found: list[tuple[Int32, Int32, Int32]] = []
    total = 0
    while len(state):
        place, child = spread(tree.first_child[node], tree.children[node])
        if len(child) > _MAX_WIDTH:
            raise Unsupported("its automaton takes too many steps with this vocabulary")
        following = automaton.following[state[place], automaton.class_of[tree.byte[child]]]
        kept = following >= 0
        origin, state, node = origin[place[kept]], following[kept], child[kept]
        place, where = spread(tree.first_token[node], tree.tokens[node])
        found.append((origin[place], tree.token[where], state[place]))
        total += len(where)
        if total > _MAX_STEPS:
            raise Unsupported("its automaton takes too many steps with this vocabulary")
    arrays = (np.concatenate([each[column] for each in found]) for column in range(3))
    source, token, target = (np.asarray(array, np.int32) for array in arrays)
    return source, token, target


def spread(first: npt.NDArray[np.integer], counts: npt.NDArray[np.integer]) -> tuple[Int32, Int32]:
    """Ranges one after another: for each number which range it is of, and the number."""
    total = int(counts.sum())
    place = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    shift = np.asarray(first - (np.cumsum(counts) - counts), np.int32)
    return place, np.arange(total, dtype=np.int32) + shift[place]
