"""Constraints that only a parser can follow (recursive schemas, grammars): written from left to right.

llguidance keeps the parser. A matcher stands at the first position that is not known; its mask says what that one may
hold, and positions after it take what the model proposes as long as the matcher accepts one after the other. So a
decoder writes a run that begins at the first open position, at least that one. To be sure of an end, a whole text that
fits is kept at hand (completion.py): a token after which none is found is not written, the next of that text is.
Not here: regular languages, which keep parallel writing (regular.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..canvas import MASKED, Canvas, Commits, Float32
from ..decode.controls import wished_logits
from ..decode.decoder import NOTHING, Turn, uniform
from ..engine import Request
from ..errors import EngineError, OptionError
from .completion import Choices, complete
from .constraint import Constraint, sequence

if TYPE_CHECKING:
    from llguidance import LLMatcher

Float64 = npt.NDArray[np.float64]

_STREAM = 7  # of random numbers, see decode.decoder.uniform
_TRIES = 6  # tokens that are tried before the next token of the text at hand is taken


class Matching(Constraint):
    """matcher       at the beginning of the text; is never changed
    stop_tokens   end the text where it is whole
    swallows      a space at the beginning would be taken away, so that none is written there
    """

    def __init__(
        self, matcher: LLMatcher, choices: Choices, stop_tokens: Sequence[int], first: int, end: int, swallows: bool
    ) -> None:
        super().__init__(first, end, len(choices.usable))
        self._choices = choices
        self._stop_tokens = list(stop_tokens)
        self._start = matcher
        self._swallows = swallows
        self._plans: dict[tuple[int, ...], list[int]] = {}  # text -> tokens that complete it
        self._matchers: dict[tuple[int, ...], LLMatcher] = {(): matcher}

    def check(self, what: str) -> None:
        """Raise OptionError where no text is found that fits; what: the constraint, for the message."""
        room = self.end - self.first
        if self._swallows and self._start.compute_ff_bytes().startswith(b" "):
            raise OptionError(f"texts that match {what} begin with a space, which this vocabulary drops; leave it out")
        self._choices.mask(self._start)
        if self._start.is_error():
            raise OptionError(f"{what} is too complex for llguidance; simplify it")
        if self._plan((), self._start, [], room) is None:
            raise OptionError(
                f"no text of at most {room} tokens was found that matches {what}; allow more tokens or a shorter text"
            )

    def forced(self, canvas: Canvas) -> Commits:
        position = self.known(canvas)
        text = self._text(canvas, position)
        room = self.room(canvas, position)
        if not room or self._ended(text):
            return NOTHING
        matcher = self._matcher(text)
        tokens = matcher.compute_ff_tokens()[:room]
        if tokens and self._choices.usable[tokens].all():
            ahead = matcher.deep_copy()
            tokens = tokens[: ahead.try_consume_tokens(tokens)]
            after = (*text, *tokens)
            fits = self._plan(after, ahead, self._plans[text], self.end - self.first - len(after)) is not None
            return sequence(position, tokens) if tokens and fits else NOTHING
        if matcher.is_accepting() and not self._choices.mask(matcher).any():
            return sequence(position, self._stop_tokens[:1])
        return NOTHING

    def turn(self, turn: Turn, request: Request) -> Turn:
        masked, logits = turn.masked, wished_logits(request)
        proposal = replace(
            turn.proposal,
            token=turn.proposal.token.copy(),
            probability=np.where(masked, np.float32(0), turn.proposal.probability),
            margin=np.where(masked, np.float32(0), turn.proposal.margin),
            entropy=np.where(masked, np.float32(np.log(logits.shape[1])), turn.proposal.entropy),
        )
        numbers = uniform(request.seed, request.step, turn.rows, _STREAM)
        places = {row: place for place, row in enumerate(turn.rows.tolist()) if masked[place]}
        first = position = self.known(turn.canvas)
        text = self._text(turn.canvas, position)
        while position in places and not self._ended(text):
            place = places[position]
            shares, confidence = self._shares(text, request, logits[place])
            wanted = int(turn.proposal.token[place])
            if position == first:
                token = self._chosen(text, shares, None if request.temperature == 0 else float(numbers[place]))
            elif shares[wanted] > 0 and self._may_follow(text, wanted):
                token = wanted
            else:
                break
            highest = np.partition(confidence, -2)[-2:]
            proposal.token[place], proposal.probability[place] = token, max(float(confidence[token]), 1e-30)
            proposal.margin[place] = highest[1] - highest[0]
            proposal.entropy[place] = -np.sum(confidence * np.log(np.where(confidence > 0, confidence, 1)))
            text, position = (*text, token), position + 1
        return replace(turn, proposal=proposal)

    def rest(self, turn: Turn) -> Commits:
        """What was proposed as far as it fits, and the text that is at hand after it."""
        position = self.known(turn.canvas)
        proposed = dict(
            zip(turn.rows.tolist(), zip(turn.proposal.token, turn.proposal.probability, strict=True), strict=True)
        )
        text = self._text(turn.canvas, position)
        while position in proposed and proposed[position][1] > 0 and not self._ended(text):
            text, position = (*text, int(proposed[position][0])), position + 1
        plan = [] if self._ended(text) else [*self._plans[text], *self._stop_tokens[:1]]
        start = self.known(turn.canvas)
        return sequence(start, [*text[start - self.first :], *plan][: self.end - start])

    def kept(self, turn: Turn, commits: Commits) -> Commits:
        """The run of commits that begins at the first open position, with that one in any case."""
        chosen = set(commits.positions.tolist())
        run = [self.known(turn.canvas)]
        if run[0] not in turn.rows:
            raise EngineError("the first open position was not scored; this must not happen, please report it")
        while run[-1] + 1 in chosen and turn.canvas.state[run[-1] + 1] == MASKED:
            place = int(np.searchsorted(turn.rows, run[-1] + 1))
            if turn.proposal.probability[place] == 0:  # nothing was found that may stand there
                break
            run.append(run[-1] + 1)
        return turn.write(np.searchsorted(turn.rows, run))

    def _shares(self, text: tuple[int, ...], request: Request, logits: Float32) -> tuple[Float64, Float64]:
        """float64 [vocab] each: what the next token is drawn from, and the confidence in each."""
        matcher = self._matcher(text)
        mask = self._choices.mask(matcher)
        if self._swallows and not text:
            mask &= ~self._choices.spaced
        if matcher.is_accepting():
            mask[self._stop_tokens] = True
        allowed = np.flatnonzero(mask)
        if not len(allowed):  # it has become too complex; the text at hand still fits
            return np.zeros(len(mask)), np.zeros(len(mask))
        shares, confidence = np.zeros((2, len(mask)))
        places, found = _shaped(logits[allowed], 1.0, 0, 1.0)
        confidence[allowed[places]] = found
        if request.temperature == 0:
            return confidence, confidence
        places, found = _shaped(logits[allowed], request.temperature, request.top_k, request.top_p)
        shares[allowed[places]] = found
        return shares, shares if request.scores_from == "sampled" else confidence

    def _chosen(self, text: tuple[int, ...], shares: Float64, number: float | None) -> int:
        """A token drawn from `shares`, or the likeliest, after which a whole text still fits; else the next of the text
        at hand."""
        left = shares.copy()
        for _ in range(_TRIES):
            total = np.cumsum(left)
            if total[-1] <= 0:
                break
            token = int(np.argmax(left) if number is None else np.searchsorted(total, number * total[-1], side="right"))
            token = min(token, len(left) - 1)
            if left[token] > 0 and self._may_follow(text, token):
                return token
            left[token] = 0
        plan = self._plans[text]
        token = plan[0] if plan else self._stop_tokens[0]
        self._may_follow(text, token)
        return token

    def _may_follow(self, text: tuple[int, ...], token: int) -> bool:
        """Whether the text can be completed after `token`; then how is kept."""
        if token in self._stop_tokens:
            return self._matcher(text).is_accepting()
        ahead = self._matcher(text).deep_copy()
        room = self.end - self.first - len(text) - 1
        return ahead.consume_token(token) and self._plan((*text, token), ahead, self._plans[text], room) is not None

    def _plan(self, text: tuple[int, ...], matcher: LLMatcher, planned: list[int], room: int) -> list[int] | None:
        plan = complete(matcher, self._choices, planned, room)
        if plan is not None:
            self._plans[text], self._matchers[text] = plan, matcher
        return plan

    def _matcher(self, text: tuple[int, ...]) -> LLMatcher:
        """The matcher after `text`, which was written by this constraint; not to be changed."""
        found = self._matchers.get(text)
        if found is None:
            raise EngineError("a token breaks the constraint; this must not happen, please report it")
        return found

    def _text(self, canvas: Canvas, position: int) -> tuple[int, ...]:
        return tuple(canvas.tokens[self.first : position].tolist())

    def _ended(self, text: tuple[int, ...]) -> bool:
        return bool(text) and text[-1] in self._stop_tokens


def _shaped(
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
