"""The denoise loop, and nothing but the loop.

A Denoiser holds jobs, one canvas each, of any lengths; they come and go between steps. Every step asks the decoders
which positions they want scored, makes one call of the engine for all canvases that are not finished, lets each decoder
choose what to change, and gives one Step per canvas. A canvas is finished when its decoder says so; else when nothing
is masked, or when its text has ended: a stop token is written and everything before it is settled. Once a stop token is
settled the model is shown nothing that stands after it. A canvas that is full before its text has ended grows where its
job lets it, by a stretch of masks that is denoised as a canvas of its own, with what was written before it given. What
becomes of a canvas does not depend on the others. One whose time runs out is filled by a last pass, so that with a
deadline alone the speed of the machine counts. Not here: text (generation.py), policy (the decoders and caches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache.drift import DriftMeter
from ..cache.forward import CachedForward, Engine
from ..cache.state import CachePolicy, State
from ..canvas import COMMITTED, MASKED, Canvas, Commits, Int32
from ..engine import Float32, Proposal, Request
from .controls import Controls
from .deadline import Pace, hurried
from .decoder import NO_POSITIONS, NOTHING, Decoder, Look, Move, Turn
from .table import DECODERS, Settings

if TYPE_CHECKING:
    from ..constrain import Constraint


@dataclass(frozen=True)
class Job:
    """One canvas and how to denoise it.

    attention, attention_block, prefix, logit_shift   as the model's record says (engine.Request)
    forbidden     int32 tokens that are never proposed, the mask token among them
    stop_tokens   tokens that end the text; looked for from position `answer` on
    controls      what the caller wants of the tokens, and the time it has
    ended         (canvas, position before which committed tokens stay) -> whether the text has ended for another reason
    constraint    what the text has to match
    feedback      what a step expects is told to the next one of its stretch
    grow, room    masks added where the text has not ended, to the end of a block where the model sees blocks; the
                  longest that the canvas becomes by that
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
    controls: Controls = field(default_factory=Controls)
    ended: Callable[[Canvas, int], bool] = lambda canvas, settled: False
    constraint: Constraint | None = None
    grow: int = 0
    room: int = 0
    feedback: bool = False

    @property
    def most(self) -> int:
        """The longest that the canvas can become."""
        return max(self.room, self.decoder.room(self.canvas))

    @property
    def places(self) -> int:
        """The length of a slot that has room for it: at its longest, with shadows behind it, or for its companion."""
        return max(self.most + self.decoder.shadows(self.canvas), self.most + self.controls.ahead)

    @property
    def sizes(self) -> list[int]:
        """The tokens that ask for more or fewer positions and are no text."""
        facts = self.decoder.facts
        asking = {facts.expand_token, facts.delete_token} - set(facts.stop_tokens)
        return [token for token in asking if token is not None]


@dataclass(frozen=True)
class Step:
    """What one denoise step did to the canvas in slot `index`; step counts those of this canvas, from 1.

    canvas        after the commits
    stop_reason   None while it goes on, "stop" where the text has ended, "length" where every position is filled,
                  "deadline" where the last pass filled what was masked
    rows          how many rows of it the forward pass computed
    settled       committed tokens before this position stay as they are; all of them once the text is finished
    scored        int32 [n], ascending: the positions that were scored, as numbered before the commits
    proposal      what the engine answered for them
    """

    index: int
    step: int
    canvas: Canvas
    commits: Commits
    stop_reason: str | None
    rows: int
    settled: int
    scored: Int32
    proposal: Proposal


