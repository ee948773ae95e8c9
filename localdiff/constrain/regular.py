"""Constraints that are finite automata: every decoder chooses where to write, the lattice says what.

The walk through the lattice (lattice.py) is one whole text for all positions that are scored, so that any of its tokens
may be written at once, wherever they stand. Tokens that leave no choice are written without asking the model: where one
token alone may follow, and where the next bytes are certain, written as the vocabulary usually writes them. Not here:
the tables (table.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Float32, Int32
from ..decode.decoder import NO_POSITIONS, NOTHING, Bools, Turn, uniform
from ..engine import Proposal, Request
from ..errors import EngineError, OptionError
from .constraint import Constraint, sequence
from .lattice import Lattice, Walk, Weights
from .table import FAR, TokenAutomaton

_STREAM = 7  # of random numbers, see decode.decoder.uniform
_RUN = 256  # bytes that are looked ahead for what is certain


class Regular(Constraint):
    """encode   tokens of a text that follows other text"""

    def __init__(self, automaton: TokenAutomaton, encode: Callable[[str], list[int]], first: int, end: int) -> None:
        super().__init__(first, end, len(automaton.class_of))
        self._automaton = automaton
        self._encode = encode
        self._runs: dict[int, list[int]] = {}
        self._seen: tuple[Int32, int] = (np.empty(0, np.int32), 0)  # known tokens, and the state after them

    def check(self, what: str) -> None:
        """Raise OptionError where no text fits; what: the constraint, for the message."""
        least, room = int(self._automaton.distance[0]), self.end - self.first
        if least >= FAR:
            raise OptionError(f"no text that this vocabulary can write matches {what}; change it")
        if least > room:
            raise OptionError(
                f"the shortest text that matches {what} has {least} tokens, but there is room for {room}; "
                "allow more tokens or a shorter text"
            )
        if not self._automaton.possible(room)[0]:
            raise OptionError(f"no text of exactly {room} tokens matches {what}; give the hole another length")

    def forced(self, canvas: Canvas) -> Commits:
        position = self.known(canvas)
        room, state = self.room(canvas, position), self._state(canvas, position)
        tokens: list[int] = []
        while len(tokens) < room and state != self._automaton.ended:
            only = self._automaton.only(state)
            found = [only] if only is not None else []
            found = found or self._certain(canvas, state, position + len(tokens), room - len(tokens))
            if not found:
                break
            tokens += found
            state = self._after(state, found)
        return sequence(position, tokens) if tokens else NOTHING

    def turn(self, turn: Turn, request: Request, logits: Float32) -> Turn:
        masked = turn.masked
        rows = turn.rows[masked]
        if not len(rows):
            return turn
        automaton = self._automaton
        weights = Weights.of(automaton, logits[masked])
        position = self.known(turn.canvas)
        lattice = self._lattice(turn.canvas, position, self._state(turn.canvas, position), rows, weights)
        if not lattice.possible:
            raise EngineError("no text that matches the constraint is left; this must not happen, please report it")
        if request.temperature == 0:
            answers = lattice.given_match(lattice.likeliest())
        else:
            numbers = uniform(request.seed, request.step, rows, _STREAM)
            raw = request.scores_from == "raw"
            answers = lattice.drawn(request.temperature, request.top_k, request.top_p, numbers, figures=not raw)
            if raw:
                answers = lattice.given_match(answers.token)
        return _answered(turn, masked, answers, lattice)

    def _lattice(self, canvas: Canvas, position: int, state: int, rows: Int32, weights: Weights) -> Lattice:
        """From `position`, where the automaton is in `state`, to the last position that matters."""
        states = canvas.state[position : self.end]
        settled = np.flatnonzero(states == COMMITTED)
        last = max(int(settled[-1]) if len(settled) else -1, int(rows[-1]) - position if len(rows) else -1)
        known = np.full(last + 1, -1, np.int32)
        settled = settled[settled <= last]
        known[settled] = self._automaton.class_of[canvas.tokens[position : self.end][settled]]
        row = np.full(last + 1, -1, np.int32)
        row[rows - position] = np.arange(len(rows), dtype=np.int32)
        return Lattice(self._automaton, state, known, row, len(states) - last - 1, weights)

    def _fits(self, canvas: Canvas, position: int, state: int) -> bool:
        """Whether a whole text is possible with the automaton in `state` before `position`."""
        if np.all(canvas.state[position : self.end] == MASKED):
            return bool(self._automaton.possible(self.end - position)[state])
        nothing = Weights.of(self._automaton, np.empty((0, self.vocab), np.float32))
        return self._lattice(canvas, position, state, NO_POSITIONS, nothing).possible

    def _certain(self, canvas: Canvas, state: int, position: int, room: int) -> list[int]:
        """The tokens of the bytes that must come next, as far as they leave a whole text possible."""
        if state not in self._runs:
            self._runs[state] = self._run(state)
        tokens = self._runs[state][:room]
        after = self._after(state, tokens)
        return tokens if tokens and after >= 0 and self._fits(canvas, position + len(tokens), after) else []

    def _run(self, state: int) -> list[int]:
        """The tokens of the bytes that must come next, without the last one, since what follows may be part of it."""
        run, whole = self._automaton.of_bytes.forced(state, _RUN)
        try:
            tokens = self._encode(run.decode()) if run else []
        except (UnicodeDecodeError, OptionError):
            return []
        return tokens if whole else tokens[:-1]

    def _after(self, state: int, tokens: list[int]) -> int:
        """The state after some tokens, -1 where they are not allowed."""
        for token in tokens:
            state = self._automaton.step(state, token)
            if state < 0:
                break
        return state

    def _state(self, canvas: Canvas, position: int) -> int:
        """The state before `position`, up to which everything is known."""
        tokens, state = self._seen
        text = canvas.tokens[self.first : position]
        if len(tokens) > len(text) or not np.array_equal(tokens, text[: len(tokens)]):
            tokens, state = text[:0], 0
        state = self._after(state, text[len(tokens) :].tolist())
        if state < 0:
            raise EngineError("a token breaks the constraint; this must not happen, please report it")
        self._seen = text.copy(), state
        return state


def _answered(turn: Turn, masked: Bools, answers: Walk, lattice: Lattice) -> Turn:
    """The turn with these answers at its masked rows."""
    old = turn.proposal
    new = {each.name: getattr(old, each.name).copy() for each in fields(Proposal)}
    for name in ("token", "probability", "margin", "entropy"):
        new[name][masked] = getattr(answers, name)
    count = old.alternative_token.shape[1]
    if count:
        new["alternative_token"][masked], new["alternative_probability"][masked] = lattice.ranked(count)
    return replace(turn, proposal=Proposal(**new))
