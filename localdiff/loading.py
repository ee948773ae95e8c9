"""load(): a file, its record, its adapters and the device that computes become a Model; and the embedded model.

generate() and infill() of the package itself load the embedded model once and keep it. Not here: what a Model does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .adapters import Lora, opened, scaled_paths
from .arithmetic import check
from .canvas import Hole
from .decode.loop import Job
from .devices import choose
from .engine import EngineModel, File
from .errors import ModelFileError
from .hub.store import located
from .model import Model, Prompt
from .options import GenerateOptions
from .presets import record_in_force

EMBEDDED = Path(__file__).parent / "models" / "localdiff-stories.gguf"


def load(
    path: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    diffusion: str | None = None,
    isa: str | None = None,
    access: str = "map",
    lora: Lora = (),
    math: str = "auto",
    gpu_layers: int | None = None,
) -> Model:
    """Load a GGUF file.

    path       a file, or the name of a downloaded model; None: the small story model that comes with the package
    device     "cpu", "cuda", "llamacpp" (llama.cpp computes), or "auto": a GPU where one can be used (not with isa)
    threads    None: all that the process may use
    diffusion  a preset or `mask=811,shift=1,attn=full,...`, for files without a diffusion record or to override it
    isa        name of a CPU kernel row, None = the best
    access     "map" starts at once; "read" survives the file being changed while in use
    lora       GGUF adapters for this model, each a path or "PATH=SCALE"; the file of the model stays as it is
    math       arithmetic of quantised weights: "exact", "fast", or "auto", fast where it hardly changes the output
    gpu_layers how many layers a GPU takes, the last ones; None: as many as its memory holds
    raises     ModelFileError, OptionError
    """
    chosen = choose("cpu" if isa is not None and device == "auto" else device).for_layers(gpu_layers)
    if path is None and not EMBEDDED.is_file():
        raise ModelFileError(f"the embedded model {EMBEDDED} is missing; name a GGUF file, or reinstall localdiff")
    where = EMBEDDED if path is None else located(path)
    check(math)
    with File.open(where, access) as file, opened(lora, access) as adapters:
        metadata = file.metadata
        found = record_in_force(metadata, diffusion)
        check_job: Callable[[Job], None] | None = None
        if chosen.name == "llamacpp":
            from . import llamacpp

            llamacpp.check_loading(isa, math, bool(adapters))
            engine: EngineModel = llamacpp.LlamaModel(file)
            check_job = llamacpp.check_job
        else:
            engine = EngineModel(
                file, isa=isa, threads=threads, adapters=adapters, device=chosen.where, gpu_layers=gpu_layers
            )
        notices = list(found.notices)
        if left := engine.info.skipped:
            notices.append(f"{where.name} holds what the model does not need: {left}")
        if threads is not None and engine.info.gpu_layers == engine.info.layers:
            notices.append(f"all {engine.info.layers} layers are on the GPU, so threads ({threads}) changes nothing")
        beside = scaled_paths(lora)
        return Model(engine, dict(metadata), found.spec, where, threads, tuple(notices), math, beside, check_job)


@functools.cache
def _embedded() -> Model:
    return load()


def generate(prompt: Prompt, options: GenerateOptions | None = None, **named: Any) -> Any:
    """Continue a prompt with the embedded model; see Model.generate."""
    return _embedded().generate(prompt, options, **named)


def infill(text: str | Sequence[str | Hole], options: GenerateOptions | None = None, **named: Any) -> Any:
    """Fill the holes of a text with the embedded model; see Model.infill."""
    return _embedded().infill(text, options, **named)
