"""The GPU engine, measured: `tools/dev gpu` runs it last. Prints a table and writes bench/results/DATE-gpu-CARD.json.

Milliseconds per forward pass (median, minimum, maximum; every row scored, sampling included) at several numbers of
rows for a 7B Llama shape with random weights, per type and way of multiplying (WAYS), beside what the card reaches at
best: products of int8 and bfloat16 in registers, and copying. In the same run, each in a process of its own: the ways;
llama.cpp's forward pass of the same file (all logits come back to the processor, as its interface has it), in the
Python that $LOCALDIFF_LLAMA_PYTHON names or this one; and torch's in bfloat16 of the same shape. A way or peer that
cannot run is told as absent, with its reason. Then tokens per second of the default model and of a 7B shape, a soak of
steps whose results and free memory must not change, and which way was the fastest. Without a GPU it says what is absent
and ends with 77. Not here: correctness (tests/test_cuda.py, tests/test_cublaslt.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from compare import Child  # noqa: E402
from random_model import LLAMA_7B, Shape, random_blocks, write_random_model  # noqa: E402

import localdiff  # noqa: E402
from localdiff.atomic import atomic_file  # noqa: E402
from localdiff.devices import choose  # noqa: E402
from localdiff.engine import EngineModel, File, Request, device_memory, measure_device_peak  # noqa: E402
from localdiff.errors import LocaldiffError, OptionError  # noqa: E402

# How quantised weights are multiplied: a session's arithmetic, and $LOCALDIFF_CUDA_PRODUCTS as a model is opened.
WAYS = {
    "int8": ("exact", "int8"),
    "int8 fast": ("fast", "int8"),
    "cuBLASLt": ("exact", "bfloat16-cublaslt"),
    "bfloat16": ("exact", "bfloat16-own"),
}
DEFAULT_WAY = "int8"

KINDS, ROWS = ("Q4_0", "Q4_K_M", "Q8_0"), (64, 256, 1024)
SMALL = Shape(layers=1, dim=256, vocab=512, context=1024, head_dim=64, ffn_dim=256, shared=False)
FREE_MAY_SHRINK = 64 << 20  # bytes that other programs may take meanwhile
PROMPT, ANSWER, EACH_STEP = 128, 128, 4  # tokens of denoise(), and how many of them a step settles
NOT_POSSIBLE = 77


def card() -> str:
    """The name of the card and its driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "no NVIDIA driver"


def work(shape: Shape, rows: int) -> float:
    """1e9 operations of a forward pass with all rows scored, a multiply and an add counted as two."""
    attention = 2 * shape.layers * rows * shape.dim
    return 2.0 * rows * (shape.block_weights + shape.vocab * shape.dim + attention) / 1e9


def forwards(where: str, path: Path, shape: Shape, counts: tuple[int, ...], repeats: int, math: str) -> dict[str, Any]:
    """Milliseconds per forward pass for each number of rows."""
    result: dict[str, Any] = {"rows": []}
    with File.open(path) as file, EngineModel(file, device=where) as model:
        for rows in counts:
            tokens, places = np.arange(rows, dtype=np.int32) % shape.vocab, np.arange(rows, dtype=np.int32)
            times = []
            with model.session(slot_length=rows, math=math) as session:
                for step in range(repeats + 3):  # the first three warm up
                    begin = time.perf_counter()
                    session.propose([Request(tokens, places, temperature=0.7, seed=1, step=step)])
                    times.append(1000 * (time.perf_counter() - begin))
            times = times[3:]
            median = statistics.median(times)
            result["rows"].append({
                "rows": rows, "ms": round(median, 3), "ms_min": round(min(times), 3), "ms_max": round(max(times), 3),
                "tera_ops": round(work(shape, rows) / median, 2),
            })  # fmt: skip
        result |= {
            "isa": model.info.isa, "gpu_layers": f"{model.info.gpu_layers} of {model.info.layers}",
            "weight_bytes": model.memory.device_weights,  # with copies in another form
        }  # fmt: skip
    return result


