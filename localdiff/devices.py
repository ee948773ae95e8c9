"""Where models run: the processor, an NVIDIA GPU through its plug-in library, or llama.cpp (localdiff/llamacpp).

The plug-in is $LOCALDIFF_CUDA, else that of the package localdiff-cuda13, else the one that was built into the tree. It
is opened only where it is asked for ("cuda") or may be of use ("auto"); why it is not used is a sentence for people.
It is told where this Python's packages have cuBLASLt, in $LOCALDIFF_CUBLASLT unless that is set.
llama.cpp is taken only where it is asked for: it keeps nothing between steps, so that caches cannot be had with it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from .engine import PACKAGE, load_device
from .errors import OptionError

DEVICES = ("auto", "cpu", "cuda", "llamacpp")
_PACKAGE, _LIBRARY = "localdiff_cuda13", "liblocaldiff_cuda.so"


@dataclass(frozen=True)
class Device:
    """name: "cpu", "cuda" or "llamacpp"; where: for EngineModel, "cpu" or the plug-in's path; reason: why this one."""

    name: str
    where: str
    reason: str

    def for_layers(self, gpu_layers: int | None) -> Device:
        """This device, which can take a number of layers. Raises OptionError for one without a GPU."""
        if gpu_layers is not None and self.name != "cuda":
            raise OptionError(f"gpu_layers is {gpu_layers}, but the device is {self.name} ({self.reason})")
        return self


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(name: str) -> Device:
    """The device that `name` asks for. Raises OptionError where it cannot be had."""
    if name not in DEVICES:
        raise OptionError(f"device is '{name}', expected one of {', '.join(DEVICES)}")
    if name in ("cpu", "llamacpp"):
        return Device(name, name, "as asked for")
    path, refusal = _cuda()
    if refusal is None:
        return Device("cuda", str(path), f"plug-in {path}")
    if name == "cuda":
        raise OptionError(f"device is 'cuda', but {refusal}")
    return Device("cpu", "cpu", refusal)


@functools.cache
def _cuda() -> tuple[Path | None, str | None]:
    """The plug-in, and why it cannot be used: None where it can."""
    path = _plugin()
    if path is None:
        return None, "the GPU plug-in is not installed (pip install localdiff-cuda13)"
    library = find_cublaslt()
    if library is not None:
        os.environ.setdefault("LOCALDIFF_CUBLASLT", str(library))
    try:
        load_device(path)
    except OptionError as error:
        return path, str(error)
    return path, None


def find_cublaslt() -> Path | None:
    """The library of NVIDIA's package nvidia-cublas, or nvidia-cublas-cu12, the newest where there are several."""
    package = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    found = [path for place in places for version in (13, 12) for path in place.glob(f"*/lib/libcublasLt.so.{version}")]
    return max(found, key=lambda path: path.suffix, default=None)


def _plugin() -> Path | None:
    named = os.environ.get("LOCALDIFF_CUDA")
    if named:
        return Path(named)
    package = importlib.util.find_spec(_PACKAGE)
    places = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    return next((path for place in (*places, PACKAGE / "lib") if (path := place / _LIBRARY).is_file()), None)
