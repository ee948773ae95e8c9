"""The engine as Python objects: files, models, sessions. The only module that touches cffi.

A handle is freed when its last user goes: closing a File under a model, or a model under a session, is safe; using
the closed object itself is an EngineError. The GIL is released while the engine computes. No signal handler is
installed: Ctrl-C is noticed when the running call returns; Session.cancel(), from another thread, ends it sooner.
Arrays are numpy, int32 ids and positions, float32 numbers. Not here: text, decoding, any policy.
"""

from __future__ import annotations

import functools
import os
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._abi import ffi
from .errors import Cancelled, EngineError, LocaldiffError, ModelFileError, OptionError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

PACKAGE = Path(__file__).resolve().parent
ATTENTION = {"full": 0, "causal": 1, "block_causal": 2, "prefix_causal": 3}  # LD_ATTENTION_*
SCORES = {"raw": 0, "sampled": 1}  # LD_SCORE_*
ACCESS = {"map": 0, "read": 1}  # LD_ACCESS_*


@functools.cache
def library() -> Any:
    """The loaded library. Raises EngineError where it is missing or belongs to another version of the interface."""
    path = next((PACKAGE / "lib").glob("liblocaldiff.*"), None)
    if path is None:
        raise EngineError(f"the engine library is not in {PACKAGE / 'lib'}; reinstall localdiff or run tools/dev build")
    try:
        lib = ffi.dlopen(str(path))
        found = lib.ld_abi()
    except (OSError, AttributeError) as error:
        raise EngineError(f"the engine library {path} cannot be opened ({error}); reinstall localdiff") from None
    if found != lib.LD_ABI:
        raise EngineError(f"the engine library has interface {found}, expected {lib.LD_ABI}; reinstall localdiff")
    return lib


def library_version() -> tuple[str, int]:
    """Version text and interface number of the engine library."""
    return _text(library().ld_version()), int(library().ld_abi())


def isa_rows() -> list[tuple[str, bool]]:
    """The CPU kernel rows, best first: (name, whether this processor can run it)."""
    lib = library()
    return [(_text(lib.ld_isa_name(i)), bool(lib.ld_isa_supported(i))) for i in range(lib.ld_isa_count())]


@dataclass(frozen=True)
class Peak:
    """What the machine can do at best with a kernel row, all threads together."""

    threads: int
    int8_gops: float
    f32_gflops: float
    memory_gbps: float


def measure_peak(isa: str | None = None, threads: int | None = None, seconds: float = 0.3) -> Peak:
    """Multiply-adds in registers (each counted as two) and memory reads, 1e9 per second; takes about `seconds`."""
    name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
    raw = _struct("ld_peak")
    _check(library().ld_measure_peak(name, _count("threads", threads), seconds, raw), invalid=OptionError)
    return Peak(**{field.name: getattr(raw, field.name) for field in fields(Peak)})


# ---- files ----


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; shape is numpy's order, slowest first."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    index: int


class Metadata(Mapping[str, Any]):
    """The key-values of a file as str, int, float, bool and lists of them; each is decoded when first touched."""

    def __init__(self, handle: _Handle):
        self._handle = handle  # shared with the File, which may be gone or closed
        self._values: dict[str, Any] = {}
        self._index: dict[str, int] = {}
        for i in range(library().ld_gguf_metadata_count(handle.pointer())):
            entry = self._entry(i)
            self._index[_decode(ffi.buffer(entry.key, entry.key_length)[:])] = i

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            entry = self._entry(self._index[key])
            data = ffi.buffer(entry.data, entry.bytes)[:] if entry.bytes else b""
            self._values[key] = _value(entry.type, entry.element, entry.count, data)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def count(self, key: str) -> int | None:
        """Elements of an array value without decoding it, None for other values."""
        entry = self._entry(self._index[key])
        return int(entry.count) if entry.type == _ARRAY else None

    def _entry(self, index: int) -> Any:
        entry = _struct("ld_metadata")
        _check(library().ld_gguf_metadata(self._handle.pointer(), index, entry))
        return entry


_STRING, _ARRAY = 8, 9
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}


