"""What a generation gives: one DenoiseEvent per denoise step while it runs, one Generation when it is done.

A DenoiseStream runs the loop of decode/ as it is iterated and keeps the results; generate() is such a stream read to
its end. The terminal view, the Python iterator and the server all read these events. Not here: how prompts become
canvases (compose.py), how canvases become text (page.py), printing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache.drift import DriftMeter
from .canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from .decode.loop import Step, denoise
from .details import Marks, TokenDetail
from .errors import Cancelled
from .page import Page, Span
from .trace import Trace

if TYPE_CHECKING:
    from .engine import Session
    from .sessions import SessionPool


@dataclass(frozen=True)
class DenoiseEvent:
    """One denoise step of one canvas.

    index        which text of the batch; with samples, those of the first prompt come first
    step         forward passes so far
    canvas       after the step, prompt included: .tokens int32 [length], .state uint8 [length]
    positions    int32 [n] written in this step, ascending
    commits      what this step changed, with the scores of what was written
    stop_reason  None while it goes on, else "stop", "length" or "deadline"
    settled      committed tokens before this position stay as they are
    """

    index: int
    step: int
    canvas: Canvas
    positions: Int32
    stop_reason: str | None
    settled: int
    page: Page = dataclasses.field(repr=False, compare=False)
    commits: Commits = dataclasses.field(repr=False, compare=False)
    marks: Marks = dataclasses.field(repr=False, compare=False)

    @property
    def tokens(self) -> Int32:
        return self.canvas.tokens

    @cached_property
    def text(self) -> str:
        """The text that is settled so far: before the first masked position, and what the decoder will not change."""
        return self.page.settled_text(self.canvas, self.settled, ended=self.stop_reason is not None)

    @cached_property
    def spans(self) -> list[Span]:
        """The whole text as runs of equal state, for a live view."""
        return self.page.spans(self.canvas, self.positions)

    @cached_property
    def token_details(self) -> list[TokenDetail]:
        """The whole text token by token, masked ones too: state, text, step, probability, entropy, alternatives."""
        return self.page.details(self.canvas, self.positions, self.marks)


@dataclass(frozen=True)
class Generation:
    """A text and what it took.

    text                   the answer; for infill the whole text
    tokens                 ids of the tokens made, without the stop token
    prompt_tokens          ids that were given
    nfe                    forward passes that this text took part in, those that chose its length included
    seconds                from the start to the last token of this text
    first_settled_seconds  until the first token of the answer was settled, None where none was
    stop_reason            "stop" at a stop token or string, "length" where every position is filled, "deadline" where
                           time ran out and a last pass filled what was masked, "cancelled"
    decoder                every decoding setting in force
    rows                   rows of this text that its denoise steps computed; nfe * canvas without a cache, twice
                           that with guidance
    holes                  for infill: what was written into each hole
    drift                  with report_drift: how far the cache is from exact, see cache.drift.Drift.as_dict
    token_details          one TokenDetail for each of `tokens`: text, step, probability, entropy, alternatives
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    nfe: int
    seconds: float
    answer_tokens_per_second: float
    tokens_per_forward: float
    first_settled_seconds: float | None
    stop_reason: str
    seed: int
    model: str
    decoder: dict[str, Any]
    device: str
    isa: str
    threads: int
    rows: int
    holes: list[str] = dataclasses.field(default_factory=list)
    drift: dict[str, float | int] | None = None
    token_details: list[TokenDetail] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as one JSON object; `holes` only for infill, `drift` only where it was asked for."""
        absent = [name for name in ("holes", "drift") if not getattr(self, name)]
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in absent}
        return {**values, "token_details": [each.as_dict() for each in self.token_details]}


@dataclass(frozen=True)
class Setup:
    """What runs the texts, as reported: fields of Generation."""

    model: str
    device: str
    isa: str


class DenoiseStream(Iterator[DenoiseEvent]):
    """The events of a batch, in order; iterating does the work.

    results has one Generation per prompt once the stream has ended, traces the records of their steps. Where it ended
    early (cancel(), close(), an error) unfinished texts have the stop_reason "cancelled" and hold what was settled.
    Of a text with drafts in several lengths the best one is given, its events when all of them are done.
    """

    def __init__(self, pages: Sequence[Page], pool: SessionPool, setup: Setup) -> None:
        self.results: list[Generation] = []
        self.traces: list[Trace] = []
        self._drafts = [[TextInProgress(each) for each in (page, *page.drafts)] for page in pages]
        self._texts = [text for drafts in self._drafts for text in drafts]
        self._pool = pool
        self._setup = setup
        self._session: Session | None = None
        self._cancelled = False
        self._events = self._run()

    def __next__(self) -> DenoiseEvent:
        return next(self._events)

    @property
    def result(self) -> Generation:
        """The result of a stream of one prompt."""
        (only,) = self.results
        return only

    @property
    def trace(self) -> Trace:
        """The trace of a stream of one prompt."""
        (only,) = self.traces
        return only

    def cancel(self) -> None:
        """Make the iteration raise Cancelled soon. From any thread; does nothing once the stream has ended."""
        self._cancelled = True
        session = self._session
        if session is not None:
            self._pool.cancel(session)

    def close(self) -> None:
        """End the stream; its memory is free for the next one."""
        self._events.close()
        if not self.results:  # it was never started
            self._report(0)

    def _run(self) -> Generator[DenoiseEvent, None, None]:
        jobs = [text.page.job for text in self._texts]
        owners = [index for index, drafts in enumerate(self._drafts) for _ in drafts]
        held: list[list[DenoiseEvent]] = [[] for _ in self._texts]
        threads = 0
        meter = DriftMeter(len(jobs)) if any(job.settings.report_drift for job in jobs) else None
        try:
            doubled = meter is not None or any(job.controls.guidance for job in jobs)
            length = max(job.places for job in jobs)
            with self._pool.lend_kept(len(jobs) * (1 + doubled), length) as (session, states):
                self._session = session
                threads = session.timings().threads
                started = time.perf_counter()
                steps = denoise(session, jobs, states, meter)
                while (step := self._next(steps)) is not None:
                    index, text = owners[step.index], self._texts[step.index]
                    event = text.advance(step, time.perf_counter() - started)
                    held[step.index].append(dataclasses.replace(event, index=index))
                    drafts = self._drafts[index]
                    if len(drafts) == 1 or all(draft.finished for draft in drafts):
                        shown = self._texts.index(_best(drafts))
                        yield from held[shown]
                        held[shown] = []
        finally:
            self._session = None
            self._report(threads, meter)

    def _next(self, steps: Iterator[Step]) -> Step | None:
        if self._cancelled:  # perhaps between two calls of the engine, or before the first
            raise Cancelled("the generation was cancelled")
        return next(steps, None)

    def _report(self, threads: int, meter: DriftMeter | None = None) -> None:
        best = [_best(drafts) for drafts in self._drafts]
        drifts = {} if meter is None else dict(zip(self._texts, meter.drift, strict=True))
        self.traces = [text.trace for text in best]
        self.results = [
            text.result(self._setup, threads, drifts[text].as_dict() if text in drifts else None) for text in best
        ]


def _best(drafts: Sequence[TextInProgress]) -> TextInProgress:
    """The draft whose tokens were surest, of equals the first one."""
    return drafts[0] if len(drafts) == 1 else max(drafts, key=lambda draft: draft.sureness)


class TextInProgress:
    """What is known of one text while it is made, by whoever runs its denoise steps."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._canvas = page.job.canvas
        self._steps: list[Commits] = []
        self._marks = Marks.empty(len(self._canvas), page.job.controls.alternatives)
        self._nfe = page.passes
        self._rows = 0
        self._seconds = page.seconds
        self._first_settled: float | None = None
        self._stop_reason = "cancelled" if len(self._canvas.masked) else "length"

    def advance(self, step: Step, seconds: float) -> DenoiseEvent:
        """Take note of a step that ended `seconds` after the start."""
        self._canvas = step.canvas
        self._steps.append(step.commits)
        self._marks = self._marks.after(step.step, step.commits, step.scored, step.proposal)
        self._nfe, self._seconds = self.page.passes + step.step, self.page.seconds + seconds
        self._rows += step.rows
        self._stop_reason = step.stop_reason or "cancelled"
        first = step.canvas.maskable[:1]
        if self._first_settled is None and np.all(first < step.settled) and np.any(step.canvas.state[first] != MASKED):
            self._first_settled = self._seconds
        commits, written = step.commits, step.commits.written
        return DenoiseEvent(
            step.index,
            step.step,
            step.canvas,
            written,
            step.stop_reason,
            step.settled,
            self.page,
            commits,
            self._marks,
        )

    @property
    def finished(self) -> bool:
        return self._stop_reason != "cancelled"

    @property
    def trace(self) -> Trace:
        """What its steps changed so far."""
        job = self.page.job
        return Trace(job.canvas.apply(job.decoder.start(job.canvas)), tuple(self._steps))

    @property
    def sureness(self) -> float:
        """Mean score that the tokens had when they were written: of rdm, log-probabilities (arXiv:2308.12219)."""
        if not self.finished:
            return -np.inf
        scores = np.full(len(self._canvas), np.nan)
        for commits in self._steps:
            assert commits.scores is not None
            scores[commits.positions] = commits.scores
        return float(scores[self._canvas.state == COMMITTED].mean())

    def result(self, setup: Setup, threads: int, drift: dict[str, float | int] | None = None) -> Generation:
        """The text as far as it is known."""
        job, tokens, pieces = self.page.job, self.page.made(self._canvas), self.page.pieces(self._canvas)
        return Generation(
            text="".join(piece for _, piece in pieces),
            tokens=tokens,
            prompt_tokens=len(self._canvas) - len(self._canvas.maskable) - self.page.tail,
            nfe=self._nfe,
            seconds=self._seconds,
            answer_tokens_per_second=len(tokens) / self._seconds if self._seconds else 0.0,
            tokens_per_forward=len(tokens) / self._nfe if self._nfe else 0.0,
            first_settled_seconds=self._first_settled,
            stop_reason=self._stop_reason,
            seed=job.seed,
            decoder={**job.settings.shown(), **self.page.wished},
            threads=threads,
            rows=self._rows,
            holes=[piece for made, piece in pieces if made] if self.page.parts else [],
            drift=drift,
            token_details=self.page.made_details(self._canvas, self._marks),
            **dataclasses.asdict(setup),
        )
