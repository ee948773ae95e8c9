"""Models: weights packed for one kernel row, and what their sessions take."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .._abi import ffi
from ..errors import OptionError
from .binding import Closable, Handle, check, count_of, library, new_struct, text_of
from .files import File
from .sessions import Session, session_options


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
    skipped: str = ""  # tensors of the file that the model does not need, as a sentence
    lengths: int = 0  # classes of its length head, see Session.lengths; 0 = it has none
    feedback: bool = False  # whether a step may tell the next one what it expected, see Request.feedback
    gpu_layers: int = 0  # that a GPU computes, with the head


@dataclass(frozen=True)
class ModelMemory:
    """Bytes: packed weights in whole pages; tables that stay in the file; the most that opening takes at one time;
    weights in the memory of a GPU, which the others leave out, with the copies that fast arithmetic made so far."""

    weights: int
    tables: int
    opening: int
    device_weights: int


class EngineModel(Closable):
    """Weights packed for one kernel row; immutable, may be shared between threads.

    plan      True: weights are counted, not packed; info, memory and plan() answer, sessions are refused
    adapters  LoRA files and their scales; they may be closed afterwards
    device    "cpu", or the path of a device plug-in library
    gpu_layers  how many layers that device takes, the last ones; None: as many as its memory holds
    """

    def __init__(
        self,
        file: File,
        isa: str | None = None,
        threads: int | None = None,
        plan: bool = False,
        adapters: Sequence[tuple[File, float]] = (),
        device: str | os.PathLike[str] = "cpu",
        gpu_layers: int | None = None,
    ):
        lib = library()
        name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        where = ffi.new("char[]", os.fsencode(device))
        options = new_struct(
            "ld_model_options", threads=count_of("threads", threads), isa=name, plan=int(plan), device=where
        )
        if gpu_layers is not None and not 0 <= gpu_layers < 2**31:
            raise OptionError(f"gpu_layers is {gpu_layers}, expected at least 0")
        options.gpu_layers = 0 if gpu_layers is None else gpu_layers or -1
        # Kept until the call is over: a struct of cffi does not own what it points to.
        handles = ffi.new("ld_gguf *[]", [adapter._handle.pointer() for adapter, _ in adapters])
        scales = ffi.new("float[]", [scale for _, scale in adapters])
        options.n_adapters, options.adapters, options.adapter_scales = len(adapters), handles, scales
        out = ffi.new("ld_model **")
        self.device = "cpu" if str(device) == "cpu" else "cuda"
        parent = file._handle.pointer()
        check(lib.ld_model_open(parent, options, out), invalid=OptionError)
        self._handle = Handle("model", out[0], lib.ld_model_free, parent)

    @functools.cached_property
    def info(self) -> ModelInfo:
        return self._read_info()

    def _read_info(self) -> ModelInfo:
        raw = new_struct("ld_model_info")
        check(library().ld_model_get_info(self._handle.pointer(), raw))
        values = {field.name: getattr(raw, field.name) for field in fields(ModelInfo)}
        values.update(arch=text_of(raw.arch), isa=text_of(raw.isa), skipped=text_of(raw.skipped))
        values.update(feedback=bool(raw.feedback))
        return ModelInfo(**values)

    @property
    def memory(self) -> ModelMemory:
        raw = new_struct("ld_model_memory")
        check(library().ld_model_get_memory(self._handle.pointer(), raw))
        return ModelMemory(**{field.name: getattr(raw, field.name) for field in fields(ModelMemory)})

    def session(
        self,
        slots: int = 1,
        slot_length: int | None = None,
        rows: int | None = None,
        threads: int | None = None,
        math: str = "exact",
    ) -> Session:
        """Take the memory of a session: `slots` canvases of `slot_length` positions (default: the context length).

        rows      computed by one call at most (default: slots * slot_length)
        math      "exact" or "fast": the arithmetic of quantised weights
        raises    OptionError for sizes out of range, EngineError where the memory cannot be had
        """
        return Session(self, session_options(slots, slot_length, rows, threads, math))

    def plan(
        self, slots: int = 1, slot_length: int | None = None, rows: int | None = None, threads: int | None = None
    ) -> int:
        """Bytes that a session with these sizes would take."""
        return self._plan(library().ld_session_plan, session_options(slots, slot_length, rows, threads))

    def plan_device(
        self,
        slots: int = 1,
        slot_length: int | None = None,
        rows: int | None = None,
        threads: int | None = None,
        math: str = "exact",
    ) -> int:
        """Bytes that it would take of a GPU's memory besides."""
        return self._plan(library().ld_session_plan_device, session_options(slots, slot_length, rows, threads, math))

    def _plan(self, ask: Callable[[Any, Any, Any], int], options: Any) -> int:
        out = ffi.new("uint64_t *")
        check(ask(self._handle.pointer(), options, out), invalid=OptionError)
        return int(out[0])