def _value(kind: int, element: int, count: int, data: bytes) -> Any:
    if kind == _STRING:
        return _decode(data)
    if kind != _ARRAY:
        return np.frombuffer(data, _SCALARS[kind], 1)[0].item()
    if element != _STRING:
        return np.frombuffer(data, _SCALARS[element], count).tolist()
    strings, at = [], 0
    length_at = struct.Struct("<Q").unpack_from
    for _ in range(count):
        (length,) = length_at(data, at)
        strings.append(_decode(data[at + 8 : at + 8 + length]))
        at += 8 + length
    return strings


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class _Handle:
    """One handle of the library, until it is given up; the library frees it when nothing made from it is left."""

    def __init__(self, kind: str, pointer: Any, free: Callable[[Any], None], parent: Any = None):
        self._kind = kind
        self.raw: Any = pointer
        # The registry of finalizers holds the parent's pointer until the child is freed. A destructor of the pointer
        # would not do: the collector runs those of one cycle of garbage in any order.
        weakref.finalize(pointer, _free, free, int(ffi.cast("uintptr_t", pointer)), ffi.typeof(pointer), parent)

    def pointer(self) -> Any:
        if self.raw is None:
            raise EngineError(f"the {self._kind} is closed; open it again")
        return self.raw


def _free(free: Callable[[Any], None], address: int, kind: Any, parent: Any) -> None:
    free(ffi.cast(kind, address))


class _Closable:
    """An object around a handle."""

    _handle: _Handle

    @property
    def closed(self) -> bool:
        return self._handle.raw is None

    def close(self) -> None:
        """Give up the handle; memory goes when nothing made from it is open any more. Closing twice is fine."""
        self._handle.raw = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class File(_Closable):
    """An open GGUF file: validated, immutable."""

    def __init__(self, path: str | os.PathLike[str], access: str = "map"):
        if access not in ACCESS:
            raise OptionError(f"access is '{access}', expected one of {', '.join(ACCESS)}")
        lib = library()
        out = ffi.new("ld_gguf **")
        _check(lib.ld_gguf_open(os.fsencode(path), ACCESS[access], out))
        self._handle = _Handle("file", out[0], lib.ld_gguf_free)
        self.path = Path(path)

    @staticmethod
    def open(path: str | os.PathLike[str], access: str = "map") -> File:
        """Open and validate a file. access: "map" starts at once, "read" survives the file being cut while in use.

        Raises ModelFileError naming the field and its byte offset.
        """
        return File(path, access)

    @functools.cached_property
    def metadata(self) -> Metadata:
        return Metadata(self._handle)

    @functools.cached_property
    def tensors(self) -> list[TensorInfo]:
        lib, handle = library(), self._handle.pointer()
        tensors = []
        for index in range(lib.ld_gguf_tensor_count(handle)):
            raw = _struct("ld_tensor")
            _check(lib.ld_gguf_tensor(handle, index, raw))
            name = _decode(ffi.buffer(raw.name, raw.name_length)[:])
            shape = tuple(reversed([int(raw.dims[d]) for d in range(raw.n_dims)]))
            tensors.append(TensorInfo(name, _text(raw.type_name), shape, int(raw.bytes), index))
        return tensors

    @functools.cached_property
    def _tensor_by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    def decode(self, name: str) -> Float32:
        """The tensor's values as float32 in its shape. Raises ModelFileError where it does not exist."""
        handle = self._handle.pointer()
        if name not in self._tensor_by_name:
            raise ModelFileError(f"{self.path}: there is no tensor '{name}' among its {len(self.tensors)}")
        tensor = self._tensor_by_name[name]
        out = np.empty(tensor.shape, np.float32)
        rows = out.size // tensor.shape[-1] if tensor.shape else 1
        _check(library().ld_gguf_decode(handle, tensor.index, 0, rows, ffi.cast("float *", out.ctypes.data)))
        return out


# ---- models ----


@dataclass(frozen=True)
class ModelInfo:
    """The shape of a model; weight_bytes is the memory its packed weights take."""

    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    context_length: int
    parameters: int
    weight_bytes: int
    arch: str
    isa: str


