"""Sessions: the state of some canvases, and one denoise step over them as numpy arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._abi import ffi
from ..errors import EngineError, OptionError
from .binding import Closable, Float32, Handle, Int32, check, count_of, library, new_struct, text_of

if TYPE_CHECKING:
    from .models import EngineModel

ATTENTION = {"full": 0, "causal": 1, "block_causal": 2, "prefix_causal": 3}  # LD_ATTENTION_*
MATH = {"exact": 0, "fast": 1}  # LD_MATH_*
SCORES = {"raw": 0, "sampled": 1}  # LD_SCORE_*


@dataclass(frozen=True)
class Request:
    """What one canvas asks of a step.

    tokens       int32 [length], mask tokens where unknown
    score        int32 [n] positions whose token is asked for, ascending
    slot         which state of the session
    attention    full, causal, block_causal (uses block_length) or prefix_causal (uses prefix)
    compute      int32 positions to recompute, ascending; None = all, others keep their state
    logit_shift  position p is predicted by the row of p - 1
    temperature  0 = argmax; top_k 0 = off; top_p 1 = off; seed, step and position are the key of the random numbers
    scores_from  "raw": probabilities of the logits; "sampled": of the distribution the token is drawn from
    forbidden    int32 tokens that are never proposed
    alternatives how many of the likeliest tokens to report, 0..64
    positions    int32 [length] the position each token stands for, where the order of storage differs; None = the same
    value_drift  float32 [rows computed], filled by the call: how far the values of each are from those held before, 1 -
                 cosine, mean over the layers; 1 where none were held; None = not asked
    """

    tokens: Int32
    score: Int32
    slot: int = 0
    attention: str = "full"
    block_length: int = 0
    prefix: int = 0
    compute: Int32 | None = None
    logit_shift: bool = False
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    step: int = 0
    scores_from: str = "raw"
    forbidden: Int32 | None = None
    alternatives: int = 0
    positions: Int32 | None = None
    value_drift: Float32 | None = None


@dataclass(frozen=True)
class Proposal:
    """The model's answer for the scored positions of one canvas; n of them, a alternatives each.

    token        int32 [n]
    probability  float32 [n], of token
    margin       float32 [n], largest minus second largest probability
    entropy      float32 [n], nats
    alternative_token, alternative_probability   [n, a], likeliest first
    """

    token: Int32
    probability: Float32
    margin: Float32
    entropy: Float32
    alternative_token: Int32
    alternative_probability: Float32


@dataclass(frozen=True)
class Timings:
    """What a session has done so far; seconds are wall-clock within the engine."""

    threads: int
    forwards: int
    rows: int
    seconds_total: float
    seconds_linear: float
    seconds_attention: float
    seconds_head: float
    seconds_other: float


@dataclass(frozen=True)
class Observation:
    """What the matrices of one tensor read while a session was observed.

    squares   float64 [matrices, columns], sums of the squares of their inputs; matrices: the experts, else 1
    rows      uint64 [matrices], how many inputs were added up
    """

    squares: npt.NDArray[np.float64]
    rows: npt.NDArray[np.uint64]


class Session(Closable):
    """The state of some canvases. One thread at a time, except for cancel()."""

    def __init__(self, model: EngineModel, options: Any):
        lib = library()
        out = ffi.new("ld_session **")
        parent = model._handle.pointer()
        check(lib.ld_session_create(parent, options, out), invalid=OptionError)
        self._handle = Handle("session", out[0], lib.ld_session_free, parent)
        self._vocab = model.info.vocab

    def propose(self, requests: Sequence[Request]) -> list[Proposal]:
        """One forward pass over all canvases; nothing is written into them.

        Raises EngineError (a request out of range, logits not finite, session in use) and Cancelled.
        """
        handle = self._handle.pointer()
        canvases, keep = _canvases(requests)
        proposals = []
        for canvas, request in zip(canvases, requests, strict=True):
            n, a = canvas.n_score, max(0, request.alternatives)
            probability, margin, entropy = np.empty((3, n), np.float32)
            alternatives = np.empty((n, a), np.int32), np.empty((n, a), np.float32)
            proposal = Proposal(np.empty(n, np.int32), probability, margin, entropy, *alternatives)
            for field in fields(Proposal):
                array = getattr(proposal, field.name)
                kind = "int32_t *" if array.dtype == np.int32 else "float *"
                setattr(canvas, field.name, ffi.cast(kind, array.ctypes.data) if array.size else ffi.NULL)
            proposals.append(proposal)
        check(library().ld_session_propose(handle, canvases, len(requests)))
        del keep
        return proposals

    def logits(self, requests: Sequence[Request]) -> list[Float32]:
        """The same forward pass; the raw logits of each canvas's scored positions, [n, vocab]."""
        handle = self._handle.pointer()
        canvases, keep = _canvases(requests)
        sizes = [canvas.n_score for canvas in canvases]
        out = np.empty((sum(sizes), self._vocab), np.float32)
        check(library().ld_session_logits(handle, canvases, len(requests), ffi.cast("float *", out.ctypes.data)))
        del keep
        return np.split(out, np.cumsum(sizes)[:-1])

    def cancel(self) -> None:
        """Make the running call, or the next one, raise Cancelled soon. From any thread; closed: nothing."""
        handle = self._handle.raw
        if handle is not None:
            library().ld_session_cancel(handle)

    def timings(self) -> Timings:
        raw = new_struct("ld_timings")
        check(library().ld_session_timings(self._handle.pointer(), raw))
        return Timings(**{field.name: getattr(raw, field.name) for field in fields(Timings)})

    def observe(self, on: bool = True) -> None:
        """From now on add up what linear layers read, beginning at 0; False ends it and gives the sums up."""
        check(library().ld_session_observe(self._handle.pointer(), int(on)))

    def observations(self) -> dict[str, Observation]:
        """What was added up so far, by tensor name; empty where nothing is observed.

        Neither threads nor how rows were divided over calls change a bit of it.
        """
        lib, handle = library(), self._handle.pointer()
        found = {}
        for index in range(lib.ld_session_observation_count(handle)):
            raw = new_struct("ld_observation")
            check(lib.ld_session_observation(handle, index, raw))
            matrices, columns = raw.matrices, raw.columns
            squares = np.frombuffer(ffi.buffer(raw.squares, 8 * matrices * columns), np.float64)
            rows = np.frombuffer(ffi.buffer(raw.rows, 8 * matrices), np.uint64)
            found[text_of(raw.name)] = Observation(squares.reshape(matrices, columns).copy(), rows.copy())
        return found


