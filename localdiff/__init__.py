"""localdiff: the local runtime for diffusion language models.

    model = localdiff.load("model.gguf")
    print(model.generate("Once upon a time", max_new_tokens=64).text)

Importing this package loads nothing else; each public name is fetched from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .canvas import Canvas, Hole
    from .generation import DenoiseEvent, DenoiseStream, Generation
    from .loading import generate, infill, load
    from .model import Model
    from .options import GenerateOptions
    from .spec import DiffusionSpec

__version__ = "0.1.0"

_HOMES = {
    "Canvas": "canvas",
    "DenoiseEvent": "generation",
    "DenoiseStream": "generation",
    "DiffusionSpec": "spec",
    "GenerateOptions": "options",
    "Generation": "generation",
    "Hole": "canvas",
    "Model": "model",
    "generate": "loading",
    "infill": "loading",
    "load": "loading",
}
__all__ = [
    "Canvas", "DenoiseEvent", "DenoiseStream", "DiffusionSpec", "GenerateOptions", "Generation", "Hole", "Model",
    "__version__", "errors", "generate", "infill", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module(".errors", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'localdiff' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
