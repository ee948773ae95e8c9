"""The denoise loop, and nothing but the loop.

denoise() takes a batch of jobs, one canvas each, of any lengths. Every round asks the decoders which positions they
want scored, makes one call of the engine for all canvases that are not finished, lets each decoder choose what to
change, and yields one Step per canvas. A canvas is finished when its decoder says so; else when nothing is masked, or
when its text has ended: a stop token is written and everything before it is settled. Not here: text (generation.py),
policy (the decoders and caches).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..cache.drift import DriftMeter
from ..cache.forward import CachedForward, Engine
from ..cache.state import CachePolicy, State
from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from ..engine import Proposal, Request
from .decoder import Decoder, Look, Move, Turn
from .table import Settings


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
    rows          how many rows of it the forward pass computed
    """

    index: int
    step: int
    canvas: Canvas
    commits: Commits
    stop_reason: str | None
    rows: int


def denoise(
    engine: Engine, jobs: Sequence[Job], states: dict[int, State] | None = None, meter: DriftMeter | None = None
) -> Iterator[Step]:
    """Denoise all canvases; job i uses slot i of the engine. Raises what the engine raises, Cancelled for example.

    states   what the slots hold from earlier, see SessionPool.lend_kept; None = nothing
    meter    measures the drift of the caches
    """
    forward = CachedForward(engine, [job.cache for job in jobs], {} if states is None else states, meter)
    canvases = [job.canvas.apply(job.decoder.start(job.canvas)) for job in jobs]
    memories: list[Any] = [None] * len(jobs)
    live = [index for index, canvas in enumerate(canvases) if len(canvas.masked)]
    step = 0
    while live:
        step += 1
        looks = [jobs[index].decoder.look(canvases[index], step, memories[index]) for index in live]
        requests = [_request(jobs[i], canvases[i], i, step, look) for i, look in zip(live, looks, strict=True)]
        answers = forward.propose(requests, [canvases[index] for index in live])
        going_on = []
        for index, look, answer in zip(live, looks, answers, strict=True):
            turn = Turn(canvases[index], look.rows, _as_asked(answer.proposal, look), step, memories[index])
            move = jobs[index].decoder.step(turn)
            if meter is not None:
                meter.written(index, move.commits)
            canvases[index], memories[index] = turn.canvas.apply(move.commits), move.memory
            stop_reason = _stop_reason(jobs[index], canvases[index], move)
            if stop_reason is None:
                going_on.append(index)
            yield Step(index, step, canvases[index], move.commits, stop_reason, answer.rows)
        live = going_on


def first_stop(canvas: Canvas, answer: int, stop_tokens: Sequence[int]) -> int:
    """The position of the first stop token written at or after `answer`; the canvas's length where there is none."""
    written = np.isin(canvas.tokens[answer:], stop_tokens) & (canvas.state[answer:] == COMMITTED)
    return answer + int(np.argmax(written)) if written.any() else len(canvas)


def _stop_reason(job: Job, canvas: Canvas, move: Move) -> str | None:
    end = first_stop(canvas, job.answer, job.stop_tokens)
    finished = not np.any(canvas.state[:end] == MASKED) if move.done is None else move.done
    if not finished:
        return None
    return "length" if end == len(canvas) else "stop"


def _request(job: Job, canvas: Canvas, slot: int, step: int, look: Look) -> Request:
    settings = job.settings
    temperature = settings.temperature if look.temperature is None else look.temperature
    forbidden = job.forbidden if look.forbidden is None else np.union1d(job.forbidden, look.forbidden)
    return Request(
        tokens=canvas.tokens if look.order is None else canvas.tokens[look.order],
        score=look.rows if look.order is None else np.sort(_read_at(look)),
        slot=slot,
        attention=job.attention,
        block_length=job.attention_block,
        prefix=job.prefix,
        logit_shift=job.logit_shift,
        temperature=temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=job.seed,
        step=step,
        # at temperature 0 the drawn-from distribution is a single token and could not rank anything
        scores_from=job.decoder.scores_from if temperature > 0 else "raw",
        forbidden=forbidden,
        alternatives=look.alternatives,
        positions=look.order,
    )


def _read_at(look: Look) -> Int32:
    """When the model reads each of the rows."""
    assert look.order is not None
    places = np.empty(len(look.order), np.int32)
    places[look.order] = np.arange(len(look.order), dtype=np.int32)
    return places[look.rows]


def _as_asked(proposal: Proposal, look: Look) -> Proposal:
    """The answers in the order of look.rows; the engine gave them in the order of reading."""
    if look.order is None:
        return proposal
    back = np.argsort(np.argsort(_read_at(look)))
    return Proposal(**{field.name: getattr(proposal, field.name)[back] for field in fields(Proposal)})