@dataclass
class _Running:
    """A job, its canvas, the slot of the companion that guides it, the steps it has taken, what its decoder's last Move
    handed on, and its present stretch.

    begin    where the stretch begins; 0 = the first one, which may have holes anywhere
    passed   steps taken before it
    """

    job: Job
    canvas: Canvas
    beside: int | None
    steps: int = 0
    memory: Any = None
    begin: int = 0
    passed: int = 0

    @property
    def told(self) -> bool:
        """Whether the coming step is told what the one before expected."""
        return self.job.feedback and self.steps > self.passed

    @property
    def shown(self) -> Canvas:
        """The canvas as the decoder sees it."""
        return self.canvas.settled_before(self.begin) if self.begin else self.canvas

    @property
    def settled(self) -> int:
        return max(self.begin, self.job.decoder.settled(self.shown))

    @property
    def seen(self) -> Canvas:
        """What the model is shown: nothing after a stop token that is settled."""
        end = first_stop(self.canvas, self.job.answer, self.job.stop_tokens)
        moves = DECODERS[self.job.settings.decoder].traits & {"reorders", "resizes"}
        whole = moves or self.job.constraint is not None  # which knows positions
        return self.canvas if whole or end >= self.settled else self.canvas.up_to(end + 1)

    def look(self, length: int) -> Look:
        """What the decoder asks of the first `length` positions."""
        look = self.job.decoder.look(self.shown, self.steps + 1 - self.passed, self.memory)
        return replace(look, rows=look.rows[look.rows < length], verify=look.verify[look.verify < length])

    def turn(self, look: Look, proposal: Proposal, verified: Float32) -> Turn:
        """What the decoder is shown of the coming step."""
        step = self.steps + 1 - self.passed
        return Turn(self.shown, look.rows, proposal, step, self.memory, look.verify, verified)

    def advance(self, turn: Turn, left: float) -> tuple[Commits, str | None]:
        """Let the decoder choose, and write more where it would not be done in `left` more passes, everything where
        that is 0; gives what changed, and why the text is finished (None: it goes on)."""
        job = self.job
        self.steps += 1
        move = self._move(turn, left) if left else Move(_rest(job, turn))
        self.canvas, self.memory = self.canvas.apply(move.commits), move.memory
        stop_reason, length = _stop_reason(self, move, not left), len(self.canvas)
        added = longer(length, job.grow, job.attention_block, job.room) - length
        if stop_reason != "length" or not added:
            return move.commits, stop_reason
        grown = self.canvas.longer(added)
        begun = job.decoder.start(grown.settled_before(length))
        self.canvas, self.memory, self.begin, self.passed = grown.apply(begun), None, length, self.steps
        return replace(move.commits.together(begun), added=added), None

    def _move(self, turn: Turn, left: float) -> Move:
        move = self.job.decoder.step(turn)
        rewrites = "rewrites" in DECODERS[self.job.settings.decoder].traits
        move = move if left == math.inf or rewrites else hurried(turn, move, left, self.job.sizes)
        constraint = self.job.constraint
        return move if constraint is None else replace(move, commits=constraint.written(turn, move.commits))


