"""The forward passes of a batch, each canvas with its cache policy: the way from the loop to the engine.

The loop asks for positions to be scored; here the policies choose the rows, the engine is called once for all, and what
it then holds is noted. An exact policy begins with what an earlier exact generation left in the slot, where that still
holds: prompts and conversations are not computed again. Not here: what policies choose.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

from ..canvas import MASKED, Canvas, Int32
from ..engine import Float32, Proposal, Request
from .drift import DriftMeter
from .state import CachePolicy, State, View, reach


class Engine(Protocol):
    """What a denoise step needs of engine.Session."""

    def propose(self, requests: Sequence[Request]) -> list[Proposal]: ...

    def logits(self, requests: Sequence[Request]) -> list[Float32]: ...


@dataclass(frozen=True)
class Answer:
    """The proposal for all positions that were to be scored, and how many rows were computed for it, those of a
    companion and of shadows included.

    verified   float32 [m] how probable the tokens are at the positions of request.hidden
    """

    proposal: Proposal
    rows: int
    verified: Float32


class CachedForward:
    """states: what the engine's slots hold, kept up to date; see SessionPool.states."""

    def __init__(self, engine: Engine, states: dict[int, State], meter: DriftMeter | None) -> None:
        self._engine = engine
        self._states = states
        self._meter = meter
        self._policies: dict[int, CachePolicy] = {}  # by slot
        self._rough: dict[int, State] = {}  # what approximations hold, which is nothing for others to begin with
        self._begun: set[int] = set()
        self._proposed: dict[int, Proposal] = {}  # slot -> the last proposal for every position, where policies narrow
        for slot in () if meter is None else meter.slots:
            states.pop(slot, None)  # it computes there without taking notes

    def begin(self, slot: int, policy: CachePolicy) -> None:
        """A canvas begins in a slot."""
        self._policies[slot] = policy
        if not policy.exact:
            self._states.pop(slot, None)

    def end(self, slot: int) -> None:
        """The canvas leaves its slot."""
        del self._policies[slot]
        self._rough.pop(slot, None)
        self._begun.discard(slot)
        self._proposed.pop(slot, None)

    def move(self, engine: Engine) -> None:
        """From now on the slots are those of another engine, which hold nothing."""
        self._engine = engine
        self._states.clear()
        self._rough.clear()

    def propose(
        self, requests: Sequence[Request], canvases: Sequence[Canvas], full: Collection[int] = ()
    ) -> list[Answer]:
        """One forward pass over all canvases. request.compute is chosen here: all rows in the slots of `full`."""
        pairs = zip(requests, canvases, strict=True)
        asked = [self._asked(request, canvas, request.slot in full) for request, canvas in pairs]
        everything = [each for one in asked for each in (one, one.unconditional) if each is not None]
        rows = {each.slot: _rows(each) for each in everything}
        notes = [(each, rows[each.slot], self._notes(each.slot)) for each in everything]
        for each, computed, states in notes:  # a call that fails leaves them unknown
            states[each.slot] = states[each.slot].without(computed)
        proposals = self._engine.propose(asked)
        for each, computed, states in notes:
            if each.positions is None:  # in another order places mean other positions next time
                state = states[each.slot].computed(computed, each.tokens, reach(each), each.step)
                moved = None if each.value_drift is None else each.value_drift[: len(computed)]
                states[each.slot] = state if moved is None else state.drifted(computed, moved)
        scored = [len(each.score) for each in asked]
        verified = [each.probability[count:] for each, count in zip(proposals, scored, strict=True)]
        proposals = [_first(each, count) for each, count in zip(proposals, scored, strict=True)]
        whole = [self._completed(*each) for each in zip(requests, asked, proposals, strict=True)]
        if self._meter is not None:
            self._meter.compare(self._engine, requests, asked, whole)
        beside = [0 if each.unconditional is None else len(rows[each.unconditional.slot]) for each in asked]
        counts = [len(rows[each.slot]) + more + _shadows(each) for each, more in zip(asked, beside, strict=True)]
        return [Answer(*each) for each in zip(whole, counts, verified, strict=True)]

    def _notes(self, slot: int) -> dict[int, State]:
        return self._states if self._policies[slot].exact else self._rough

    def _asked(self, request: Request, canvas: Canvas, full: bool) -> Request:
        """The request, and its companion, with the rows that the policy chose."""
        narrowed, beside = self._narrowed(request, canvas, full), request.unconditional
        if beside is None:
            return narrowed
        places = np.arange(len(beside.tokens), dtype=np.int32)
        shown = Canvas(beside.tokens, np.full(len(places), MASKED, np.uint8), canvas.mask_token, places)
        return replace(narrowed, unconditional=self._narrowed(beside, shown, full))

    def _narrowed(self, request: Request, canvas: Canvas, full: bool) -> Request:
        """The request with the rows that the policy chose, scoring those positions whose row is among them."""
        policy, slot, seen = self._policies[request.slot], request.slot, reach(request)
        states = self._notes(slot)
        begins = slot not in self._begun
        self._begun.add(slot)
        held = states.get(slot)
        if held is None or begins or len(held.token) != len(canvas):  # a canvas may grow and shrink
            states[slot] = (held or State.empty(0)).resumed(request.tokens, seen)
            self._proposed.pop(slot, None)
        source = np.maximum(request.score - 1, 0) if request.logit_shift else request.score
        last = self._proposed.get(slot)
        confidence = np.full(len(source), np.nan, np.float32) if last is None else last.probability[request.score]
        view = View(canvas, request.score, source, confidence, seen, states[slot], request.step)
        rows = None if full else policy.rows(view)
        if rows is None:
            narrowed = replace(request, compute=None)
        elif policy.narrows:
            scored = np.isin(source, rows)
            allowed = None if request.allowed is None else request.allowed[scored]
            narrowed = replace(request, compute=rows, score=request.score[scored], allowed=allowed)
        else:
            narrowed = replace(request, compute=np.union1d(rows, source).astype(np.int32))
        return _measured(narrowed, policy)

    def _completed(self, request: Request, asked: Request, proposal: Proposal) -> Proposal:
        """`proposal` with what was proposed earlier for the positions that were not scored this time."""
        if not self._policies[request.slot].narrows:
            return proposal
        last = self._proposed.get(request.slot) or _nothing(proposal, len(request.tokens))
        self._proposed[request.slot] = now = _taken(last, asked.score, proposal)
        return Proposal(*(getattr(now, field.name)[request.score] for field in fields(Proposal)))


