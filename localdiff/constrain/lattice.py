"""The dynamic programme over a canvas: which tokens are best, and how sure they are, where the text must match.

DINGO (arXiv:2505.23061): for every position and every state that the automaton can be in there, the best product of the
model's probabilities from there on; walking along it from the first position gives the likeliest text that matches.
Tokens that are known count as they are, positions that are not scored may hold anything. With sums in place of maxima
the same lattice gives the probability of each token given that the text matches, by which decoders rank positions, and
at a temperature tokens are drawn from left to right from exactly that distribution, sharpened. Any part of the tokens
of one walk can be written and the rest left open: the walk itself shows that a whole text remains possible.
Not here: which positions are written (decoders), the automaton (table.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..canvas import Float32, Int32
from .table import Edges, Indices, TokenAutomaton

Float64 = npt.NDArray[np.float64]

# Relative to the best of a position. A text that the model thinks impossible stays possible, and no product of two of
# the numbers kept per state comes to zero.
_LEAST_LOG = -69.0
_LEAST = 1e-150
_ONE = np.ones(1)


@dataclass(frozen=True)
class Weights:
    """The logits of n scored rows by class; tokens in the order of the automaton, those that do nothing left out.

    log      float32 [n, tokens]    logits less the largest of the row
    weight   float32 [n, tokens]    exp(log), not below exp(_LEAST_LOG)
    total    float64 [n, classes]   the weights of each class
    best     float64 [n, classes]   the largest of log in each class
    """

    log: Float32
    weight: Float32
    total: Float64
    best: Float64

    @staticmethod
    def of(automaton: TokenAutomaton, logits: Float32) -> Weights:
        """logits   float32 [n, vocab]"""
        log = logits[:, automaton.live]
        log -= log.max(axis=1, keepdims=True)
        weight = np.exp(np.maximum(log, np.float32(_LEAST_LOG)))
        begin = automaton.begin[:-1]
        total = np.add.reduceat(weight, begin, axis=1).astype(np.float64)
        return Weights(log, weight, total, np.maximum.reduceat(log, begin, axis=1).astype(np.float64))

    def products(self, automaton: TokenAutomaton) -> Float64:
        """float64 [n, classes]: the sum of weight * log of each class."""
        return np.add.reduceat(self.weight * self.log, automaton.begin[:-1], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Walk:
    """A text that fits, for the n scored rows.

    token        int32 [n]
    probability  float64 [n]  of the token in what it was drawn from, and that of coming to this state
    margin       float64 [n]  the same of the largest minus the second largest
    entropy      float64 [n]  of what it was drawn from, and -log of the probability of the state; nats
    """

    token: Int32
    probability: Float64
    margin: Float64
    entropy: Float64


class Lattice:
    """Positions from the first that is not known to the last that is scored or known.

    known    int32 [positions]  the class of a token that stands there, -1 where none does
    row      int32 [positions]  which of the scored rows it is, -1 for none
    """

    def __init__(
        self, automaton: TokenAutomaton, state: int, known: Int32, row: Int32, left: int, weights: Weights
    ) -> None:
        """left: how many positions come after the last one."""
        self._automaton = automaton
        self._row = row.tolist()
        self._weights = weights
        self._layers: list[Edges] = []
        states = np.array([state], np.int32)
        for index, kind in enumerate(known.tolist()):
            edges = automaton.edges(states, left + len(known) - 1 - index)
            if kind >= 0:
                edges = edges.narrowed(kind)
            self._layers.append(edges)
            states = edges.targets

    @property
    def possible(self) -> bool:
        """Whether any text fits."""
        return bool(len(self._layers[-1].targets)) and self._after[0][0] > 0

    def likeliest(self) -> Int32:
        """int32 [rows]: the tokens of the likeliest text that fits."""
        tokens = np.empty(len(self._weights.total), np.int32)
        place = 0
        for edges, row, ahead in zip(self._layers, self._row, self._best[1:], strict=True):
            begin, end = edges.first[place], edges.first[place + 1]
            value = ahead[edges.target[begin:end]]
            if row >= 0:
                value = value + self._weights.best[row, edges.kind[begin:end]]
            choice = begin + int(np.argmax(value))
            if row >= 0:
                first, last = self._automaton.begin[edges.kind[choice]], self._automaton.begin[edges.kind[choice] + 1]
                tokens[row] = self._automaton.ordered[first + int(np.argmax(self._weights.log[row, first:last]))]
            place = int(edges.target[choice])
        return tokens

    def drawn(self, temperature: float, top_k: int, top_p: float, numbers: Float64, figures: bool) -> Walk:
        """A text that fits, each token drawn given those before it, and that the text matches.

        numbers   float64 [rows] in [0, 1), what is drawn by
        figures   whether more than the tokens is wanted
        """
        drawing = _Drawing(self._automaton, self._weights, temperature, top_k, top_p, figures)
        place = 0
        for index, (edges, row) in enumerate(zip(self._layers, self._row, strict=True)):
            ahead = self._after[index + 1]
            if row < 0:
                begin, end = edges.first[place], edges.first[place + 1]
                place = int(edges.target[begin + int(np.argmax(ahead[edges.target[begin:end]]))])
                continue
            both = self._before[index] * self._after[index] if figures else _ONE
            here = max(float(both[place if figures else 0] / both.sum()), _LEAST)
            place = drawing.draw(row, edges, place, ahead, float(numbers[row]), here)
        return drawing.walk()

    def given_match(self, tokens: Int32) -> Walk:
        """The same figures for other tokens, one per row, from the probabilities given that the text matches."""
        factors, weights, rows = self._factors, self._weights, np.arange(len(tokens))
        places = self._automaton.place_of[tokens]
        probability = factors[rows, self._automaton.class_of[tokens]] * weights.weight[rows, places]
        of_class = factors * np.exp(weights.best)
        first = np.argmax(of_class, axis=1)
        largest = of_class[rows, first]
        of_class[rows, first] = 0
        inside = second_of(self._automaton, weights.weight, first)  # the second one may be of the same class
        second = np.maximum(of_class.max(axis=1), inside * factors[rows, first])
        products = weights.products(self._automaton)
        logs = np.log(np.where(factors > 0, factors, 1))
        entropy = -np.sum(factors * (products + weights.total * logs), axis=1)
        return Walk(tokens, probability, largest - second, np.maximum(entropy, 0))

    def ranked(self, count: int) -> tuple[Int32, Float64]:
        """The likeliest `count` tokens of each row given that the text matches, and their probabilities."""
        shares = np.repeat(self._factors, np.diff(self._automaton.begin), axis=1) * self._weights.weight
        likeliest = np.argsort(-shares, axis=1, kind="stable")[:, :count]
        missing = ((0, 0), (0, count - likeliest.shape[1]))
        tokens: Int32 = np.pad(self._automaton.ordered[likeliest], missing)
        return tokens, np.pad(np.take_along_axis(shares, likeliest, axis=1), missing)

    @cached_property
    def _factors(self) -> Float64:
        """float64 [rows, classes]: times its weight, the probability of a token of the class given a match."""
        factors = np.zeros((len(self._weights.total), self._automaton.classes))
        for edges, row, here, after in zip(self._layers, self._row, self._before[:-1], self._after[1:], strict=True):
            if row >= 0:
                through = here.take(edges.source) * after.take(edges.target)
                factors[row] = _sums(edges.kind, through, self._automaton.classes)
        factors /= (factors * self._weights.total).sum(axis=1, keepdims=True)
        return factors

    @cached_property
    def _before(self) -> list[Float64]:
        """For each position, and the end, the weight of all that leads to each state, relative to the best."""
        values = [np.ones(1)]
        for edges, weight, after in zip(self._layers, self._weight, self._after[1:], strict=True):
            here = values[-1].take(edges.source)
            if weight is not None:
                here *= weight
            values.append(_scaled(_sums(edges.target, here, len(edges.targets)) * (after > 0)))
        return values

    @cached_property
    def _after(self) -> list[Float64]:
        """For each position, and the end, the weight of all that can follow from each state, relative to the best."""
        values = [np.ones(len(self._layers[-1].targets))]
        for edges, weight in zip(reversed(self._layers), reversed(self._weight), strict=True):
            ahead = values[-1].take(edges.target)
            if weight is None:
                values.append(_scaled(edges.by_source(np.maximum, ahead, 0.0)))
            else:
                values.append(_scaled(edges.by_source(np.add, ahead * weight, 0.0)))
        return values[::-1]

    @cached_property
    def _weight(self) -> list[Float64 | None]:
        """For each position the weight of each edge; None where nothing is scored."""
        total, layers = self._weights.total, zip(self._layers, self._row, strict=True)
        return [None if row < 0 else total[row].take(edges.kind) for edges, row in layers]

    @cached_property
    def _best(self) -> list[Float64]:
        """The same with the likeliest text that can follow, as logarithms."""
        values = [np.zeros(len(self._layers[-1].targets))]
        nothing = np.zeros(self._automaton.classes)
        for edges, row in zip(reversed(self._layers), reversed(self._row), strict=True):
            weight = nothing if row < 0 else self._weights.best[row]
            values.append(
                edges.by_source(np.maximum, weight.take(edges.kind) + values[-1].take(edges.target), -np.inf)
            )
        return values[::-1]


class _Drawing:
    """A text as it is drawn, row after row from left to right.

    Where nothing is cut off, a class is drawn and then a token of it: most classes have few tokens or many of little
    weight, and their sums are known for all rows at once.
    """

    def __init__(
        self, automaton: TokenAutomaton, weights: Weights, temperature: float, top_k: int, top_p: float, figures: bool
    ) -> None:
        count = len(weights.total)
        self._automaton, self._weights, self._figures = automaton, weights, figures
        self._sampling = temperature, top_k, top_p
        self._by_class = not top_k and top_p == 1
        self._walk = Walk(np.empty(count, np.int32), *np.zeros((3, count)))
        if not self._by_class:
            return
        begin, sizes = automaton.begin[:-1], np.diff(automaton.begin)
        best = (weights.best / temperature).astype(np.float32)
        log = weights.log / np.float32(temperature) - np.repeat(best, sizes, axis=1)
        self._weight = np.exp(log)  # relative to the largest of the class
        self._total = np.add.reduceat(self._weight, begin, axis=1).astype(np.float64)
        self._log_total = np.log(self._total) + best
        self._first = np.zeros(count, np.int32)  # the class of the likeliest token
        self._largest = np.zeros(count)  # the probability of that token
        if figures:  # entropy of the tokens of a class
            products = np.add.reduceat(self._weight * np.maximum(log, np.float32(_LEAST_LOG)), begin, axis=1)
            self._inside = np.log(self._total) - products / self._total

    def draw(self, row: int, edges: Edges, place: int, ahead: Float64, number: float, here: float) -> int:
        """The place that the token for `row` leads to.

        ahead    float64 [targets], the weight of what can follow
        number   what is drawn by; here: the probability of this place, which figures are times
        """
        temperature, top_k, top_p = self._sampling
        begin, end = edges.first[place], edges.first[place + 1]
        kinds, targets = edges.kind[begin:end], edges.target[begin:end]
        if self._by_class:
            with np.errstate(divide="ignore"):
                log = self._log_total[row, kinds] + np.log(ahead[targets]) / temperature
            shares = np.exp(log - log.max())
            sums = np.cumsum(shares)
            wanted = number * sums[-1]
            choice = min(int(sums.searchsorted(wanted, side="right")), int(np.flatnonzero(shares)[-1]))
            first, last = self._automaton.begin[kinds[choice]], self._automaton.begin[kinds[choice] + 1]
            weight = self._weight[row, first:last]
            rest = (wanted - (sums[choice] - shares[choice])) / shares[choice]
            inside = np.cumsum(weight, dtype=np.float64)
            token = min(int(inside.searchsorted(rest * inside[-1], side="right")), len(weight) - 1)
            self._walk.token[row] = self._automaton.ordered[first + token]
            if self._figures:
                shares /= sums[-1]
                self._note(row, kinds, shares, float(weight[token] / inside[-1] * shares[choice]), here)
            return int(targets[choice])
        target, at = self._automaton.open_tokens(edges, place)
        with np.errstate(divide="ignore"):
            value = np.log(ahead)
        kept, shares = shaped(self._weights.log[row, at] + value[target], temperature, top_k, top_p)
        choice = min(int(np.cumsum(shares).searchsorted(number, side="right")), len(shares) - 1)
        self._walk.token[row] = self._automaton.ordered[at[kept[choice]]]
        if self._figures:
            highest = np.partition(shares, len(shares) - 2)[-2:] if len(shares) > 1 else np.array([0.0, shares[0]])
            self._walk.probability[row] = shares[choice] * here
            self._walk.margin[row] = (highest[1] - highest[0]) * here
            self._walk.entropy[row] = -float(shares @ np.log(shares)) - float(np.log(here))
        return int(target[kept[choice]])

    def walk(self) -> Walk:
        """The whole text."""
        if self._by_class and self._figures:  # the second one may be of the same class
            inside = second_of(self._automaton, self._weight, self._first)
            self._walk.margin[:] = np.minimum(self._walk.margin, self._largest * (1 - inside))
        return self._walk

    def _note(self, row: int, kinds: Indices, shares: Float64, probability: float, here: float) -> None:
        """The figures of a row; margin: as if the class of the likeliest token had no other."""
        largest = shares / self._total[row, kinds] * here
        first = int(np.argmax(largest))
        self._first[row], self._largest[row] = kinds[first], largest[first]
        largest[first] = 0
        self._walk.probability[row] = probability * here
        self._walk.margin[row] = self._largest[row] - largest.max()
        entropy = shares @ self._inside[row, kinds] - shares @ np.log(np.maximum(shares, 1e-300))
        self._walk.entropy[row] = float(entropy) - float(np.log(here))


def second_of(automaton: TokenAutomaton, weight: Float32, kinds: npt.NDArray[np.integer[Any]]) -> Float64:
    """float64 [n]: the second largest of the weights [n, tokens] of one class in each row, 0 where it has one token."""
    second = np.zeros(len(kinds))
    for kind in np.unique(kinds).tolist():
        begin, end = automaton.begin[kind], automaton.begin[kind + 1]
        if end - begin > 1:
            rows = np.flatnonzero(kinds == kind)
            of_kind = weight[rows, begin:end]
            of_kind[np.arange(len(rows)), of_kind.argmax(axis=1)] = 0
            second[rows] = of_kind.max(axis=1)
    return second


def shaped(
    log: npt.NDArray[np.floating[Any]], temperature: float, top_k: int, top_p: float
) -> tuple[npt.NDArray[np.intp], Float64]:
    """What is drawn from, from unnormalised logarithms: temperature, the k likeliest, the nucleus, in this order.

    returns   the places that are left, the likeliest first where some were cut off, and their probabilities
    """
    shares: Float64 = np.exp((log - log.max()).astype(np.float64) / temperature)
    shares /= shares.sum()
    if not top_k and top_p == 1:
        kept = np.flatnonzero(shares)
        return kept, shares[kept]
    # what is below this makes up less than is outside the nucleus, so that it need not be ranked
    kept = np.flatnonzero(shares > ((1 - top_p) / len(shares) if not top_k and top_p < 1 else 0))
    kept = kept[np.argsort(-shares[kept], kind="stable")]
    shares = shares[kept]
    if top_k:
        shares = shares[:top_k] / shares[:top_k].sum()
    if top_p < 1:
        shares = shares[np.cumsum(shares) - shares <= top_p]
    return kept[: len(shares)], shares / shares.sum()


def _sums(places: Indices, values: Float64, count: int) -> Float64:
    """float64 [count]: the values of each place added up."""
    return np.bincount(places, values, count).astype(np.float64, copy=False)


def _scaled(values: Float64) -> Float64:
    """Divided by the largest; what is above zero stays so."""
    most = values.max() if len(values) else 0.0
    if most == 0:
        return values
    scaled: Float64 = values / most
    return np.maximum(scaled, _LEAST, out=scaled, where=values > 0)