class Denoiser:
    """Canvases that are denoised together, each in a slot of the engine.

    engine   has the slots that are used
    states   what the slots hold from earlier, kept up to date, see SessionPool.lend_kept; None = nothing
    meter    measures the drift of the caches
    pace     tells the time
    """

    def __init__(
        self,
        engine: Engine,
        states: dict[int, State] | None = None,
        meter: DriftMeter | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._forward = CachedForward(engine, {} if states is None else states, meter)
        self._meter = meter
        self._pace = pace or Pace()
        self._running: dict[int, _Running] = {}

    @property
    def live(self) -> list[int]:
        """The slots whose canvases are not finished."""
        return list(self._running)

    def add(self, slot: int, job: Job, beside: int | None = None) -> None:
        """Begin with a job in a slot that is not live; the next step is its first. Nothing to fill: it is not live.

        beside   another slot of its own, for jobs with guidance
        """
        if job.controls.guidance and beside is None:
            raise ValueError("a job with guidance was given one slot, expected two")
        canvas = job.canvas.apply(job.decoder.start(job.canvas))
        if len(canvas.masked):
            self._forward.begin(slot, job.cache)
            if job.controls.guidance and beside is not None:
                self._forward.begin(beside, job.cache)
            self._running[slot] = _Running(job, canvas, beside)

    def remove(self, slot: int) -> None:
        """Let go of a canvas, finished or not."""
        running = self._running.pop(slot, None)
        if running is not None:
            self._forward.end(slot)
            if running.job.controls.guidance and running.beside is not None:
                self._forward.end(running.beside)

    @property
    def movable(self) -> bool:
        """Whether the slots of another engine would do: no live canvas goes on from what an approximation left."""
        return all(each.job.cache.exact and not each.told for each in self._running.values())

    def move(self, engine: Engine) -> None:
        """Go on in the same slots of another engine, which hold nothing."""
        self._forward.move(engine)

    def step(self, slots: Sequence[int] | None = None) -> Iterator[Step]:
        """One denoise step of all live canvases, or of some; finished ones leave.

        Raises what the engine raises, Cancelled for example. Canvases whose Step was not given yet are as they were.
        """
        taking = [(slot, self._running[slot]) for slot in (self.live if slots is None else slots)]
        for slot, each in taking:
            if each.steps == 0 and len(certain := _certain(each.job, each.canvas)):
                each.canvas = each.canvas.apply(certain)
                stop_reason = _stop_reason(each, Move(certain), False)
                yield self._stepped(slot, each, certain, stop_reason, 0, _nothing_scored(each.canvas))
        taking = [(slot, each) for slot, each in taking if slot in self._running]
        if not taking:
            return
        left = {slot: self._pace.passes_left(each.job.controls.until) for slot, each in taking}
        last = {slot for slot, each in taking if self._pace.is_last(each.job.controls.until)}
        shown = [each.canvas if slot in last else each.seen for slot, each in taking]
        looks = [_look(each, canvas, slot in last) for (slot, each), canvas in zip(taking, shown, strict=True)]
        views = zip(taking, shown, looks, strict=True)
        shown = [_visible(each.job, canvas, look) for (_, each), canvas, look in views]
        views = zip(taking, shown, looks, strict=True)
        requests = [_request(each, canvas, slot, look) for (slot, each), canvas, look in views]
        asked = [_asked(each.job, request) for (_, each), request in zip(taking, requests, strict=True)]
        self._pace.begin_pass()
        answers = self._forward.propose(asked, shown, last)
        self._pace.end_pass()
        for (slot, each), look, request, answer in zip(taking, looks, requests, answers, strict=True):
            turn = each.turn(look, _as_asked(answer.proposal, look), answer.verified)
            turn = _within(each.job, turn, look, request)
            listed = replace(turn, proposal=_listing(turn.proposal, look.alternatives))
            commits, stop_reason = each.advance(listed, 0.0 if slot in last else left[slot])
            if self._meter is not None:
                self._meter.written(slot, commits)
            yield self._stepped(slot, each, commits, stop_reason, answer.rows, turn)

    def _stepped(
        self, slot: int, running: _Running, commits: Commits, stop_reason: str | None, rows: int, turn: Turn
    ) -> Step:
        """The record of a step that was taken; the canvas leaves where it is finished."""
        if stop_reason is not None:
            self.remove(slot)
        settled = running.settled if stop_reason is None else len(running.canvas)
        canvas, step = running.canvas, running.steps
        return Step(slot, step, canvas, commits, stop_reason, rows, settled, turn.rows, turn.proposal)


def denoise(
    engine: Engine,
    jobs: Sequence[Job],
    states: dict[int, State] | None = None,
    meter: DriftMeter | None = None,
    pace: Pace | None = None,
) -> Iterator[Step]:
    """Denoise all canvases to their ends; job i uses slot i, and slot len(jobs) + i where it has guidance. Arguments
    and errors are those of Denoiser."""
    denoiser = Denoiser(engine, states, meter, pace)
    for slot, job in enumerate(jobs):
        denoiser.add(slot, job, len(jobs) + slot)
    while denoiser.live:
        yield from denoiser.step()


def _certain(job: Job, canvas: Canvas) -> Commits:
    """What the constraint leaves no choice about, before any pass."""
    return NOTHING if job.constraint is None else job.constraint.forced(canvas)


def _asked(job: Job, request: Request) -> Request:
    """What is asked of the engine: a constraint draws tokens itself, from the logits."""
    if job.constraint is None:
        return request
    return replace(request, temperature=0.0, top_k=0, top_p=1.0, scores_from="raw")


def _within(job: Job, turn: Turn, look: Look, request: Request) -> Turn:
    """The turn with proposals that the constraint allows; request: what the decoder wants."""
    if job.constraint is None:
        return turn
    return job.constraint.turn(turn, request if look.order is None else request.of_rows(_back(look)))


def _rest(job: Job, turn: Turn) -> Commits:
    """Everything that is masked, where no pass follows."""
    return turn.write(turn.masked) if job.constraint is None else job.constraint.rest(turn)


def _nothing_scored(canvas: Canvas) -> Turn:
    """A turn before any pass."""
    floats = np.empty(0, np.float32)
    none = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    return Turn(canvas, NO_POSITIONS, Proposal(NO_POSITIONS, floats, floats, floats, *none), 0)
def longer(length: int, grow: int, block: int, room: int) -> int:
    """How long a canvas of `length` positions becomes when it grows once; see Job."""
    return max(length, min(-(-(length + grow) // max(1, block)) * max(1, block), room)) if grow else length


def first_stop(canvas: Canvas, answer: int, stop_tokens: Sequence[int]) -> int:
    """The position of the first stop token written at or after `answer`; the canvas's length where there is none."""
    written = np.isin(canvas.tokens[answer:], stop_tokens) & (canvas.state[answer:] == COMMITTED)
    return answer + int(np.argmax(written)) if written.any() else len(canvas)


def _stop_reason(running: _Running, move: Move, last: bool) -> str | None:
    job, canvas = running.job, running.canvas
    end = first_stop(canvas, job.answer, job.stop_tokens)
    finished = not np.any(canvas.state[:end] == MASKED) if move.done is None else move.done
    if job.ended(canvas, len(canvas) if finished or last else running.settled):
        return "stop"
    if last:
        return "deadline"
    if not finished:
        return None
    return "length" if end == len(canvas) else "stop"


def _look(running: _Running, canvas: Canvas, last: bool) -> Look:
    """What the decoder asks of `canvas`, which the model is shown; where no pass follows, the likeliest tokens of all
    masked positions, none that asks for room."""
    look = running.look(len(canvas))
    if not len(look.rows):  # in a hurry more was written than the decoder knows of
        running.memory = None
        look = running.look(len(canvas))
    if not last:
        return look
    forbidden = NO_POSITIONS if look.forbidden is None else look.forbidden
    forbidden = np.union1d(forbidden, running.job.sizes).astype(np.int32)
    rows = canvas.masked if len(canvas.masked) else look.rows  # all may be written by decoders that change it again
    return replace(look, rows=rows, temperature=0.0, forbidden=forbidden, verify=NO_POSITIONS)


def _visible(job: Job, canvas: Canvas, look: Look) -> Canvas:
    """What the model is shown of `canvas`: where it sees blocks, nothing after the one that is verified, which would be
    seen by the shadows."""
    if not len(look.verify) or job.attention != "block_causal":
        return canvas
    block, last = job.attention_block, int(max(look.verify[-1], look.rows[-1]))
    return canvas.up_to((last // block + 1) * block)


def _request(running: _Running, canvas: Canvas, slot: int, look: Look) -> Request:
    job, settings = running.job, running.job.settings
    temperature = settings.temperature if look.temperature is None else look.temperature
    forbidden = job.forbidden if look.forbidden is None else np.union1d(job.forbidden, look.forbidden)
    request = Request(
        tokens=canvas.tokens if look.order is None else canvas.tokens[look.order],
        score=look.rows if look.order is None else np.sort(_read_at(look)),
        slot=slot,
        attention=job.attention,
        block_length=job.attention_block,
        prefix=max(job.prefix, running.begin),
        logit_shift=job.logit_shift,
        temperature=temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=job.seed,
        step=running.steps + 1,
        # at temperature 0 the drawn-from distribution is a single token and could not rank anything
        scores_from=job.decoder.scores_from if temperature > 0 else "raw",
        forbidden=forbidden,
        alternatives=look.alternatives,
        positions=look.order,
        logits=None if job.constraint is None else np.empty((len(look.rows), job.constraint.vocab), np.float32),
        hidden=look.verify if len(look.verify) else None,
        shadows=np.full(len(look.verify), canvas.mask_token, np.int32) if len(look.verify) else None,
        feedback="" if not job.feedback else "take+leave" if running.told else "leave",
    )
    return job.controls.applied(request, canvas, running.beside)


def _listing(proposal: Proposal, alternatives: int) -> Proposal:
    """The proposal with as many alternatives as the decoder asked for."""
    tokens, probabilities = proposal.alternative_token, proposal.alternative_probability
    return replace(
        proposal, alternative_token=tokens[:, :alternatives], alternative_probability=probabilities[:, :alternatives]
    )


def _read_at(look: Look) -> Int32:
    """When the model reads each of the rows."""
    assert look.order is not None
    places = np.empty(len(look.order), np.int32)
    places[look.order] = np.arange(len(look.order), dtype=np.int32)
    return places[look.rows]


def _as_asked(proposal: Proposal, look: Look) -> Proposal:
    """The answers in the order of look.rows."""
    if look.order is None:
        return proposal
    back = _back(look)
    return Proposal(**{each.name: getattr(proposal, each.name)[back] for each in fields(Proposal)})


def _back(look: Look) -> npt.NDArray[np.intp]:
    """For each of look.rows its place among the answers, which the engine gave in the order of reading."""
    return np.argsort(np.argsort(_read_at(look)))
