"""The engine as Python objects: files, models, sessions, automata. The only package that touches cffi.

A handle is freed when its last user goes: closing a File under a model, or a model under a session, is safe; using
the closed object itself is an EngineError. The GIL is released while the engine computes. No signal handler is
installed: Ctrl-C is noticed when the running call returns; Session.cancel(), from another thread, ends it sooner.
Arrays are numpy, int32 ids and positions, float32 numbers. Not here: text, decoding, any policy.
"""

from .automata import Automaton, Match
from .binding import (
    PACKAGE,
    Float32,
    Int32,
    Peak,
    device_memory,
    isa_rows,
    library,
    library_version,
    load_device,
    measure_device_peak,
    measure_peak,
)
from .files import File, Metadata, TensorInfo
from .models import EngineModel, ModelInfo, ModelMemory
from .quantiser import can_quantize, quantize
from .sessions import Observation, Proposal, Request, Session, Timings, pack_tokens, propose_logits

__all__ = [
    "PACKAGE",
    "Automaton",
    "EngineModel",
    "File",
    "Float32",
    "Int32",
    "Match",
    "Metadata",
    "ModelInfo",
    "ModelMemory",
    "Observation",
    "Peak",
    "Proposal",
    "Request",
    "Session",
    "TensorInfo",
    "Timings",
    "can_quantize",
    "device_memory",
    "isa_rows",
    "library",
    "library_version",
    "load_device",
    "measure_device_peak",
    "measure_peak",
    "pack_tokens",
    "propose_logits",
    "quantize",
]
