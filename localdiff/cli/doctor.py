"""`localdiff doctor`: what this installation can use, and the flags that compile a C program against it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import click

from .. import __version__
from ..errors import LocaldiffError
from .flags import Command


@click.command(cls=Command)
@click.option("--cflags", is_flag=True, help="print the compiler flags for C programs, nothing else")
@click.option("--libs", is_flag=True, help="print the linker flags for C programs, nothing else")
def command(cflags: bool, libs: bool) -> int:
    """Show version, processor, threads and the default model; exit code 1 where something is missing."""
    from ..devices import usable_processors
    from ..engine import PACKAGE, isa_rows, library_version
    from ..loading import EMBEDDED

    if cflags or libs:
        where = PACKAGE / "lib"
        wanted = [f"-I{PACKAGE / 'include'}"] if cflags else []
        wanted += [f"-L{where}", "-llocaldiff", f"-Wl,-rpath,{where}"] if libs else []
        print(" ".join(wanted))
        return 0
    healthy = EMBEDDED.is_file()
    print(f"localdiff  {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        version, interface = library_version()
        rows = isa_rows()
        best = next(name for name, supported in rows if supported)
        print(f"engine     {version}, interface {interface}, {PACKAGE / 'lib'}")
        shown = [f"{name} (best)" if name == best else name if ok else f"no {name}" for name, ok in rows]
        print(f"kernels    {', '.join(shown)}")
    except LocaldiffError as error:
        print(f"engine     {error}")
        healthy = False
    print(f"device     {_device()}")
    print(f"cublaslt   {_cublaslt()}")
    print(f"llamacpp   {_llamacpp()}")
    print(f"threads    {usable_processors()}")
    print(f"model      {EMBEDDED}{'' if EMBEDDED.is_file() else ' is missing; reinstall localdiff'}")
    sys.stdout.flush()
    return 0 if healthy else 1


def _device() -> str:
    """What `--device auto` takes, and why."""
    from ..devices import choose
    from ..engine import device_memory

    try:
        found = choose("auto")
        if found.name == "cpu":
            return f"{found.name}: {found.reason}"
        free, total = (size / 2**30 for size in device_memory(Path(found.where)))
    except LocaldiffError as error:
        return str(error)
    short = "layers that do not fit stay on the processor, see --gpu-layers"
    return f"{found.name}: {found.reason}; {free:.1f} of {total:.1f} GiB are free, {short}"


def _cublaslt() -> str:
    """What multiplies where products in bfloat16 are asked for."""
    from ..devices import choose
    from ..engine import EngineModel, File
    from ..loading import EMBEDDED

    try:
        device = choose("auto")
        if device.name != "cuda":
            return "not looked for: no GPU is used"
        os.environ["LOCALDIFF_CUDA_PRODUCTS"] = "bfloat16"  # this process computes nothing
        with File.open(EMBEDDED) as file, EngineModel(file, device=device.where, plan=True) as model:
            return f"{model.info.isa}; taken with LOCALDIFF_CUDA_PRODUCTS=bfloat16 only"
    except LocaldiffError as error:
        return str(error)


def _llamacpp() -> str:
    """What `--device llamacpp` takes, and that nothing else takes it."""
    from ..llamacpp import look

    try:
        return f"{look().what}; taken with --device llamacpp only, for it has no caches"
    except LocaldiffError as error:
        return str(error)
