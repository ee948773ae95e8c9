"""An automaton over the tokens of a vocabulary: what each class of tokens does in each state.

Tokens that do the same in every state are one class, so that a state has edges for classes, not for tokens. A text may
end where the automaton accepts, with a stop token; then nothing but stop tokens follows. The tables are made once and
shared by all texts with the same constraint. Not here: probabilities, which are the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..canvas import Int32
from ..engine import Automaton
from .automaton import ByteAutomaton
from .tokens import TokenTree, steps

FAR = 1 << 30  # more tokens than any canvas has

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenAutomaton:
    """State 0 is the start; the last state is that of a text that has ended.

    source, kind, target   int32 [edges], by source and then class
    first                  int32 [states + 1], where the edges of each state begin
    class_of               int32 [vocab], classes where a token does nothing anywhere
    classes                how many there are; where texts can be ended the last is that of the stop tokens
    ordered, begin         the tokens by class, and where each class begins, int32 [classes + 1]
    distance               int32 [states], the fewest tokens after which a text may end, FAR where it never may
    """

    of_bytes: ByteAutomaton
    source: Int32
    kind: Int32
    target: Int32
    first: Int32
    class_of: Int32
    classes: int
    ordered: Int32
    begin: Int32
    distance: Int32
    stop_tokens: tuple[int, ...]
    _exact: list[Bools] = field(default_factory=list, repr=False)

    @property
    def ended(self) -> int:
        return len(self.distance) - 1

    @cached_property
    def engine(self) -> Automaton:
        """The same in the engine."""
        return Automaton(self.class_of, self.classes, self.first, self.kind, self.target, self.distance)

    def possible(self, left: int) -> Bools:
        """bool [states]: from which states `left` further tokens can make a whole text, one that has ended included."""
        if self.stop_tokens:
            return self.distance <= left
        while len(self._exact) <= left:
            if not self._exact:
                self._exact.append(self.distance == 0)
                continue
            new = np.zeros(len(self.distance), bool)
            new[self.source[self._exact[-1][self.target]]] = True
            self._exact.append(new)
        return self._exact[left]

    def step(self, state: int, token: int) -> int:
        """The state after a token, -1 where the token is not allowed."""
        begin, end = self.first[state], self.first[state + 1]
        kind = self.class_of[token]
        place = begin + int(np.searchsorted(self.kind[begin:end], kind))
        return int(self.target[place]) if place < end and self.kind[place] == kind else -1

    def only(self, state: int) -> int | None:
        """The one token that may follow after `state`, or the first stop token where only they may; else None."""
        begin, end = self.first[state], self.first[state + 1]
        if end - begin != 1:
            return None
        kind = self.kind[begin]
        single = self.begin[kind + 1] - self.begin[kind] == 1
        stops = bool(self.stop_tokens) and kind == self.classes - 1
        return int(self.ordered[self.begin[kind]]) if single or stops else None


def build(automaton: ByteAutomaton, tree: TokenTree, vocab: int, stop_tokens: Sequence[int]) -> TokenAutomaton:
    """The token automaton of a byte automaton.

    vocab         rows of the model
    stop_tokens   none where a text must fill its place to the last token; not in the tree
    """
    source, token, target = steps(tree, automaton)
    count = len(automaton.following)
    # Tokens are told apart by the sum of one random number for each of their steps: 64 bits, so that the chance of
    # two that do differently and have the same sum is 2^-64.
    mark = _mixed(source.astype(np.uint64) * np.uint64(count + 1) + target.astype(np.uint64))
    sums = np.zeros(vocab, np.uint64)
    np.add.at(sums, token, mark)
    known = np.unique(token)
    _, representative, kinds = np.unique(sums[known], return_index=True, return_inverse=True)
    classes = len(representative)
    class_of = np.full(vocab, -1, np.int32)
    class_of[known] = kinds
    stands_for_class = np.zeros(vocab, bool)
    stands_for_class[known[representative]] = True
    kept = stands_for_class[token]
    source, kind, target = source[kept], class_of[token[kept]], target[kept]
    ended = np.flatnonzero(automaton.accepting).astype(np.int32)
    distance = np.full(count + 1, FAR, np.int32)
    distance[ended] = 0
    if stop_tokens:
        distance[count] = 0
        ending = np.append(ended, np.int32(count))
        source = np.concatenate([source, ending])
        kind = np.concatenate([kind, np.full(len(ending), classes, np.int32)])
        target = np.concatenate([target, np.full(len(ending), count, np.int32)])
        class_of[list(stop_tokens)] = classes
        classes += 1
    _measure(distance, source, target)
    kept = (distance[source] < FAR) & (distance[target] < FAR)
    order = np.lexsort((kind[kept], source[kept]))
    source, kind, target = (each[kept][order].astype(np.int32) for each in (source, kind, target))
    first = np.searchsorted(source, np.arange(count + 2)).astype(np.int32)
    class_of[class_of < 0] = classes
    ordered = np.argsort(class_of, kind="stable").astype(np.int32)
    begin = np.searchsorted(class_of[ordered], np.arange(classes + 1)).astype(np.int32)
    return TokenAutomaton(
        automaton, source, kind, target, first, class_of, classes, ordered, begin, distance, tuple(stop_tokens)
    )


def _measure(distance: Int32, source: Int32, target: Int32) -> None:
    """Fill in the fewest steps to a state of distance 0."""
    reached = distance == 0
    for steps_left in range(1, len(distance) + 1):
        new = np.zeros_like(reached)
        new[source[reached[target]]] = True
        new &= distance == FAR
        if not new.any():
            return
        distance[new] = steps_left
        reached = new


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers in which no pattern of the given ones is left (the finaliser of splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
