"""What the references of decoders share: the fake model as a function of a position, and lists of positions.

With an equal score the leftmost position counts as surer, as Python's sort is stable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from fake import Logits, distribution, draw, softmax, without_forbidden

from localdiff.decode.decoder import uniform
from localdiff.decode.loop import Job
from localdiff.decode.table import Settings
from localdiff.engine import Request

State = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Answer:
    """Of one position: token, its probability p, and the distribution that p is from."""

    token: int
    p: float
    probabilities: np.ndarray

    @property
    def entropy(self) -> float:
        return float(np.float32(-sum(p * math.log(p) for p in self.probabilities if p > 0)))

    @property
    def margin(self) -> float:
        first, second = sorted(self.probabilities, reverse=True)[:2]
        return float(np.float32(first - second))


class Oracle:
    """The fake model as a function of a position."""

    def __init__(self, job: Job, logits: Logits, vocab: int) -> None:
        self.job, self.logits, self.vocab = job, logits, vocab
        self.mask = job.canvas.mask_token
        self.forbidden = set(job.forbidden.tolist())

    def ask(
        self, x: list[int], step: int, sampled: bool = True, temperature: float | None = None,
        forbidden: set[int] | None = None,
    ) -> Callable[[int], Answer]:  # fmt: skip
        chosen = self.job.settings
        request = Request(
            np.array(x, np.int32), np.arange(len(x)), seed=self.job.seed, step=step,
            temperature=chosen.temperature if temperature is None else temperature, top_k=chosen.top_k,
            top_p=chosen.top_p,
            forbidden=np.array(sorted(self.forbidden | (forbidden or set())), np.int32),
        )  # fmt: skip
        rows = self.logits(request)
        shift = 1 if self.job.logit_shift else 0
        known: dict[int, Answer] = {}

        def answer(i: int) -> Answer:
            if i not in known:
                row = rows[max(0, i - shift)]
                token, raw, drawn = draw(row, request, i)
                tempered = sampled and request.temperature > 0
                allowed = without_forbidden(row, request)
                scores = distribution(allowed, request) if tempered else softmax(allowed)
                known[i] = Answer(token, float(np.float32(drawn if tempered else raw)), scores)
            return known[i]

        return answer

    def unseen(self, x: list[int], step: int, i: int) -> float:
        """How probable the token at i is for a model that does not see it."""
        answer = self.ask([*x[:i], -1, *x[i + 1 :]], step, sampled=False)(i)
        return float(np.float32(answer.probabilities[x[i]]))

    def uniform(self, step: int, i: int) -> float:
        return float(uniform(self.job.seed, step, np.array([i], np.int32))[0])

    def gumbel(self, step: int, i: int) -> float:
        return -math.log(-math.log(self.uniform(step, i)))

    def noise(self, step: int, i: int) -> int:
        allowed = [token for token in range(self.vocab) if token not in self.forbidden]
        return allowed[int(self.uniform(step, i) * len(allowed))]


def best(positions: list[int], score: Callable[[int], float], count: int) -> list[int]:
    return sorted(positions, key=lambda i: -score(i))[:count]


def where(masked: list[bool]) -> list[int]:
    return [i for i, unknown in enumerate(masked) if unknown]


def cut(holes: list[int], s: Settings) -> list[list[int]]:
    size = s.block_length
    assert size is not None
    if s.aligned:
        return [[i for i in holes if i // size == n] for n in sorted({i // size for i in holes})]
    return [holes[n : n + size] for n in range(0, len(holes), size)]


def write(x: list[int], masked: list[bool], a: Callable[[int], Answer], chosen: list[int]) -> State:
    for i in chosen:
        x[i], masked[i] = a(i).token, False
    return list(x), list(masked)


def score_of(a: Callable[[int], Answer], order: str | None) -> Callable[[int], float]:
    if order == "entropy":
        return lambda i: -a(i).entropy
    return (lambda i: a(i).margin) if order == "margin" else (lambda i: a(i).p)
