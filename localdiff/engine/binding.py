"""The library itself: opening it, its errors and structs, the lifetimes of its handles, what the machine offers.

Everything here is shared by the modules of this package; nothing here knows files, models or sessions.
"""

from __future__ import annotations

import functools
import numbers
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .._abi import ffi
from ..errors import Cancelled, EngineError, LocaldiffError, ModelFileError, OptionError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

PACKAGE = Path(__file__).resolve().parent.parent


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
    return text_of(library().ld_version()), int(library().ld_abi())


def isa_rows() -> list[tuple[str, bool]]:
    """The CPU kernel rows, best first: (name, whether this processor can run it)."""
    lib = library()
    return [(text_of(lib.ld_isa_name(i)), bool(lib.ld_isa_supported(i))) for i in range(lib.ld_isa_count())]


def load_device(path: Path) -> None:
    """Open a device plug-in. Raises OptionError with the reason where it cannot be used."""
    check(library().ld_device_load(ffi.new("char[]", os.fsencode(path))), invalid=OptionError)


def device_memory(path: Path) -> tuple[int, int]:
    """Bytes of a device's memory: free, total."""
    free, total = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    check(library().ld_device_memory(ffi.new("char[]", os.fsencode(path)), free, total), invalid=OptionError)
    return int(free[0]), int(total[0])


@dataclass(frozen=True)
class Peak:
    """What the machine can do at best with a kernel row, all threads together; bf16_gflops of a GPU alone."""

    threads: int
    int8_gops: float
    f32_gflops: float
    memory_gbps: float
    bf16_gflops: float


def measure_peak(isa: str | None = None, threads: int | None = None, seconds: float = 0.3) -> Peak:
    """Multiply-adds in registers (each counted as two) and memory reads, 1e9 per second; takes about `seconds`."""
    name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
    raw = new_struct("ld_peak")
    check(library().ld_measure_peak(name, count_of("threads", threads), seconds, raw), invalid=OptionError)
    return Peak(**{field.name: getattr(raw, field.name) for field in fields(Peak)})


def measure_device_peak(path: str | os.PathLike[str], seconds: float = 0.3) -> Peak:
    """The same of a plug-in's device; what it has no measure for is 0."""
    raw = new_struct("ld_peak")
    where = ffi.new("char[]", os.fsencode(path))
    check(library().ld_measure_device_peak(where, seconds, raw), invalid=OptionError)
    return Peak(**{field.name: getattr(raw, field.name) for field in fields(Peak)})


# ---- handles ----


class Handle:
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


class Closable:
    """An object around a handle."""

    _handle: Handle

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


# ---- structs, texts, errors ----


def count_of(name: str, value: int | None) -> int:
    """A count for the engine; 0 there means the default."""
    if value is None:
        return 0
    if not isinstance(value, numbers.Integral):
        raise OptionError(f"{name} is {value!r}, expected a whole number")
    if not 1 <= value < 2**31:
        raise OptionError(f"{name} is {value}, expected at least 1")
    return value


def new_struct(name: str, **values: Any) -> Any:
    out = ffi.new(f"{name} *", values)
    out.struct_size = ffi.sizeof(name)
    return out


def text_of(pointer: Any) -> str:
    return decode_text(ffi.string(pointer)) if pointer else ""


def check(status: int, invalid: type[LocaldiffError] = EngineError) -> None:
    """Raise the exception of a status; the message is the engine's own."""
    lib = library()
    if status == lib.LD_OK:
        return
    kinds: dict[int, type[LocaldiffError]]
    kinds = {lib.LD_FILE: ModelFileError, lib.LD_INVALID: invalid, lib.LD_CANCELLED: Cancelled}
    raise kinds.get(status, EngineError)(text_of(lib.ld_last_error()))


def decode_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