class EngineModel(_Closable):
    """Weights packed for one kernel row; immutable, may be shared between threads."""

    def __init__(self, file: File, isa: str | None = None, threads: int | None = None):
        lib = library()
        name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        options = _struct("ld_model_options", threads=_count("threads", threads), isa=name)
        out = ffi.new("ld_model **")
        parent = file._handle.pointer()
        _check(lib.ld_model_open(parent, options, out), invalid=OptionError)
        self._handle = _Handle("model", out[0], lib.ld_model_free, parent)

    @functools.cached_property
    def info(self) -> ModelInfo:
        raw = _struct("ld_model_info")
        _check(library().ld_model_get_info(self._handle.pointer(), raw))
        values = {field.name: getattr(raw, field.name) for field in fields(ModelInfo)}
        values.update(arch=_text(raw.arch), isa=_text(raw.isa))
        return ModelInfo(**values)

    def session(
        self, slots: int = 1, slot_length: int | None = None, rows: int | None = None, threads: int | None = None
    ) -> Session:
        """Take the memory of a session: `slots` canvases of `slot_length` positions (default: the context length).

        rows      computed by one call at most (default: slots * slot_length)
        raises    OptionError for sizes out of range, EngineError where the memory cannot be had
        """
        return Session(self, slots, slot_length, rows, threads)

    def plan(
        self, slots: int = 1, slot_length: int | None = None, rows: int | None = None, threads: int | None = None
    ) -> int:
        """Bytes that a session with these sizes would take."""
        out = ffi.new("uint64_t *")
        options = _session_options(slots, slot_length, rows, threads)
        _check(library().ld_session_plan(self._handle.pointer(), options, out), invalid=OptionError)
        return int(out[0])


# ---- sessions ----


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


class Session(_Closable):
    """The state of some canvases. One thread at a time, except for cancel()."""

    def __init__(self, model: EngineModel, slots: int, slot_length: int | None, rows: int | None, threads: int | None):
        lib = library()
        options = _session_options(slots, slot_length, rows, threads)
        out = ffi.new("ld_session **")
        parent = model._handle.pointer()
        _check(lib.ld_session_create(parent, options, out), invalid=OptionError)
        self._handle = _Handle("session", out[0], lib.ld_session_free, parent)
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
        _check(library().ld_session_propose(handle, canvases, len(requests)))
        del keep
        return proposals

    def logits(self, requests: Sequence[Request]) -> list[Float32]:
        """The same forward pass; the raw logits of each canvas's scored positions, [n, vocab]."""
        handle = self._handle.pointer()
        canvases, keep = _canvases(requests)
        sizes = [canvas.n_score for canvas in canvases]
        out = np.empty((sum(sizes), self._vocab), np.float32)
        _check(library().ld_session_logits(handle, canvases, len(requests), ffi.cast("float *", out.ctypes.data)))
        del keep
        return np.split(out, np.cumsum(sizes)[:-1])

    def cancel(self) -> None:
        """Make the running call, or the next one, raise Cancelled soon. From any thread; closed: nothing."""
        handle = self._handle.raw
        if handle is not None:
            library().ld_session_cancel(handle)

    def timings(self) -> Timings:
        raw = _struct("ld_timings")
        _check(library().ld_session_timings(self._handle.pointer(), raw))
        return Timings(**{field.name: getattr(raw, field.name) for field in fields(Timings)})


def _session_options(slots: int, slot_length: int | None, rows: int | None, threads: int | None) -> Any:
    if slots < 1:
        raise OptionError(f"slots is {slots}, expected at least 1")
    return _struct(
        "ld_session_options",
        slots=slots,
        slot_length=_count("slot_length", slot_length),
        rows=_count("rows", rows),
        threads=_count("threads", threads),
    )


def _canvases(requests: Sequence[Request]) -> tuple[Any, list[Any]]:
    """The C structs of the requests, and the arrays that must live as long as they are used."""
    if not requests:
        raise EngineError("no canvases in the call, expected at least one")
    canvases, keep = ffi.new("ld_canvas[]", len(requests)), []

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


def _choice(name: str, value: str, known: Mapping[str, int]) -> int:
    if value not in known:
        raise EngineError(f"{name} is '{value}', expected one of {', '.join(known)}")
    return known[value]


def _count(name: str, value: int | None) -> int:
    """A count for the engine; 0 there means the default."""
    if value is None:
        return 0
    if not 1 <= value < 2**31:
        raise OptionError(f"{name} is {value}, expected at least 1")
    return value


def _struct(name: str, **values: Any) -> Any:
    out = ffi.new(f"{name} *", values)
    out.struct_size = ffi.sizeof(name)
    return out


def _text(pointer: Any) -> str:
    return _decode(ffi.string(pointer)) if pointer else ""


def _check(status: int, invalid: type[LocaldiffError] = EngineError) -> None:
    """Raise the exception of a status; the message is the engine's own."""
    lib = library()
    if status == lib.LD_OK:
        return
    kinds: dict[int, type[LocaldiffError]]
    kinds = {lib.LD_FILE: ModelFileError, lib.LD_INVALID: invalid, lib.LD_CANCELLED: Cancelled}
    raise kinds.get(status, EngineError)(_text(lib.ld_last_error()))