def _rows(request: Request) -> Int32:
    """The positions that a call computes."""
    return np.arange(len(request.tokens), dtype=np.int32) if request.compute is None else request.compute


def _measured(request: Request, policy: CachePolicy) -> Request:
    """The request, asking for the drift of the values where the policy looks at it."""
    if not policy.measures:
        return request
    return replace(request, value_drift=np.empty(len(_rows(request)) + _shadows(request), np.float32))


def _shadows(request: Request) -> int:
    return 0 if request.hidden is None else len(request.hidden)


def _first(proposal: Proposal, count: int) -> Proposal:
    """The answers for the first `count` positions."""
    return Proposal(*(getattr(proposal, field.name)[:count] for field in fields(Proposal)))


def _nothing(like: Proposal, length: int) -> Proposal:
    """No proposal for `length` positions: probabilities are NaN."""
    arrays = (getattr(like, field.name) for field in fields(Proposal))
    return Proposal(*(np.full((length, *a.shape[1:]), -1 if a.dtype.kind == "i" else np.nan, a.dtype) for a in arrays))


def _taken(last: Proposal, positions: Int32, proposal: Proposal) -> Proposal:
    """`last` with a proposal for some positions in place of what stood there."""
    now = Proposal(*(getattr(last, field.name).copy() for field in fields(Proposal)))
    for field in fields(Proposal):
        getattr(now, field.name)[positions] = getattr(proposal, field.name)
    return now
