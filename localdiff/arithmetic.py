"""Which arithmetic a model's quantised weights are run in: exact, or fast where that costs next to nothing.

Fast arithmetic (csrc/cpu/fold.h) is faster on some kernel rows only, and rounds weights and activations once more. On a
GPU its speed is not known, so it has to be asked for there. What that rounding does to a model cannot be read off its
weights, since outliers of the activations decide, so it is measured: one canvas of a known text with every second token
masked goes through both, and the mean Kullback-Leibler divergence of the masked rows,
    D = mean_p sum_v P_exact(v | p) * log(P_exact(v | p) / P_fast(v | p))        [nats]
must stay within BOUND. The answer is kept for the next load, in the user's cache, by the content of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .atomic import atomic_file
from .engine import Request
from .errors import LocaldiffError, OptionError
from .options import MATH

if TYPE_CHECKING:
    from .engine import EngineModel, Float32, Int32
    from .spec import DiffusionSpec
    from .text import Tokenizer

BOUND = 0.005  # nats; rounding activations to 8 bits in blocks of 32, as exact arithmetic does, costs some 0.003
TOKENS = 64  # of the canvas
FASTER = ("avx512_vnni",)  # kernel rows that gain from it; AVX-VNNI does above 200 rows only, AVX2 loses (bench/LOG.md)
TEXT = (
    "One morning the old woman looked out of the window and saw that the river had frozen in the night. She put on her "
    "coat, took the little dog under her arm, and went down to the bridge, where three children were already throwing "
    'stones at the ice. "It will not break," said the tallest of them. "We have tried since seven o\'clock." The woman '
    "smiled, for in 1929 she had said the same, and had fallen in."
)
ON_GPU = "fast arithmetic has not been timed on a GPU, ask for it with math fast"
_SAMPLE = 1 << 20  # bytes of either end of a file that tell it from others
_MOST_KEPT = 500


@dataclass(frozen=True)
class Arithmetic:
    """What was decided: `math` is "exact" or "fast"; `divergence` in nats where it was measured, else None."""

    math: str
    divergence: float | None
    reason: str  # one line for people


def check(math: str) -> str:
    """Raises OptionError where `math` is none of options.MATH."""
    if math not in MATH:
        raise OptionError(f"math is '{math}', expected one of {', '.join(MATH)}")
    return math


def decide(
    math: str,
    files: Sequence[tuple[Path, float]],
    engine: EngineModel,
    spec: DiffusionSpec | None,
    tokenizer: Callable[[], Tokenizer],
    threads: int | None = None,
) -> Arithmetic:
    """Resolve "auto" for a loaded model: measured once per file, from the user's cache afterwards.

    files            the model's and those of its adapters, with their scales
    spec, tokenizer  None, or one that raises a LocaldiffError: nothing can be measured, so exact
    """
    if math != "auto":
        return Arithmetic(math, None, "as asked for")
    if engine.device == "cuda":
        return Arithmetic("exact", None, ON_GPU)
    if engine.info.isa not in FASTER:
        return Arithmetic("exact", None, f"fast arithmetic gains nothing on kernel row {engine.info.isa}")
    if spec is None:
        return Arithmetic("exact", None, "no diffusion record to measure fast arithmetic with")
    try:
        key = fingerprint(files)
    except OSError as error:  # the file was moved since it was loaded
        return Arithmetic("exact", None, f"{error.filename} cannot be read any more")
    divergence = recall(key)
    if divergence is None:
        try:
            divergence = measure(engine, spec, tokenizer(), threads)
        except LocaldiffError:  # whoever needs text, or finite logits, will be told
            return Arithmetic("exact", None, "fast arithmetic could not be measured")
        remember(key, divergence)
    return judge(divergence)


def judge(divergence: float) -> Arithmetic:
    """The choice for a measured divergence."""
    if divergence == 0:
        return Arithmetic("exact", divergence, "both are the same: nothing is quantised")
    fits = divergence <= BOUND
    relation = "within" if fits else "over"
    return Arithmetic(
        "fast" if fits else "exact",
        divergence,
        f"KL of fast to exact {divergence:.2g} nats, {relation} the bound of {BOUND:g}",
    )


def measure(engine: EngineModel, spec: DiffusionSpec, tokenizer: Tokenizer, threads: int | None = None) -> float:
    """The divergence of fast from exact arithmetic on the calibration text, in nats.

    raises  EngineError where logits are not finite
    """
    tokens = np.array(tokenizer.encode(TEXT)[: min(TOKENS, engine.info.context_length)], dtype=np.int32)
    masked = np.arange(1, len(tokens), 2, dtype=np.int32)
    tokens[masked] = spec.mask_token
    exact, fast = (_logits(engine, spec, tokens, masked, math, threads) for math in ("exact", "fast"))
    p, q = log_softmax(exact), log_softmax(fast)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def _logits(
    engine: EngineModel, spec: DiffusionSpec, tokens: Int32, rows: Int32, math: str, threads: int | None
) -> Float32:
    request = Request(tokens, rows, attention=spec.attention, block_length=spec.block_length)
    with engine.session(slot_length=len(tokens), threads=threads, math=math) as session:
        logits: Float32 = session.logits([request])[0]
    return logits


def log_softmax(logits: Float32) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


# ---- what is known of files that were loaded before ----


def fingerprint(files: Sequence[tuple[Path, float]]) -> str:
    """Tells files apart by size, both ends of their content and their scales, wherever they lie."""
    digest = hashlib.sha256()
    for path, scale in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{size} {scale}".encode())
            file.seek(0)
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _store() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "localdiff" / "arithmetic.json"


def _known() -> dict[str, float]:
    try:
        values = json.loads(_store().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    return {k: v for k, v in values.items() if isinstance(v, float)} if isinstance(values, dict) else {}


def recall(key: str) -> float | None:
    """The divergence that was measured for a file with this fingerprint, None where there is none."""
    return _known().get(key)


def remember(key: str, divergence: float) -> None:
    """Keep a measurement; where the cache cannot be written it is measured again next time."""
    with contextlib.suppress(OSError, RuntimeError, LocaldiffError):
        kept = dict(list(_known().items())[-_MOST_KEPT + 1 :]) | {key: divergence}
        store = _store()
        store.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(store) as temporary:
            temporary.write_text(json.dumps(kept))