def session_options(
    slots: int = 1,
    slot_length: int | None = None,
    rows: int | None = None,
    threads: int | None = None,
    math: str = "exact",
) -> Any:
    """The struct of EngineModel.session's arguments. Raises OptionError for one out of range."""
    if slots < 1:
        raise OptionError(f"slots is {slots}, expected at least 1")
    return new_struct(
        "ld_session_options",
        slots=slots,
        slot_length=count_of("slot_length", slot_length),
        rows=count_of("rows", rows),
        threads=count_of("threads", threads),
        math=MATH[math],
    )


def _canvases(requests: Sequence[Request]) -> tuple[Any, list[Any]]:
    """The C structs of the requests, and the arrays that must live as long as they are used."""
    if not requests:
        raise EngineError("no canvases in the call, expected at least one")
    canvases = ffi.new("ld_canvas[]", len(requests))
    keep: list[Any] = []

    def pointer(name: str, values: Any) -> tuple[Any, int]:
        array = _int32(name, values)
        keep.append(array)
        return ffi.cast("int32_t *", array.ctypes.data), array.size

    for canvas, request in zip(canvases, requests, strict=True):
        canvas.struct_size = ffi.sizeof("ld_canvas")
        canvas.tokens, canvas.length = pointer("tokens", request.tokens)
        canvas.score, canvas.n_score = pointer("score", request.score)
        if request.compute is not None:
            canvas.compute, canvas.n_compute = pointer("compute", request.compute)
        if request.forbidden is not None:
            canvas.forbidden, canvas.n_forbidden = pointer("forbidden", request.forbidden)
        if request.positions is not None:
            canvas.positions, size = pointer("positions", request.positions)
            if size != canvas.length:
                raise EngineError(f"positions has {size} values, expected one for each of the {canvas.length} tokens")
        if request.value_drift is not None:
            rows = canvas.length if request.compute is None else canvas.n_compute
            _check_floats("value_drift", request.value_drift, rows)
            keep.append(request.value_drift)
            canvas.value_drift = ffi.cast("float *", request.value_drift.ctypes.data)
        canvas.attention = _choice("attention", request.attention, ATTENTION)
        canvas.scores_from = _choice("scores_from", request.scores_from, SCORES)
        canvas.logit_shift = int(request.logit_shift)
        for name in ("slot", "block_length", "prefix", "top_k", "temperature", "top_p", "seed", "step", "alternatives"):
            try:
                setattr(canvas, name, getattr(request, name))
            except OverflowError:
                raise EngineError(f"{name} is {getattr(request, name)}, which is out of range") from None
    return canvases, keep


def _int32(name: str, values: Any) -> Int32:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise EngineError(f"{name} has shape {array.shape} and type {array.dtype}, expected one row of integers")
    if array.dtype != np.int32 and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise EngineError(f"{name} holds {array.min()} to {array.max()}, expected 32-bit integers")
    return np.ascontiguousarray(array, np.int32)


def _check_floats(name: str, array: Any, size: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.carray:
        raise EngineError(f"{name} is not a contiguous, writable float32 array")
    if array.shape != (size,):
        raise EngineError(f"{name} has shape {list(array.shape)}, expected one value for each of the {size} rows")


def _choice(name: str, value: str, known: Mapping[str, int]) -> int:
    if value not in known:
        raise EngineError(f"{name} is '{value}', expected one of {', '.join(known)}")
    return known[value]
