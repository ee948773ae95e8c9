"""How much memory a generation will take, before anything is loaded.

The engine opens the file to plan: it walks the model as for loading, but counts what packing would take, so the sizes
of weights and session are its own. What Python takes beside it was measured and stands below as constants. Pages of the
file count as long as they are mapped, as the system counts them. Not here: conversations, whose templates are rendered
in another process, and files read with access="read", which stay in memory whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .adapters import Lora, opened
from .devices import choose
from .engine import EngineModel, File
from .errors import OptionError
from .hub.store import located
from .sessions import rounded_length

_MIB = 1 << 20

# Measured on Linux x86-64 with Python 3.11 and numpy 2 as resident sets, over tokenizers of 4,096 to 151,936 tokens.
PROCESS = 34 * _MIB  # interpreter, numpy and engine, ready to load
TOKENIZER = 6 * _MIB  # the tokenizer's code
METADATA_DECODED = 6.5  # bytes per byte of metadata: Python's copy of tokens and merges
METADATA_BUILDING = 25.0  # ... with the tokenizer, while it is built
METADATA_KEPT = 18.0  # ... and afterwards
LOOKED_UP = 64 << 10  # a row that is looked up in a mapped table brings in this much around it (Linux's fault-around)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, and what they are for.

    weights   packed weights
    session   activations, keys and values, scratch
    tables    pages of looked-up embedding rows, in the file's own mapping
    process   Python, the engine and the tokenizer
    total     the largest resident set that the process reaches; loading may need more than generating does
    gpu_weights, gpu_session   what a GPU's memory holds of gpu_layers of the `layers`, which the others leave out
    """

    arch: str
    isa: str
    length: int
    batch: int
    weights: int
    session: int
    tables: int
    process: int
    total: int
    layers: int
    gpu_layers: int
    gpu_weights: int
    gpu_session: int


def plan_memory(
    path: str | os.PathLike[str],
    length: int | None = None,
    batch: int = 1,
    threads: int | None = None,
    isa: str | None = None,
    lora: Lora = (),
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> MemoryPlan:
    """Plan the memory of a process that loads a GGUF file and fills `batch` canvases of `length` positions at once.

    length   prompt included; None: the context length of the model
    threads, isa, lora, device, gpu_layers   as in localdiff.load, but for the processor where no device is named
    raises   ModelFileError, OptionError
    """
    if batch < 1:
        raise OptionError(f"batch is {batch}, expected at least 1")
    chosen = choose("cpu" if isa is not None and device == "auto" else device).for_layers(gpu_layers)
    if chosen.name == "llamacpp":
        raise OptionError("what llama.cpp takes is not known beforehand; plan for the device cpu or cuda")
    with (
        File.open(located(path)) as file,
        opened(lora) as adapters,
        EngineModel(
            file, isa=isa, plan=True, adapters=adapters, device=chosen.where, gpu_layers=gpu_layers
        ) as model,
    ):
        info, memory, metadata = model.info, model.memory, file.metadata.nbytes
        length = info.context_length if length is None else length
        if not 1 <= length <= info.context_length:
            raise OptionError(
                f"length is {length}, but the context of the model has 1 to {info.context_length} positions"
            )
        sizes = batch, rounded_length(length, info.context_length)
        session, gpu_session = model.plan(*sizes, threads=threads), model.plan_device(*sizes)
    tables = min(memory.tables, batch * length * LOOKED_UP)
    process = PROCESS + TOKENIZER + round(METADATA_KEPT * metadata)
    opening = PROCESS + round(METADATA_DECODED * metadata) + memory.opening
    tokenizing = PROCESS + TOKENIZER + round(METADATA_BUILDING * metadata) + memory.weights
    generating = process + memory.weights + session + tables
    total = max(opening, tokenizing, generating)
    on_gpu = info.layers, info.gpu_layers, memory.device_weights, gpu_session
    return MemoryPlan(info.arch, info.isa, length, batch, memory.weights, session, tables, process, total, *on_gpu)
