"""The GPU's plug-in that tests run: $LOCALDIFF_CUDA, else the one whose kernels are emulated on the processor, which
opens a stand-in for NVIDIA's library."""

import os
from pathlib import Path

import pytest

from localdiff.devices import find_cublaslt
from localdiff.engine import isa_rows

BUILD = Path(__file__).resolve().parent.parent / "build" / "dev"
FAKE_CUBLASLT = BUILD / "liblocaldiff_fake_cublaslt.so"
EMULATED = "LOCALDIFF_CUDA" not in os.environ
PLUGIN = Path(os.environ.get("LOCALDIFF_CUDA", BUILD / "liblocaldiff_cuda_emulated.so"))
library = FAKE_CUBLASLT if EMULATED else find_cublaslt()
if library is not None:
    os.environ.setdefault("LOCALDIFF_CUBLASLT", str(library))
needs_plugin = pytest.mark.skipif(not PLUGIN.is_file(), reason="the emulated plug-in is not built: tools/dev build")
# every kernel row that runs here, and the GPU's kernels
DEVICES = [name for name, supported in isa_rows() if supported] + [pytest.param("cuda", marks=needs_plugin)]
