"""A fake engine: the interface of localdiff.engine over a function that gives logits, so that policy is tested alone.

FakeSession draws tokens as the engine does, in plain numpy: temperature, top-k, nucleus, then a number keyed by (seed,
position, step). FakeEngine stands in for EngineModel. No text, no arithmetic of a network.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from localdiff.engine import ModelInfo, Proposal, Request, Timings
from localdiff.errors import Cancelled, EngineError

Logits = Callable[[Request], np.ndarray]  # of the whole canvas, [length, vocab]; row p predicts position p + shift


def point_mass(text: Sequence[int], vocab: int, shift: bool = False) -> Logits:
    """A model that is certain of one text."""

    def logits(request: Request) -> np.ndarray:
        rows = np.full((len(request.tokens), vocab), -50.0)
        wanted = np.resize(np.asarray(text), len(request.tokens))
        rows[np.arange(len(rows)), np.roll(wanted, -1) if shift else wanted] = 50.0
        return rows

    return logits


def random_table(vocab: int, spread: float = 2.0) -> Logits:
    """Other logits at every step and position, the same for the same canvas tokens."""

    def logits(request: Request) -> np.ndarray:
        key = [request.step, int(np.dot(request.tokens.astype(np.int64) + 1, np.arange(1, len(request.tokens) + 1)))]
        return np.random.default_rng(key).normal(0, spread, (len(request.tokens), vocab))

    return logits


def distribution(row: np.ndarray, request: Request) -> np.ndarray:
    """What a token is drawn from: temperature, top-k, nucleus, in this order."""
    scaled = np.exp((row - row.max()) / request.temperature)
    order = np.argsort(-scaled, kind="stable")
    kept = scaled[order] / scaled.sum()
    if request.top_k:
        kept[request.top_k :] = 0
    if request.top_p < 1:
        kept /= kept.sum()
        kept[np.cumsum(kept) - kept > request.top_p] = 0
    out = np.zeros_like(scaled)
    out[order] = kept / kept.sum()
    return out


def without_forbidden(row: np.ndarray, request: Request) -> np.ndarray:
    allowed = row.copy()
    if request.forbidden is not None:
        allowed[request.forbidden] = -np.inf
    return allowed


def adjusted(row: np.ndarray, request: Request, place: int, unconditional: np.ndarray | None = None) -> np.ndarray:
    """The logits that count for the scored position number `place`, but for what is forbidden."""
    row = row.copy() if unconditional is None else unconditional + (request.guidance + 1) * (row - unconditional)
    if request.repeated is not None:
        values = row[request.repeated]
        scaled = values / request.repetition_penalty, values * request.repetition_penalty
        row[request.repeated] = np.where(values > 0, *scaled)
    if request.bias_tokens is not None:
        row[request.bias_tokens] += request.bias
    if request.allowed is not None:
        bits = np.unpackbits(request.allowed[place].view(np.uint8), bitorder="little")
        row[bits[: len(row)] == 0] = -np.inf
    return row


def softmax(row: np.ndarray) -> np.ndarray:
    raw = np.exp(row - row.max())
    return raw / raw.sum()


def scored_from(row: np.ndarray, request: Request) -> np.ndarray:
    """The distribution that margin, entropy and alternatives are taken from."""
    allowed = without_forbidden(row, request)
    return distribution(allowed, request) if request.scores_from == "sampled" else softmax(allowed)


def draw(row: np.ndarray, request: Request, position: int) -> tuple[int, float, float]:
    """(token, its raw probability, its probability in the distribution it was drawn from)."""
    allowed = without_forbidden(row, request)
    raw = softmax(allowed)
    if request.temperature == 0:
        token = int(np.argmax(allowed))
        return token, raw[token], 1.0
    drawn_from = distribution(allowed, request)
    number = np.random.default_rng([request.seed, position, request.step]).random()
    token = min(int(np.searchsorted(np.cumsum(drawn_from), number, side="right")), int(np.flatnonzero(drawn_from)[-1]))
    return token, raw[token], drawn_from[token]


def wanted(row: np.ndarray, request: Request, token: int) -> tuple[int, float, float]:
    """The same of a token that is not drawn."""
    allowed = without_forbidden(row, request)
    return token, softmax(allowed)[token], scored_from(row, request)[token]


def unseen_logits(logits: Logits, request: Request, position: int, shift: bool) -> np.ndarray:
    """The logits for a position whose token nobody sees."""
    tokens = request.tokens.copy()
    tokens[position] = -1
    return logits(replace(request, tokens=tokens))[position - 1 if shift and position else position]


class FakeSession:
    """requests holds every call's requests, prompts what a length head read, so that tests can see what was asked."""

    def __init__(
        self, logits: Logits, slots: int = 1000, slot_length: int = 100_000, lengths: np.ndarray | None = None
    ) -> None:
        self._logits = logits
        self._lengths = lengths
        self.prompts: list[list[int]] = []
        self.slots = slots
        self.slot_length = slot_length
        self.requests: list[list[Request]] = []
        self.cancelled = False
        self.closed = False
        self.before_call: Callable[[], None] = lambda: None

    def propose(self, requests: Sequence[Request]) -> list[Proposal]:
        self._call(requests)
        return [self._propose(request) for request in requests]

    def logits(self, requests: Sequence[Request]) -> list[np.ndarray]:
        self._call(requests)
        return [self._scored(request).astype(np.float32) for request in requests]

    def lengths(self, tokens: np.ndarray, slot: int = 0) -> np.ndarray:
        self.prompts.append(tokens.tolist())
        assert self._lengths is not None
        return self._lengths

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = True

    def timings(self) -> Timings:
        return Timings(1, len(self.requests), 0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def _call(self, requests: Sequence[Request]) -> None:
        self.before_call()
        if self.cancelled:
            self.cancelled = False
            raise Cancelled("the call was cancelled")
        everything = [each for request in requests for each in (request, request.unconditional) if each is not None]
        slots = [request.slot for request in everything]
        if self.closed or len(set(slots)) != len(slots) or max(slots) >= self.slots:
            raise EngineError(f"slots {slots} do not fit a session of {self.slots}")
        for request in everything:
            if len(request.tokens) > self.slot_length or not len(request.score) or np.any(np.diff(request.score) <= 0):
                raise EngineError(f"a request of {len(request.tokens)} positions that scores {request.score}")
        self.requests.append(list(requests))

    def _scored(self, request: Request) -> np.ndarray:
        """The model's logits for the scored positions, then for the hidden ones."""
        rows = self._logits(request)[np.maximum(request.score - 1, 0) if request.logit_shift else request.score]
        hidden = [] if request.hidden is None else request.hidden.tolist()
        unseen = [unseen_logits(self._logits, request, p, request.logit_shift) for p in hidden]
        return np.concatenate([rows, unseen]) if unseen else rows

    def _propose(self, request: Request) -> Proposal:
        rows = self._scored(request)
        if request.logits is not None:
            request.logits[:] = rows
        beside = [None] * len(rows) if request.unconditional is None else list(self._scored(request.unconditional))
        rows = [adjusted(row, request, place, u) for place, (row, u) in enumerate(zip(rows, beside, strict=True))]
        hidden = [] if request.hidden is None else request.hidden.tolist()
        asked = list(zip(rows, [*request.score.tolist(), *hidden], strict=True))
        answers = [draw(row, request, position) for row, position in asked]
        answers[len(request.score) :] = [
            wanted(row, request, int(request.tokens[position])) for row, position in asked[len(request.score) :]
        ]
        column = 2 if request.scores_from == "sampled" else 1
        scored = np.array([scored_from(row, request) for row, _ in asked])
        ranked = -np.sort(-scored, axis=1)
        logs = np.log(np.where(scored > 0, scored, 1))
        return Proposal(
            np.array([answer[0] for answer in answers], np.int32),
            np.array([answer[column] for answer in answers], np.float32),
            (ranked[:, 0] - ranked[:, 1]).astype(np.float32),
            -(scored * logs).sum(axis=1).astype(np.float32),
            np.argsort(-scored, axis=1, kind="stable")[:, : request.alternatives].astype(np.int32),
            ranked[:, : request.alternatives].astype(np.float32),
        )


class FakeEngine:
    """An EngineModel whose sessions are FakeSessions; sessions lists them all. lengths: what its length head says."""

    def __init__(
        self, logits: Logits, vocab: int, context_length: int = 128, lengths: np.ndarray | None = None
    ) -> None:
        self._logits = logits
        self._lengths = lengths
        classes = 0 if lengths is None else len(lengths)
        self.info = ModelInfo(vocab, 1, 1, 1, 1, 1, 1, context_length, 1, 1, "fake", "none", lengths=classes)
        self.device = "cpu"
        self.sessions: list[FakeSession] = []
        self.closed = False

    def session(
        self, slots: int = 1, slot_length: int | None = None, threads: int | None = None, math: str = "exact"
    ) -> FakeSession:
        size = slot_length or self.info.context_length
        self.sessions.append(FakeSession(self._logits, slots, size, self._lengths))
        return self.sessions[-1]

    def close(self) -> None:
        self.closed = True
