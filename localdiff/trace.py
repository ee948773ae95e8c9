"""Trace: what every denoise step of a text changed, so that its making can be shown again without a model.

A trace is the canvas before the first step and the commits of every step; a canvas is immutable, so that replaying is
applying them one after the other. As JSON: {"mask_token", "tokens", "state", "steps": [{"positions", "tokens",
"scores"?, "state"?, "copies"?, "added"?}]}, the fields of canvas.Commits without those that say nothing; a score of
minus infinity (ranked last) is null. Not here: text; why a decoder chose what it did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canvas import Canvas, Commits
from .errors import OptionError

_TYPES = {"positions": np.int32, "tokens": np.int32, "scores": np.float32, "state": np.uint8, "copies": np.int32}


@dataclass(frozen=True)
class Trace:
    """first: the canvas that the first forward pass saw; steps: what each pass led to."""

    first: Canvas
    steps: tuple[Commits, ...]

    def canvases(self) -> Iterator[Canvas]:
        """The canvas after every step; ValueError where the steps are not of this canvas."""
        canvas = self.first
        for commits in self.steps:
            canvas = canvas.apply(commits)
            yield canvas

    def to_json(self) -> str:
        first = self.first
        return json.dumps(
            {
                "mask_token": first.mask_token,
                "tokens": first.tokens.tolist(),
                "state": first.state.tolist(),
                "steps": [_plain(commits) for commits in self.steps],
            },
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> Trace:
        """The trace that to_json() wrote; OptionError for anything else."""
        try:
            found = json.loads(text)
            first = Canvas.begun(found["tokens"], found["state"], found["mask_token"])
            return Trace(first, tuple(_commits(step) for step in found["steps"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"the trace cannot be read ({error!r}); expected what Trace.to_json() wrote") from None


def _plain(commits: Commits) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name in _TYPES:
        values = getattr(commits, name)
        if values is not None:
            plain[name] = [value if math.isfinite(value) else None for value in values.tolist()]
    return plain | ({"added": commits.added} if commits.added else {})


def _commits(step: dict[str, Any]) -> Commits:
    arrays = {
        name: np.array([-math.inf if value is None else value for value in step[name]], kind)
        for name, kind in _TYPES.items()
        if name in step
    }
    return Commits(**arrays, added=int(step.get("added", 0)))
