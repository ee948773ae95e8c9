#!/usr/bin/env python3
"""What an importance matrix buys at few bits: none, a causal one, a diffusion one; by KL on held-out masked canvases.

    bench/imatrix.py MODEL-f32.gguf --data TEXT... --held-out TEXT... [--types q4_0 q4_k_m] [--canvases 64]

The model is quantised with each matrix. Held-out canvases are masked at t uniform in (0, 1]; for every masked position
KL(float32 || quantised) of the two distributions, in nats; reported are its mean over positions, canvases weighing
alike, its standard error over the canvases, and the paired difference to the file without a matrix. Arithmetic is the
exact one on both sides. JSON comes last. Not here: speed, text quality.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from localdiff.arithmetic import log_softmax
from localdiff.engine import EngineModel, File, Request
from localdiff.presets import record_in_force
from localdiff.quantize import gather_imatrix, quantize
from localdiff.quantize.gathering import canvases, noised
from localdiff.text import Tokenizer

HELD_OUT_SEED = 1000  # of the noise; not that of gathering


def held_out(model: Path, data: Sequence[Path], length: int, count: int) -> list[Request]:
    with File.open(model) as file:
        spec = record_in_force(file.metadata, None).spec
        tokenizer = Tokenizer.from_gguf(file.metadata)
    if spec is None:
        raise SystemExit(f"{model} has no diffusion record")
    requests = []
    for index, tokens in enumerate(canvases(data, tokenizer, length)):
        request = noised(tokens, spec, HELD_OUT_SEED, index, given=int(tokenizer.add_bos))
        if len(request.score):
            requests.append(request)
        if len(requests) == count:
            break
    return requests


def distributions(model: Path, requests: Sequence[Request], length: int) -> list[np.ndarray]:
    """The log probabilities float32 [masked, vocab] of each canvas."""
    with File.open(model) as file, EngineModel(file) as engine, engine.session(slot_length=length) as session:
        return [log_softmax(session.logits([each])[0]).astype(np.float32) for each in requests]


def divergences(exact: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> np.ndarray:
    """Mean KL over the masked positions of each canvas, float64 [canvases]."""
    pairs = zip(exact, other, strict=True)
    return np.array([np.mean(np.sum(np.exp(p, dtype=np.float64) * (p - q), axis=1)) for p, q in pairs])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--types", nargs="+", default=["q4_0", "q4_k_m"])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--canvases", type=int, default=64)
    options = parser.parse_args()

    requests = held_out(options.model, options.held_out, options.length, options.canvases)
    exact = distributions(options.model, requests, options.length)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        matrices: dict[str, Path | None] = {"none": None}
        for kind in ("causal", "diffusion"):
            matrices[kind] = out = folder / f"{kind}.gguf"
            gather_imatrix(
                options.model, out, data=options.data, causal=kind == "causal", length=options.length,
                chunks=options.chunks,
            )  # fmt: skip
        for kind in options.types:
            base = None
            for matrix, path in matrices.items():
                quantize(options.model, folder / "out.gguf", type=kind, imatrix=path)
                found = divergences(exact, distributions(folder / "out.gguf", requests, options.length))
                base = found if base is None else base
                mean, error = mean_and_error(found)
                change, change_error = mean_and_error(found - base)
                rows.append({"type": kind, "matrix": matrix, "kl": mean, "error": error})
                rows[-1] |= {"change": change, "change_error": change_error}
                print(f"{kind:8} {matrix:10} KL {mean:.5f} +- {error:.5f}   {change:+.5f} +- {change_error:.5f}")
    settings = {key: getattr(options, key) for key in ("length", "chunks")} | {"canvases": len(requests)}
    print(json.dumps({"model": options.model.name, **settings, "rows": rows}))


if __name__ == "__main__":
    main()
