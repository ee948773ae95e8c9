"""How far the GPU's kernels are from the processor's scalar row on real models: usage gpu_kl.py TEXT MODEL.gguf...

Mean and largest KL (nats) of rows of logits, and how often the likeliest token is another. In files with a diffusion
record every second of --rows tokens of the text is masked and the masked positions are scored, attention full; in
others every position, attention causal. --math is the arithmetic of both sides. The plug-in is $LOCALDIFF_CUDA, else
the one that emulates its kernels on the processor (minutes for 100 M parameters). The processor's other rows, which
differ from the scalar one by the order of sums in norms and attention, are told beside it: an input that falls to the
other side of a rounding to 8 bits moves logits of a model with strong outliers further than any kernel does. Ends with
1 where a mean is over --bound, whatever those rows have. Not here: speed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import localdiff  # noqa: E402
from localdiff.engine import EngineModel, File, Request, isa_rows  # noqa: E402

EMULATED = ROOT / "build" / "dev" / "liblocaldiff_cuda_emulated.so"


def request_of(path: Path, text: str, rows: int) -> Request:
    """`rows` tokens of the text, half of them masked where the model can."""
    with localdiff.load(path, device="cpu", threads=1) as model:
        tokens = np.array(model.tokenize(text[: 16 * rows])[:rows], np.int32)
        places = np.arange(len(tokens), dtype=np.int32)
        if model.spec is None:
            return Request(tokens, places, attention="causal")
        tokens[1::2] = model.spec.mask_token
    return Request(tokens, places[1::2])


def logits(
    path: Path, request: Request, device: str | Path, isa: str | None = None, math: str = "exact"
) -> np.ndarray:
    """float64 log-probabilities [scored, vocab]."""
    with (
        File.open(path) as file,
        EngineModel(file, device=device, isa=isa) as model,
        model.session(slot_length=len(request.tokens), threads=1, math=math) as session,
    ):
        x = session.logits([request])[0].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean and largest KL(a | b) of the rows, and the share of rows with another likeliest token."""
    divergence = (np.exp(a) * (a - b)).sum(axis=1)
    return float(divergence.mean()), float(divergence.max()), float((a.argmax(1) != b.argmax(1)).mean())


def compare(path: Path, text: str, rows: int, plugin: Path, math: str = "exact") -> tuple[float, float, float]:
    """difference() of the plug-in to the scalar row."""
    request = request_of(path, text, rows)
    return difference(logits(path, request, "cpu", "scalar", math), logits(path, request, plugin, math=math))


def other_rows(path: Path, text: str, rows: int, math: str = "exact") -> float:
    """The largest mean KL of the processor's other kernel rows to the scalar one; 0 where there are none."""
    request = request_of(path, text, rows)
    scalar = logits(path, request, "cpu", "scalar", math)
    names = [name for name, supported in isa_rows() if supported and name != "scalar"]
    return max((difference(scalar, logits(path, request, "cpu", name, math))[0] for name in names), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--bound", type=float, default=1e-3, help="of the mean, nats")
    parser.add_argument("--math", choices=("exact", "fast"), default="exact")
    options = parser.parse_args()
    plugin = Path(os.environ.get("LOCALDIFF_CUDA", EMULATED))
    text, good = options.text.read_text(), True
    for path in options.models:
        beside = other_rows(path, text, options.rows, options.math)
        mean, most, other = compare(path, text, options.rows, plugin, options.math)
        good = good and mean <= options.bound
        print(f"{path.name}: KL {mean:.2e}, at most {most:.2e}; another token in {100 * other:.1f} %; the processor's "
              f"other rows {beside:.2e}", flush=True)  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
