"""The GPU's plug-in that tests run: $LOCALDIFF_CUDA, else the one whose kernels are emulated on the processor."""

import os
from pathlib import Path

import pytest

from localdiff.engine import isa_rows

PLUGIN = Path(__file__).resolve().parent.parent / "build" / "dev" / "liblocaldiff_cuda_emulated.so"
PLUGIN = Path(os.environ.get("LOCALDIFF_CUDA", PLUGIN))
needs_plugin = pytest.mark.skipif(not PLUGIN.is_file(), reason="the emulated plug-in is not built: tools/dev build")
# every kernel row that runs here, and the GPU's kernels
DEVICES = [name for name, supported in isa_rows() if supported] + [pytest.param("cuda", marks=needs_plugin)]
