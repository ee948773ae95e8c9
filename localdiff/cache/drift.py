"""Drift: how far a cached generation is from the exact one, measured step by step on the canvases that it goes through.

Beside every pass the whole canvas is computed in a slot of its own. Two figures: the share of written tokens for which
the exact pass proposes another one (drawn with the same random numbers), and the total variation distance of the two
distributions of a scored row, before temperature, top-k and top-p: the probability that lies elsewhere. The canvases
are the cached run's, so an early difference is counted once and not again in everything that follows from it. Proposals
that a policy keeps from earlier steps are in the first figure, not in the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..canvas import COMMITTED, Commits, Int32
from ..engine import Float32, Proposal, Request

if TYPE_CHECKING:
    from .forward import Engine


@dataclass
class Drift:
    """Of one canvas; written: tokens compared, differing: of them, distances: one per scored row."""

    written: int = 0
    differing: int = 0
    distances: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, float | int]:
        """For people: tokens is a share; probability the mean distance and probability_max the largest, 0 to 1."""
        return {
            "tokens": self.differing / self.written if self.written else 0.0,
            "probability": float(np.mean(self.distances)) if self.distances else 0.0,
            "probability_max": max(self.distances, default=0.0),
            "compared_tokens": self.written,
            "compared_rows": len(self.distances),
        }


class DriftMeter:
    """For `canvases` canvases in the slots from 0; needs as many slots behind them."""

    def __init__(self, canvases: int) -> None:
        self.slots = range(canvases, 2 * canvases)
        self.drift = [Drift() for _ in range(canvases)]
        self._last: dict[int, tuple[Int32, Proposal, Proposal]] = {}

    def compare(
        self, engine: Engine, requests: Sequence[Request], asked: Sequence[Request], proposals: Sequence[Proposal]
    ) -> None:
        """Compute exactly what was just computed with caches; asked: what the engine was asked for, of requests."""
        beside = [_beside(request, self.slots.start) for request in requests]
        for request, ours, exact in zip(requests, proposals, engine.propose(beside), strict=True):
            self._last[request.slot] = (request.score, ours, exact)
        # the rows are computed a second time, to the same values; what they measured the first time stands
        cached = engine.logits([replace(each, value_drift=None, logits=None) for each in asked])
        whole = engine.logits([_beside(each, self.slots.start) for each in asked])
        for each, ours_logits, exact_logits in zip(asked, cached, whole, strict=True):
            distance = np.abs(_softmax(ours_logits, each) - _softmax(exact_logits, each)).sum(axis=1) / 2
            self.drift[each.slot].distances += distance.tolist()

    def written(self, canvas: int, commits: Commits) -> None:
        """`commits` were chosen from the last proposals."""
        score, ours, exact = self._last[canvas]
        kept = commits.positions if commits.state is None else commits.positions[commits.state == COMMITTED]
        places = np.flatnonzero(np.isin(score, kept))
        self.drift[canvas].written += len(places)
        self.drift[canvas].differing += int(np.sum(ours.token[places] != exact.token[places]))


def _beside(request: Request, offset: int) -> Request:
    return replace(request, slot=request.slot + offset, compute=None, value_drift=None, logits=None)


def _softmax(logits: Float32, request: Request) -> npt.NDArray[np.float64]:
    """Probabilities [n, vocab] without the forbidden tokens."""
    allowed = logits.astype(np.float64)
    if request.forbidden is not None:
        allowed[:, request.forbidden] = -np.inf
    allowed = np.exp(allowed - allowed.max(axis=1, keepdims=True))
    share: npt.NDArray[np.float64] = allowed / allowed.sum(axis=1, keepdims=True)
    return share
