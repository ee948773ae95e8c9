"""The denoise loop, and nothing but the loop.

denoise() takes a batch of jobs, one canvas each, of any lengths. Every round asks the decoders which positions they
want scored, makes one call of the engine for all canvases that are not finished, lets each decoder choose what to
write, and yields one Step per canvas. A canvas is finished when nothing is masked, or when its text has ended: a stop
token is written and everything before it is settled. Not here: text (generation.py), policy (the decoders).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from ..engine import Proposal, Request
from .cache import CachePolicy
from .decoder import Decoder
from .table import Settings


class Engine(Protocol):
    """What the loop needs of engine.Session."""

    def propose(self, requests: Sequence[Request]) -> list[Proposal]: ...


@dataclass(frozen=True)
class Job:
    """One canvas and how to denoise it.

    attention, attention_block, prefix, logit_shift   as the model's record says (engine.Request)
    forbidden     int32 tokens that are never proposed, the mask token among them
    stop_tokens   tokens that end the text; looked for from position `answer` on
    """

    canvas: Canvas
    decoder: Decoder
    cache: CachePolicy
    settings: Settings
    seed: int
    attention: str
    attention_block: int
    prefix: int
    logit_shift: bool
    forbidden: Int32
    stop_tokens: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Step:
    """What one denoise step did to the canvas of job `index`.

    canvas        after the commits
    stop_reason   None while it goes on, "stop" at a stop token, "length" where every position is filled
    """

    index: int
    step: int
    canvas: Canvas
    commits: Commits
    stop_reason: str | None


def denoise(engine: Engine, jobs: Sequence[Job]) -> Iterator[Step]:
    """Denoise all canvases; job i uses slot i of the engine. Raises what the engine raises, Cancelled for example."""
    canvases = [job.canvas for job in jobs]
    live = [index for index, canvas in enumerate(canvases) if len(canvas.masked)]
    step = 0
    while live:
        step += 1
        requests = [_request(jobs[index], canvases[index], index, step) for index in live]
        proposals = engine.propose(requests)
        going_on = []
        for index, request, proposal in zip(live, requests, proposals, strict=True):
            commits = jobs[index].decoder.step(canvases[index], request.score, proposal, step)
            canvases[index] = canvases[index].apply(commits)
            stop_reason = _stop_reason(jobs[index], canvases[index])
            if stop_reason is None:
                going_on.append(index)
            yield Step(index, step, canvases[index], commits, stop_reason)
        live = going_on


def first_stop(canvas: Canvas, answer: int, stop_tokens: Sequence[int]) -> int:
    """The position of the first stop token written at or after `answer`; the canvas's length where there is none."""
    written = np.isin(canvas.tokens[answer:], stop_tokens) & (canvas.state[answer:] == COMMITTED)
    return answer + int(np.argmax(written)) if written.any() else len(canvas)


def _stop_reason(job: Job, canvas: Canvas) -> str | None:
    end = first_stop(canvas, job.answer, job.stop_tokens)
    if np.any(canvas.state[:end] == MASKED):
        return None
    return "length" if end == len(canvas) else "stop"


def _request(job: Job, canvas: Canvas, slot: int, step: int) -> Request:
    settings = job.settings
    return Request(
        tokens=canvas.tokens,
        score=job.decoder.plan(canvas),
        slot=slot,
        attention=job.attention,
        block_length=job.attention_block,
        prefix=job.prefix,
        compute=job.cache.rows(canvas),
        logit_shift=job.logit_shift,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=job.seed,
        step=step,
        # at temperature 0 the drawn-from distribution is a single token and could not rank anything
        scores_from=job.decoder.scores_from if settings.temperature > 0 else "raw",
        forbidden=job.forbidden,
    )
