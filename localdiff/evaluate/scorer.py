"""Likelihoods of texts on the engine: exact for left-to-right models, bounds for diffusion models, for those in blocks
too.

Many canvases go through the engine in few calls. Of a whole canvas every draw is a canvas of its own. A model in blocks
(block_causal attention, arXiv:2503.09573) is a product over blocks, each given those before it without noise:
    -log p(x) <= sum_b E_k [ (N_b / k) * sum of -log p(x_n | x_k of block b, x before b) over the masked n of block b ]
Keys and values of the blocks before stay in the engine, so that a draw computes the rows of one block only. Not here:
what is masked (noise.py), text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from ..canvas import Int32
from ..engine import Float32, Request, Session
from ..errors import OptionError
from .noise import ESTIMATORS, Draw, Estimate, Float64, add, blocks, combine, generator
from .subject import Subject
from .tasks import BOUND

ROWS = 1024  # that a session is made for, where a canvas is not longer
LOGITS = 1 << 25  # that one call gives back, 128 MiB, where one row is not longer

Tick = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True)
class Passage:
    """A text whose likelihood is asked for.

    tokens   int32 [length]
    given    how many of them, at the start, are context: not masked, not scored
    key      of its noise, beside the seed
    """

    tokens: Int32
    given: int
    key: int


@dataclass(frozen=True)
class _Scored:
    """A canvas, and the tokens that are the answer at the positions it scores."""

    request: Request
    targets: Int32


class Scorer:
    """Asks a model for likelihoods. tick is told of every call of the engine."""

    def __init__(self, subject: Subject, tick: Tick | None = None) -> None:
        if subject.spec.process != "absorbing":
            raise OptionError(
                f"the noise process of the model is {subject.spec.process}, but likelihoods are known for absorbing "
                "noise (mask tokens) only; measure its answers instead, --task gsm8k for example"
            )
        self._subject = subject
        self._spec = subject.spec
        self._tick = tick or (lambda done, total: None)
        self.in_blocks = subject.spec.attention == "block_causal" and not subject.exact

    @property
    def first(self) -> int:
        """How many tokens at the start of a text no row predicts."""
        return 1 if self._subject.exact or self._spec.logit_shift else 0

    def likelihoods(
        self, passages: Sequence[Passage], draws: int, seed: int, estimator: str = BOUND
    ) -> list[Estimate]:
        """-log p of the tokens of each passage from `given` on, given those before.

        draws       noise draws for each text, or for each of its blocks
        estimator   one of noise.ESTIMATORS
        """
        for passage in passages:
            if not self.first <= passage.given < len(passage.tokens) <= self._subject.model.canvas_limit:
                raise OptionError(
                    f"a text has {len(passage.tokens)} tokens and {passage.given} of them are given, expected "
                    f"{self.first} or more, and one to score, on a canvas of {self._subject.model.canvas_limit}"
                )
        if self._subject.exact:
            whole = [Draw(np.arange(each.given, len(each.tokens), dtype=np.int32), 1.0) for each in passages]
            found = self._score([self._next_tokens(*pair) for pair in zip(passages, whole, strict=True)])
            return [Estimate(float(nats.sum()), len(nats)) for nats in found]
        if self.in_blocks:
            if estimator != BOUND:
                raise OptionError(f"--estimator {estimator} is for models without blocks; leave it out")
            return self._in_blocks(passages, draws, seed)
        return self._on_canvases(passages, draws, seed, estimator)

    # ---- whole canvases ----

    def _on_canvases(self, passages: Sequence[Passage], draws: int, seed: int, estimator: str) -> list[Estimate]:
        drawn = [
            ESTIMATORS[estimator](each.given, len(each.tokens), draws, generator(seed, each.key)) for each in passages
        ]
        asked = [
            self._masked(passage, draw)
            for passage, of_one in zip(passages, drawn, strict=True)
            for draw in of_one
            if len(draw.hidden)
        ]
        found = iter(self._score(asked))
        nothing = np.zeros(0)
        return [
            combine(
                of_one, [next(found) if len(draw.hidden) else nothing for draw in of_one],
                len(passage.tokens) - passage.given,
            )
            for passage, of_one in zip(passages, drawn, strict=True)
        ]  # fmt: skip

    def _next_tokens(self, passage: Passage, draw: Draw) -> _Scored:
        request = Request(passage.tokens, draw.hidden, attention="causal", logit_shift=True)
        return _Scored(request, passage.tokens[draw.hidden])

    def _masked(self, passage: Passage, draw: Draw) -> _Scored:
        tokens, spec = passage.tokens.copy(), self._spec
        tokens[draw.hidden] = spec.mask_token
        if spec.attention == "causal":  # masks are read after everything that is known (arXiv:2512.22737)
            known = np.setdiff1d(np.arange(len(tokens), dtype=np.int32), draw.hidden)
            order = np.concatenate([known, draw.hidden])
            places = np.arange(len(known), len(tokens), dtype=np.int32)
            request = Request(tokens[order], places, attention="causal", positions=order)
        else:
            request = Request(
                tokens, draw.hidden, attention=spec.attention, prefix=passage.given, logit_shift=spec.logit_shift
            )
        return _Scored(request, passage.tokens[draw.hidden])

    def _score(self, asked: Sequence[_Scored]) -> list[Float64]:
        """-log p of the targets of each canvas; as few calls as ROWS and LOGITS allow."""
        if not asked:
            return []
        at_once = max(1, LOGITS // self._subject.model.info.vocab)
        longest = max(len(each.request.tokens) for each in asked)
        pieces = [(index, part) for index, each in enumerate(asked) for part in _pieces(each, at_once)]
        calls = list(_calls(pieces, max(1, ROWS // longest), at_once))
        found: list[list[Float64]] = [[] for _ in asked]
        with closing(self._subject.model.session(max(map(len, calls)), longest)) as session:
            for done, call in enumerate(calls, 1):
                nats = _negative_logs(session, [part for _, part in call])
                for (index, _), each in zip(call, nats, strict=True):
                    found[index].append(each)
                self._tick(done, len(calls))
        return [np.concatenate(each) for each in found]

    # ---- models in blocks ----

    def _in_blocks(self, passages: Sequence[Passage], draws: int, seed: int) -> list[Estimate]:
        longest = max(len(each.tokens) for each in passages)
        slots = max(1, ROWS // longest)
        groups = [passages[first : first + slots] for first in range(0, len(passages), slots)]
        found: list[Estimate] = []
        with closing(self._subject.model.session(min(slots, len(passages)), longest)) as session:
            for done, group in enumerate(groups, 1):
                found += self._group_in_blocks(session, group, draws, seed)
                self._tick(done, len(groups))
        return found

    def _group_in_blocks(self, session: Session, group: Sequence[Passage], draws: int, seed: int) -> list[Estimate]:
        """One passage in each slot, all at the same draw of the same block, counted from where they begin."""
        cuts = [blocks(each.given, len(each.tokens), self._spec.block_length) for each in group]
        drawn = [
            [
                ESTIMATORS[BOUND](start, end, draws, generator(seed, each.key, part))
                for part, (start, end) in enumerate(cut)
            ]
            for each, cut in zip(group, cuts, strict=True)
        ]
        nats: list[list[Float64]] = [[] for _ in group]
        walks = [
            self._walk(slot, *of_one) for slot, of_one in enumerate(zip(group, cuts, drawn, strict=True))
        ]
        for moment in zip_longest(*walks):
            asked = [each for each in moment if each is not None]
            for each, answer in zip(asked, _negative_logs(session, asked), strict=True):
                nats[each.request.slot].append(answer)
        estimates = []
        for slot, (cut, of_one) in enumerate(zip(cuts, drawn, strict=True)):
            parts = [
                combine(in_block, nats[slot][draws * part : draws * (part + 1)], end - start)
                for part, ((start, end), in_block) in enumerate(zip(cut, of_one, strict=True))
            ]
            estimates.append(add(parts))
        return estimates

    def _walk(
        self, slot: int, passage: Passage, cut: Sequence[tuple[int, int]], drawn: Sequence[Sequence[Draw]]
    ) -> Iterator[_Scored]:
        """The draws of every block in turn, each with the rows that the engine does not hold as they must be."""
        spec = self._spec
        stale = 0  # rows from here on were computed with noise, or not yet
        for (start, end), in_block in zip(cut, drawn, strict=True):
            own = start // spec.block_length * spec.block_length
            for draw in in_block:
                tokens = passage.tokens[:end].copy()
                tokens[draw.hidden] = spec.mask_token
                first = min(stale, own, start - 1 if spec.logit_shift else own)
                yield _Scored(
                    Request(
                        tokens,
                        draw.hidden,
                        slot=slot,
                        attention=spec.attention,
                        block_length=spec.block_length,
                        compute=np.arange(first, end, dtype=np.int32),
                        logit_shift=spec.logit_shift,
                    ),
                    passage.tokens[draw.hidden],
                )
                stale = own


def negative_log(logits: Float32, targets: Int32) -> Float64:
    """-log softmax(logits)[target] of each row; logits float32 [n, vocab], targets int32 [n], returns float64 [n]."""
    top = logits.max(axis=1)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64) - top
    nats: Float64 = np.log(total) - chosen
    return nats


def _negative_logs(session: Session, asked: Sequence[_Scored]) -> list[Float64]:
    logits = session.logits([each.request for each in asked])
    return [negative_log(rows, each.targets) for rows, each in zip(logits, asked, strict=True)]


def _pieces(scored: _Scored, at_once: int) -> Iterator[_Scored]:
    """The same canvas, several times where it scores more than `at_once` positions."""
    for first in range(0, len(scored.targets), at_once):
        part = slice(first, first + at_once)
        yield _Scored(replace(scored.request, score=scored.request.score[part]), scored.targets[part])


def _calls(pieces: Sequence[tuple[int, _Scored]], slots: int, at_once: int) -> Iterator[list[tuple[int, _Scored]]]:
    """Canvases in the order given, as many as fit into a call, each in a slot of its own."""
    call: list[tuple[int, _Scored]] = []
    scored = 0
    for index, piece in pieces:
        if len(call) == slots or (call and scored + len(piece.targets) > at_once):
            yield call
            call, scored = [], 0
        call.append((index, replace(piece, request=replace(piece.request, slot=len(call)))))
        scored += len(piece.targets)
    if call:
        yield call
