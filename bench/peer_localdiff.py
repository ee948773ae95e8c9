"""localdiff as a peer of compare.py: usage peer_localdiff.py MODEL.gguf THREADS ROWS MATH [ISA]

forward  logits of all rows, bidirectional attention      step  one denoise step: the answer's masked half is scored
answer   a canvas of prompt and masks denoised to its end: LLaDA's decoder, blocks of BLOCK, so many steps, a cache
peak     what the machine can do at the moment            logits  written to a file, to see that peers do the same work
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from peer import serve, timed, tokens

from localdiff.bench.card import machine_card
from localdiff.bench.forward import PARTS, Work
from localdiff.cache.table import make_cache
from localdiff.canvas import Canvas, Hole
from localdiff.decode.decoder import Facts
from localdiff.decode.loop import Job, denoise
from localdiff.decode.table import make_decoder, settings_for
from localdiff.engine import EngineModel, File, Request, measure_peak
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec

BLOCK = 32


def answer_job(vocab: int, prompt: int, answer: int, steps: int, cache: str) -> Job:
    """A canvas that no token ends; the mask is the last id of the vocabulary."""
    spec = DiffusionSpec(mask_token=vocab - 1, logit_shift=False)
    canvas = Canvas.of([tokens(vocab - 1, prompt), Hole(answer)], spec.mask_token)
    options = GenerateOptions(decoder="llada", steps=steps, block_length=BLOCK, cache=cache, temperature=0.0)
    chosen = settings_for(options, spec, answer)
    forbidden = np.array([spec.mask_token], np.int32)
    decoder = make_decoder(chosen, 1, Facts(vocab, forbidden))
    return Job(
        canvas, decoder, make_cache(chosen), chosen, 1, spec.attention, spec.block_length, prompt, spec.logit_shift,
        forbidden, (), prompt,
    )  # fmt: skip


def main(path: str, threads: int, rows: int, math: str, isa: str | None) -> None:
    file = File.open(path)
    model = EngineModel(file, isa=isa, threads=threads)
    session = model.session(slot_length=min(rows, model.info.context_length), threads=threads, math=math)
    vocab = model.info.vocab

    def request(count: int, score: np.ndarray[Any, Any]) -> Request:
        return Request(np.array(tokens(vocab, count), np.int32), score.astype(np.int32))

    def forward(rows: int) -> dict[str, Any]:
        all_rows = request(rows, np.arange(rows))
        before = session.timings()
        result = timed(lambda: session.logits([all_rows]))
        after = session.timings()
        spent = {part: getattr(after, f"seconds_{part}") - getattr(before, f"seconds_{part}") for part in PARTS}
        return {**result, "parts": spent}

    def step(prompt: int, answer: int) -> dict[str, Any]:
        masked = request(prompt + answer, np.arange(prompt, prompt + answer, 2))
        return timed(lambda: session.propose([masked]))

    def whole_answer(prompt: int, answer: int, steps: int, cache: str) -> dict[str, Any]:
        job = answer_job(vocab, prompt, answer, steps, cache)
        return timed(lambda: list(denoise(session, [job])))

    def peak() -> dict[str, Any]:
        found = measure_peak(model.info.isa, threads, 0.3)
        return {"int8": found.int8_gops, "f32": found.f32_gflops, "memory_gbps": found.memory_gbps}

    def logits(rows: int, to: str) -> dict[str, Any]:
        np.save(to, session.logits([request(rows, np.arange(rows))])[0])
        return {}

    work = Work.of(file)
    serve(
        {"forward": forward, "step": step, "answer": whole_answer, "peak": peak, "logits": logits},
        {
            "card": machine_card(model.info.isa, session.timings().threads),
            "block_weights": work.block_weights,
            "head_weights": work.head_weights,
            "arithmetic": work.arithmetic,
            "context": model.info.context_length,
        },
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] if len(sys.argv) > 5 else None)
