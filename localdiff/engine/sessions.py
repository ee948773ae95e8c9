"""Sessions: the state of some canvases, and one denoise step over them as numpy arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._abi import ffi
from ..errors import EngineError, OptionError
from .automata import Match
from .binding import Closable, Float32, Handle, Int32, check, count_of, library, new_struct, text_of

if TYPE_CHECKING:
    from .models import EngineModel

ATTENTION = {"full": 0, "causal": 1, "block_causal": 2, "prefix_causal": 3}  # LD_ATTENTION_*
MATH = {"exact": 0, "fast": 1}  # LD_MATH_*
SCORES = {"raw": 0, "sampled": 1}  # LD_SCORE_*
FEEDBACK = {"": 0, "leave": 1, "take": 2, "take+leave": 3}  # LD_FEEDBACK_*, added

# fields that have one name and value in Request and in ld_canvas
_PLAIN = ("slot", "block_length", "prefix", "top_k", "temperature", "top_p", "seed", "step", "alternatives", "guidance",
          "repetition_penalty")  # fmt: skip


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
    guidance     with the logits u of `unconditional`: u + (guidance + 1) * (logits - u); 0 = off
    unconditional   another canvas, in a slot of its own, computed in the same call; it scores as many positions, the
                 i-th standing for the i-th here
    repeated     int32 tokens, ascending, whose logits are divided by repetition_penalty where above 0, else multiplied
    bias_tokens  int32, ascending; bias float32 of the same length is added to their logits
    allowed      uint32 [n, ceil(vocab / 32)], see pack_tokens(): tokens that may be proposed at each scored position
    logits       float32 [n, vocab], filled by the call: those of the model; None = not asked
    hidden       int32 [m] positions, ascending, whose tokens are asked for once more: they are scored by rows that see
                 everything but that token (the header's shadows), and the answers stand behind the other n; None = none
    shadows      int32 [m] the tokens that those rows hold
    feedback     "leave": keep what is expected at the scored positions, softmax(logits of the model / temperature)
                 times the embeddings; "take": tell their rows what was left there last; "take+leave"; "" = neither.
                 For models with ModelInfo.feedback
    match        the tokens are those of one text that an automaton accepts, see the header; for propose_logits, without
                 forbidden and allowed

With hidden n counts those answers too, and so do the rows computed; the slot holds m positions more than tokens.
    Logits change in this order: guidance, penalty, bias, then tokens are removed; all else is as if the model had given
    the result.
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
    guidance: float = 0.0
    unconditional: Request | None = None
    repeated: Int32 | None = None
    repetition_penalty: float = 1.0
    bias_tokens: Int32 | None = None
    bias: Float32 | None = None
    allowed: npt.NDArray[np.uint32] | None = None
    logits: Float32 | None = None
    hidden: Int32 | None = None
    shadows: Int32 | None = None
    feedback: str = ""
    match: Match | None = None

    def of_rows(self, places: npt.NDArray[np.intp]) -> Request:
        """The same with the scored positions at these places, in this order, and their logits."""
        beside = self.unconditional
        return replace(
            self,
            score=self.score[places],
            logits=None if self.logits is None else self.logits[places],
            unconditional=None if beside is None else beside.of_rows(places),
        )


def pack_tokens(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Request.allowed of bool [n, vocab]."""
    n, vocab = allowed.shape
    bits = np.zeros((n, -(-vocab // 32) * 32), bool)
    bits[:, :vocab] = allowed
    words: npt.NDArray[np.uint32] = np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)
    return words


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
        self._lengths = model.info.lengths

    def propose(self, requests: Sequence[Request]) -> list[Proposal]:
        """One forward pass over all canvases; nothing is written into them.

        Raises EngineError (a request out of range, logits not finite, session in use) and Cancelled.
        """
        handle = self._handle.pointer()
        canvases, proposals, keep = _prepared(requests, self._vocab)
        check(library().ld_session_propose(handle, canvases, len(canvases)))
        del keep
        return proposals

    def logits(self, requests: Sequence[Request]) -> list[Float32]:
        """The same forward pass without guidance; the raw logits of each canvas's scored positions, [n, vocab]."""
        handle = self._handle.pointer()
        alone = [replace(request, guidance=0.0, unconditional=None) for request in requests]
        canvases, _, keep = _canvases(alone, self._vocab)
        sizes = [canvas.n_score for canvas in canvases]
        out = np.empty((sum(sizes), self._vocab), np.float32)
        check(library().ld_session_logits(handle, canvases, len(requests), ffi.cast("float *", out.ctypes.data)))
        del keep
        return np.split(out, np.cumsum(sizes)[:-1])

    def lengths(self, tokens: Int32, slot: int = 0) -> Float32:
        """float32 [ModelInfo.lengths]: logits of how many tokens the answer to a prompt has, class c for c + 1.

        tokens   int32 [length], the prompt alone; it is computed as a canvas in `slot`, in full attention
        raises   EngineError where the model has no length head
        """
        out = np.empty(max(1, self._lengths), np.float32)
        prompt = np.ascontiguousarray(tokens, np.int32)
        pointers = ffi.cast("int32_t *", prompt.ctypes.data), len(prompt), ffi.cast("float *", out.ctypes.data)
        check(library().ld_session_lengths(self._handle.pointer(), slot, *pointers))
        return out

    def cancel(self) -> None:
        """Make the running call, or the next one, raise Cancelled soon. From any thread; closed: nothing."""
        handle = self._handle.raw
        if handle is not None:
            library().ld_session_cancel(handle)

    def timings(self) -> Timings:
        raw = new_struct("ld_timings")
        check(library().ld_session_timings(self._handle.pointer(), raw))
        return Timings(**{field.name: getattr(raw, field.name) for field in fields(Timings)})

    def state(self, length: int, slot: int = 0) -> bytes:
        """The keys and values of the first `length` positions of a slot, for restore() in a session of this model.

        Raises EngineError where one of them was never computed.
        """
        lib, handle = library(), self._handle.pointer()
        size = ffi.new("uint64_t *")
        check(lib.ld_session_state_bytes(handle, length, size))
        out = bytearray(size[0])
        check(lib.ld_session_save(handle, slot, length, ffi.from_buffer(out), len(out)))
        return bytes(out)

    def restore(self, state: bytes, slot: int = 0) -> int:
        """Put what state() gave into a slot, in place of what it holds; returns the number of positions.

        Raises ModelFileError for bytes that are damaged or of another shape or arithmetic; then nothing has changed.
        """
        length = ffi.new("int32_t *")
        check(library().ld_session_load(self._handle.pointer(), slot, ffi.from_buffer(state), len(state), length))
        return int(length[0])

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


def propose_logits(requests: Sequence[Request], vocab: int) -> list[Proposal]:
    """What Session.propose answers where request.logits, float32 [n, vocab], are known; there is no forward pass.

    Raises EngineError (a request out of range, logits not finite).
    """
    canvases, proposals, keep = _prepared(requests, vocab)
    check(library().ld_logits_propose(vocab, canvases, len(canvases)))
    del keep
    return proposals


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


def _prepared(requests: Sequence[Request], vocab: int) -> tuple[Any, list[Proposal], list[Any]]:
    """The C structs of the requests, the proposals that a call fills, and what must live until then."""
    canvases, places, keep = _canvases(requests, vocab)
    proposals = []
    for canvas, request in zip((canvases[place] for place in places), requests, strict=True):
        n, a = canvas.n_score, max(0, request.alternatives)
        probability, margin, entropy = np.empty((3, n), np.float32)
        alternatives = np.empty((n, a), np.int32), np.empty((n, a), np.float32)
        proposal = Proposal(np.empty(n, np.int32), probability, margin, entropy, *alternatives)
        for field in fields(Proposal):
            array = getattr(proposal, field.name)
            kind = "int32_t *" if array.dtype == np.int32 else "float *"
            setattr(canvas, field.name, ffi.cast(kind, array.ctypes.data) if array.size else ffi.NULL)
        proposals.append(proposal)
    return canvases, proposals, keep


def _canvases(requests: Sequence[Request], vocab: int) -> tuple[Any, list[int], list[Any]]:
    """The C structs of the requests, each guided one followed by its companion; the places of the requests among them;
    and the arrays that must live as long as they are used."""
    if not requests:
        raise EngineError("no canvases in the call, expected at least one")
    everything: list[Request] = []
    places: list[int] = []
    for request in requests:
        if (request.guidance == 0) != (request.unconditional is None):
            raise EngineError("guidance needs an unconditional canvas, and that needs guidance; give both or neither")
        places.append(len(everything))
        everything += [request] if request.unconditional is None else [request, request.unconditional]
    canvases = ffi.new("ld_canvas[]", len(everything))
    keep: list[Any] = []

    def pointer(name: str, values: Any) -> tuple[Any, int]:
        array = _int32(name, values)
        keep.append(array)
        return ffi.cast("int32_t *", array.ctypes.data), array.size

    def data(name: str, array: Any, dtype: type, shape: tuple[int, ...]) -> Any:
        _check_array(name, array, dtype, shape)
        keep.append(array)
        return ffi.cast("uint32_t *" if dtype is np.uint32 else "float *", array.ctypes.data)

    for canvas, request in zip(canvases, everything, strict=True):
        canvas.struct_size = ffi.sizeof("ld_canvas")
        if request.hidden is not None:
            request = _with_shadows(request)
            canvas.hidden, canvas.n_shadow = pointer("hidden", request.hidden)
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
            canvas.value_drift = data("value_drift", request.value_drift, np.float32, (rows,))
        if request.repeated is not None:
            canvas.repeated, canvas.n_repeated = pointer("repeated", request.repeated)
        if request.bias_tokens is not None:
            canvas.bias_token, canvas.n_bias = pointer("bias_tokens", request.bias_tokens)
            canvas.bias = data("bias", request.bias, np.float32, (canvas.n_bias,))
        if request.allowed is not None:
            canvas.allowed = data("allowed", request.allowed, np.uint32, (canvas.n_score, -(-vocab // 32)))
        if request.logits is not None:
            canvas.logits = data("logits", request.logits, np.float32, (canvas.n_score, vocab))
        if request.match is not None:
            match = request.match
            canvas.automaton, canvas.match_first, canvas.match_state = match.automaton.raw, match.first, match.state
            canvas.match_token, canvas.n_match = pointer("match", match.tokens)
            canvas.match_left = match.left
        canvas.attention = _choice("attention", request.attention, ATTENTION)
        canvas.scores_from = _choice("scores_from", request.scores_from, SCORES)
        canvas.feedback = _choice("feedback", request.feedback, FEEDBACK)
        canvas.logit_shift = int(request.logit_shift)
        for name in _PLAIN:
            try:
                setattr(canvas, name, getattr(request, name))
            except OverflowError:
                raise EngineError(f"{name} is {getattr(request, name)}, which is out of range") from None
    return canvases, places, keep


def _with_shadows(request: Request) -> Request:
    """The request with its shadows behind the canvas, computed and scored."""
    hidden, shadows = _int32("hidden", request.hidden), _int32("shadows", request.shadows)
    if len(hidden) != len(shadows):
        raise EngineError(f"hidden has {len(hidden)} positions and shadows {len(shadows)} tokens, expected as many")
    behind = len(request.tokens) + np.arange(len(hidden), dtype=np.int32)

    def extended(values: Int32, more: Int32) -> Int32:
        return np.concatenate([values, more]).astype(np.int32)

    return replace(
        request,
        tokens=extended(request.tokens, shadows),
        score=extended(request.score, behind),
        compute=None if request.compute is None else extended(request.compute, behind),
    )


def _int32(name: str, values: Any) -> Int32:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise EngineError(f"{name} has shape {array.shape} and type {array.dtype}, expected one row of integers")
    if array.dtype != np.int32 and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise EngineError(f"{name} holds {array.min()} to {array.max()}, expected 32-bit integers")
    return np.ascontiguousarray(array, np.int32)


def _check_array(name: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.flags.carray:
        raise EngineError(f"{name} is not a contiguous, writable {dtype.__name__} array")
    if array.shape != shape:
        raise EngineError(f"{name} has shape {list(array.shape)}, expected {list(shape)}")


def _choice(name: str, value: str, known: Mapping[str, int]) -> int:
    if value not in known:
        raise EngineError(f"{name} is '{value}', expected one of {', '.join(known)}")
    return known[value]
