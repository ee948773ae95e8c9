"""What `localdiff plan` says, against what loading packs and against the resident set of a process that generates."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from text_metadata import tiny_bpe
from tiny_gguf import write_tiny

from localdiff.engine import EngineModel, File, isa_rows
from localdiff.errors import OptionError
from localdiff.planning import plan_memory

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
IMPORTED = 33 * MIB  # resident set behind planning.PROCESS; other builds of Python and numpy take more or less

# /proc and not getrusage: the maximum that getrusage gives goes through fork and exec, so a child would tell that of a
# large parent.
STATUS = """
import re
from pathlib import Path

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
"""
GENERATE = STATUS + """
import json, sys
import localdiff, localdiff.engine
localdiff.load, localdiff.engine.library()
imported = resident("VmRSS")
path, length, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = localdiff.load(path, threads=2)
prompts = [[5] * (length // 2)] * batch
model.generate(prompts, max_new_tokens=length - length // 2, decoder="topk", steps=2, seed=1)
print(json.dumps([imported, resident("VmHWM")]))
"""
PLAN = STATUS + """
import json, sys
from dataclasses import asdict
from localdiff.planning import plan_memory
plan = plan_memory(sys.argv[1], threads=2)
print(json.dumps([resident("VmHWM"), asdict(plan)]))
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident sets are read from /proc")


def child(code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_planning_counts_what_packing_takes(kind: str, tmp_path: Path) -> None:
    with File.open(write_tiny(tmp_path / "tiny.gguf", dim=96, layers=2, kind=kind)) as file:
        for isa in [name for name, supported in isa_rows() if supported]:
            with EngineModel(file, isa=isa, plan=True) as planned, EngineModel(file, isa=isa, threads=2) as packed:
                assert planned.info == packed.info
                assert planned.memory == packed.memory
                assert planned.plan(3, 40, threads=2) == packed.plan(3, 40, threads=2)
                assert packed.info.weight_bytes <= packed.memory.weights + 2**16  # vectors lie elsewhere
                largest = max(tensor.nbytes for tensor in file.tensors)
                assert packed.memory.opening <= packed.memory.weights + largest


def test_a_planned_model_cannot_compute(tmp_path: Path) -> None:
    with (
        File.open(write_tiny(tmp_path / "tiny.gguf")) as file,
        EngineModel(file, plan=True) as model,
        pytest.raises(OptionError, match="was opened to plan"),
    ):
        model.session()


@needs_proc
@pytest.mark.parametrize(
    ("kind", "dim", "layers", "length", "batch"),
    [("F32", 32, 1, 64, 1), ("Q8_0", 512, 8, 256, 2), ("Q4_0", 768, 12, 256, 1), ("F16", 640, 6, 200, 1)],
)
def test_the_prediction_holds(kind: str, dim: int, layers: int, length: int, batch: int, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", context=256, dim=dim, layers=layers, kind=kind)
    predicted = plan_memory(path, length, batch, threads=2).total
    imported, measured = child(GENERATE, path, length, batch)
    assert abs(predicted - measured) <= 0.05 * measured + abs(imported - IMPORTED)


@needs_proc
def test_a_plan_reads_no_weights(tmp_path: Path) -> None:
    """The shape of a 7B model in a file whose weights are a hole."""
    dim, ffn, layers, vocab, path = 4096, 11008, 32, 32000, tmp_path / "7b.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(128)
    writer.add_array("tokenizer.ggml.tokens", tiny_bpe()["tokenizer.ggml.tokens"])
    size = 0

    def add(name: str, *shape: int) -> None:
        nonlocal size
        kind = gguf.GGMLQuantizationType.Q4_0 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = math.prod(shape) // block * block_bytes
        stored = (*shape[:-1], shape[-1] // block * block_bytes) if len(shape) == 2 else shape
        writer.add_tensor_info(f"{name}.weight", stored, np.dtype("u1" if block > 1 else "f4"), nbytes, kind)
        size += -(-nbytes // 32) * 32

    add("token_embd", vocab, dim)
    add("output", vocab, dim)
    add("output_norm", dim)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", dim, dim)
        for name, shape in {"ffn_gate": (ffn, dim), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}.items():
            add(f"blk.{layer}.{name}", *shape)
        add(f"blk.{layer}.attn_norm", dim)
        add(f"blk.{layer}.ffn_norm", dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + size)

    held, plan = child(PLAN, path)
    assert held < 100 * MIB
    assert size <= plan["weights"] + plan["tables"] + 80 * MIB  # the token table lies in the file
    assert plan["weights"] < 1.1 * size
    state = 2 * layers * 4096 * dim * 4  # keys and values in float32
    assert state < plan["session"] < 1.3 * state
    assert plan["total"] == plan["weights"] + plan["session"] + plan["tables"] + plan["process"]
