"""A timed generation as users run it: the model's own decoder and steps, after a warm-up of the same size.

Files without a diffusion record are run as if they had one (mask token = the last id, no shift, full attention): the
text means nothing, the work is the same. Where that was assumed the result says so.
"""

from __future__ import annotations

from typing import Any

from ..engine import EngineModel, File
from ..model import Model
from ..presets import resolve
from ..spec import DiffusionSpec
from .forward import random_tokens

PROMPT = 32
ANSWER = 64


def measure_generation(
    file: File, engine: EngineModel, *, threads: int | None = None, diffusion: str | None = None, math: str = "auto"
) -> dict[str, Any]:
    """Generate ANSWER tokens after PROMPT random ones, less where the canvas is shorter.

    diffusion, math  as in localdiff.load
    raises     ModelFileError where the file has no tokenizer to make a text with
    """
    metadata = dict(file.metadata)
    spec = resolve(metadata, diffusion)
    assumed = None
    if spec is None:
        spec = DiffusionSpec(mask_token=engine.info.vocab - 1, logit_shift=False)
        assumed = f"mask={spec.mask_token},shift=0,attn=full"
    model = Model(engine, metadata, spec, file.path, threads, math=math)
    limit = model.canvas_limit
    answer = min(ANSWER, limit // 2)
    prompt = [int(token) for token in random_tokens(spec.mask_token or 1, min(PROMPT, limit - answer))]
    for _ in range(2):  # the first warms up
        result = model.generate(prompt, max_new_tokens=answer, seed=1)
    return {
        "prompt_tokens": result.prompt_tokens,
        "answer_tokens": len(result.tokens),
        "canvas_tokens": answer,
        "nfe": result.nfe,
        "seconds": round(result.seconds, 4),
        "canvas_tokens_per_second": round(answer / result.seconds, 2) if result.seconds else 0.0,
        "answer_tokens_per_second": round(result.answer_tokens_per_second, 2),
        "tokens_per_forward": round(answer / result.nfe, 3) if result.nfe else 0.0,
        "first_settled_seconds": result.first_settled_seconds,
        "stop_reason": result.stop_reason,
        "decoder": result.decoder,
        "assumed_diffusion": assumed,
    }