def way(name: str, path: Path, shape: Shape, counts: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """forwards() in a process of its own, one way of multiplying; or why it is absent."""
    math, products = WAYS[name]
    what = json.dumps({"path": str(path), "shape": vars(shape), "counts": counts, "repeats": repeats, "math": math})
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--one", what], capture_output=True, text=True,
        env={**os.environ, "LOCALDIFF_CUDA_PRODUCTS": products},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"absent": (done.stderr.splitlines() or [f"it ended with {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def one(what: dict[str, Any]) -> dict[str, Any]:
    """What way() asks its process for."""
    try:
        where = choose("cuda").where
        return forwards(
            where, Path(what["path"]), Shape(**what["shape"]), what["counts"], what["repeats"], what["math"]
        )
    except LocaldiffError as error:
        return {"absent": str(error)}


def fastest(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Per type and number of rows which way took the least time, and the others beside it."""
    lines = []
    for kind, ways in measured.items():
        times: dict[int, list[tuple[float, str]]] = {}
        for name, found in ways.items():
            for each in found.get("rows", ()):
                times.setdefault(each["rows"], []).append((each["ms"], name))
        for rows, taken in times.items():
            (least, first), *others = sorted(taken)
            beside = ", ".join(f"{name} {ms / least:.2f} times as long" for ms, name in others)
            lines.append(f"fastest: {kind}, {rows} rows: {first}, {least:.2f} ms{beside and f' ({beside})'}")
    return lines


def peer(repeats: int, rows: tuple[int, ...], python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Milliseconds per forward of another engine by number of rows, or why it is absent."""
    try:
        child = Child("wall", python, script, *arguments)
    except (SystemExit, OSError) as error:
        return {"absent": str(error)}
    result: dict[str, Any] = {"version": child.info["version"], "ms": {}}
    try:
        for count in rows:
            child.do("forward", rows=count)  # warms up
            times = []
            while len(times) < repeats:
                times += child.do("forward", rows=count)["wall"]
            result["ms"][str(count)] = round(1000 * statistics.median(times), 3)
    except SystemExit as error:
        result["absent"] = str(error)
    child.close()
    return result


def llama_cpp(path: Path, repeats: int, rows: tuple[int, ...]) -> dict[str, Any]:
    python = os.environ.get("LOCALDIFF_LLAMA_PYTHON", sys.executable)
    return peer(repeats, rows, python, "peer_llama.py", str(path), "1", str(max(rows)), "gpu")


def torch_bf16(shape: Shape, repeats: int, rows: tuple[int, ...], device: str = "cuda") -> dict[str, Any]:
    return peer(repeats, rows, sys.executable, "peer_torch_gpu.py", json.dumps(vars(shape)), device)


def denoise(where: str, path: Path, shape: Shape, prompt: int, answer: int) -> dict[str, Any]:
    """Tokens per second of an answer, the likeliest EACH_STEP settled per step, all rows computed at every step."""
    mask = shape.vocab - 1
    canvas = np.arange(prompt + answer, dtype=np.int32) % mask
    places = np.arange(len(canvas), dtype=np.int32)
    with (
        File.open(path) as file,
        EngineModel(file, device=where) as model,
        model.session(slot_length=len(canvas)) as session,
    ):
        for warm in (True, False):
            canvas[prompt:], steps = mask, 0
            begin = time.perf_counter()
            while (open_places := places[canvas == mask]).size and not (warm and steps == 3):
                request = Request(canvas, open_places, forbidden=np.array([mask], np.int32))
                proposal = session.propose([request])[0]
                best = np.argsort(-proposal.probability, kind="stable")[:EACH_STEP]
                canvas[open_places[best]] = proposal.token[best]
                steps += 1
            seconds = time.perf_counter() - begin
    return {"tokens": answer, "steps": steps, "per_second": round(answer / seconds, 1)}


def answers(device: str, tokens: int) -> dict[str, Any]:
    """Tokens per second of the default model, its own decoder, with what loading and warming up took left out."""
    model = localdiff.load(device=device)
    model.generate("Once upon a time", max_new_tokens=tokens, seed=0)
    begin = time.perf_counter()
    result = model.generate("Once upon a time", max_new_tokens=tokens, seed=1)
    seconds = time.perf_counter() - begin
    return {"model": model.name, "tokens": len(result.tokens), "per_second": round(len(result.tokens) / seconds, 1)}


def soak(where: str, path: Path, steps: int) -> dict[str, Any]:
    """The same step over and over, with other numbers of rows in between: one result, and no memory that goes."""
    places = np.arange(64, dtype=np.int32)
    before, different = 0, 0
    with File.open(path) as file, EngineModel(file, device=where) as model, model.session(slot_length=64) as session:
        first = session.logits([Request(places, places)])[0]
        before = device_memory(Path(where))[0]
        for step in range(steps):
            count = 1 + step * 7 % 64
            session.propose([Request(places, places[:count], temperature=0.9, seed=step)])
            if step % 50 == 49 or step == steps - 1:
                different += not np.array_equal(first, session.logits([Request(places, places)])[0])
        lost = before - device_memory(Path(where))[0]
    return {"steps": steps, "different": different, "bytes_lost": lost}


def absent(result: dict[str, Any]) -> list[str]:
    """What peers and ways lack, each reason once."""
    peers = {"torch": [result["torch"]], "llama.cpp": result["llama.cpp"].values()}
    peers |= {name: [ways[name] for ways in result.get("forwards", {}).values()] for name in WAYS}
    found = {f"{name}: absent ({each['absent']})": None for name, all_ in peers.items() for each in all_
             if "absent" in each}  # fmt: skip
    return list(found)


def table(result: dict[str, Any]) -> str:
    peak = result["peak"]
    lines = [
        f"{result['card']}, {result['date']}: int8 {peak['int8_gops'] / 1000:.0f} TOPS, bfloat16 "
        f"{peak['bf16_gflops'] / 1000:.0f} TFLOPS, float32 {peak['f32_gflops'] / 1000:.1f} TFLOPS, copying "
        f"{peak['memory_gbps']:.0f} GB/s",
        f"{'type':8} {'rows':>5} {'multiplied by':14} {'ms (min - max)':>28} {'TOPS':>7} {'of peak':>8} {'weights':>9}"
        "  layers",
    ]
    measured = (
        (kind, name, found, each)
        for kind, ways in result["forwards"].items()
        for name, found in ways.items()
        for each in found.get("rows", ())
    )
    for kind, name, found, each in measured:
        share = 100_000 * each["tera_ops"] / peak["int8_gops" if WAYS[name][1] == "int8" else "bf16_gflops"]
        spread = f"{each['ms']:.2f} ({each['ms_min']:.2f} - {each['ms_max']:.2f})"
        size = f"{found['weight_bytes'] / 2**30:>5.1f} GiB"
        speed = f"{each['tera_ops']:>7.1f} {share:>6.1f} % {size}"
        lines.append(f"{kind:8} {each['rows']:>5} {name:14} {spread:>28} {speed}  {found['gpu_layers']}")
        other = result["llama.cpp"][kind].get("ms", {}).get(str(each["rows"]))
        if other:
            lines.append(f"{'':14} llama.cpp {other:.2f} ms, {other / each['ms']:.2f} times as long")
    lines += [f"torch, bfloat16, {rows} rows: {ms:.2f} ms" for rows, ms in result["torch"].get("ms", {}).items()]
    lines += absent(result)
    told, held = result["answers"], result["soak"]
    lines.append(f"{told['model']}: {told['per_second']} tokens/s over {told['tokens']} tokens")
    lines += [
        f"this shape in {kind}: {each['per_second']} tokens/s over {each['tokens']} tokens in {each['steps']} steps"
        for kind, each in result["denoise"].items()
    ]
    lost = held["bytes_lost"]
    lines.append(f"soak: {held['steps']} steps, {held['different']} different, {lost} bytes of memory lost")
    lines += fastest(result["forwards"])
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny shape, few steps: whether this program works")
    parser.add_argument("-o", "--output", type=Path, help="default: bench/results/DATE-gpu-CARD.json")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return 0
    shape, kinds, rows, repeats = (SMALL, KINDS[:1], (3, 20), 1) if options.small else (LLAMA_7B, KINDS, ROWS, 50)
    steps, tokens, prompt, answer = (4, 4, 8, 8) if options.small else (1000, 192, PROMPT, ANSWER)
    try:
        where = choose("cuda").where
    except OptionError as error:
        with tempfile.TemporaryDirectory() as folder:
            write_random_model(path := Path(folder) / "model.gguf", SMALL)
            peers = {"torch": torch_bf16(SMALL, 1, (1,)), "llama.cpp": {"Q4_0": llama_cpp(path, 1, (1,))}}
        print("\n".join([*absent(peers), f"Nothing was measured: {error}."]))
        return NOT_POSSIBLE
    result: dict[str, Any] = {
        "date": date.today().isoformat(), "card": card(), "shape": vars(shape),
        "peak": vars(measure_device_peak(where, 0.05 if options.small else 2)),
        "forwards": {}, "llama.cpp": {}, "denoise": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for kind in kinds:
            write_random_model(path, shape, kind, random_blocks(kind))
            result["forwards"][kind] = {name: way(name, path, shape, rows, repeats) for name in WAYS}
            result["llama.cpp"][kind] = llama_cpp(path, repeats, rows)
            result["denoise"][kind] = denoise(where, path, shape, prompt, answer)
        result["torch"] = torch_bf16(shape, repeats, rows)
        result["soak"] = soak(where, path, steps)
    result["answers"] = answers("cuda", tokens)
    name = re.sub(r"[^A-Za-z0-9]+", "-", result["card"].split(",")[0]).strip("-").lower()
    output = options.output or ROOT / "bench" / "results" / f"{result['date']}-gpu-{name}.json"
    with atomic_file(output) as file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    good = all("absent" not in ways[DEFAULT_WAY] for ways in result["forwards"].values())
    good = good and result["soak"]["different"] == 0 and result["soak"]["bytes_lost"] <= FREE_MAY_SHRINK
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
