"""Constraints that are finite automata: every decoder chooses where to write, the engine says what.

What the engine proposes (engine.Match; DINGO, arXiv:2505.23061) is one whole text for all positions that are scored, so
that any of its tokens may be written at once, wherever they stand. Tokens that leave no choice are written without
asking the model: where one token alone may follow, and where the next bytes are certain, written as the vocabulary
usually writes them. Not here: the tables (table.py), the dynamic programme, which is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from ..decode.decoder import NOTHING, Turn
from ..engine import Match, Proposal, Request, propose_logits
from ..errors import EngineError, OptionError
from .constraint import Constraint, sequence
from .table import FAR, TokenAutomaton

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

    def turn(self, turn: Turn, request: Request) -> Turn:
        masked = turn.masked
        if not masked.any():
            return turn
        position = self.known(turn.canvas)
        old = turn.proposal
        asked = replace(
            request if masked.all() else request.of_rows(np.flatnonzero(masked)),
            tokens=turn.canvas.tokens,
            score=turn.rows[masked],
            forbidden=None,
            positions=None,
            alternatives=old.alternative_token.shape[1],
            feedback="",
            match=self._match(turn.canvas, position, self._state(turn.canvas, position), int(turn.rows[masked][-1])),
        )
        (answers,) = propose_logits([asked], self.vocab)
        if masked.all():
            return replace(turn, proposal=answers)
        new = {each.name: getattr(old, each.name).copy() for each in fields(Proposal)}
        for name, values in new.items():
            values[masked] = getattr(answers, name)
        return replace(turn, proposal=Proposal(**new))

    def _match(self, canvas: Canvas, position: int, state: int, last: int = -1) -> Match:
        """What stands from `position`, where the automaton is in `state`, to the last position that matters: `last`, or
        one that is written, or the end where the text fills its place."""
        settled = position + np.flatnonzero(canvas.state[position : self.end] == COMMITTED)
        if self._automaton.stop_tokens:
            last = max(last, int(settled[-1]) if len(settled) else position - 1)
        else:
            last = self.end - 1
        tokens = np.full(last + 1 - position, -1, np.int32)
        tokens[settled - position] = canvas.tokens[settled]
        return Match(self._automaton.engine, position, state, tokens, self.end - last - 1)

    def _fits(self, canvas: Canvas, position: int, state: int) -> bool:
        """Whether a whole text is possible with the automaton in `state` before `position`."""
        if np.all(canvas.state[position : self.end] == MASKED):
            return bool(self._automaton.possible(self.end - position)[state])
        return self._match(canvas, position, state).possible

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
