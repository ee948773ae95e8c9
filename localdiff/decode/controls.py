"""Controls: what a caller wants of the tokens whatever the decoder - guidance, a repetition penalty, biases.

They change what the engine is asked, never what a decoder does with the answer. Guidance is classifier-free guidance
as in LLaDA (arXiv:2502.09992, generate.py): logits become u + (g + 1) * (c - u), where u are those of a canvas whose
given tokens are masked, or, with a negative prompt (arXiv:2306.17806), of one that begins with that prompt instead. The
repetition penalty (CTRL, arXiv:1909.05858) applies to every token that stands in the canvas, prompt included; tokens
written in one step do not know of each other. Not here: which options go together (refusals.py), the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..canvas import GIVEN, MASKED, Canvas, Float32, Int32
from ..engine import Request

NO_TOKENS: Int32 = np.empty(0, np.int32)


@dataclass(frozen=True)
class Controls:
    """The controls of one job.

    guidance            0 = off
    negative            int32 tokens in place of those before `answer`; None = the same canvas with given tokens masked
    answer              position where the answer begins
    repetition_penalty  1 = off
    unpenalised         int32 tokens that it leaves alone: those that end or fill a text
    bias_tokens, bias   int32, float32 [n]: added to the logits
    alternatives        how many of the likeliest tokens are reported for each token
    until               when the text has to be full, on the clock of deadline.Pace
    """

    guidance: float = 0.0
    negative: Int32 | None = None
    answer: int = 0
    repetition_penalty: float = 1.0
    unpenalised: Int32 = field(default_factory=lambda: NO_TOKENS)
    bias_tokens: Int32 = field(default_factory=lambda: NO_TOKENS)
    bias: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    alternatives: int = 0
    until: float = math.inf

    @property
    def ahead(self) -> int:
        """By how many positions a companion is longer than its canvas, 0 where it is shorter."""
        return 0 if self.negative is None else max(0, len(self.negative) - self.answer)

    def applied(self, request: Request, canvas: Canvas, slot: int | None) -> Request:
        """The request as the caller wants it; slot: where the state of its companion lies, if it has one."""
        if self.repetition_penalty != 1:
            seen = np.setdiff1d(canvas.tokens[canvas.state != MASKED], self.unpenalised).astype(np.int32)
            request = replace(request, repeated=seen, repetition_penalty=self.repetition_penalty)
        if len(self.bias_tokens):
            request = replace(request, bias_tokens=self.bias_tokens, bias=self.bias)
        if self.guidance and slot is not None:
            companion = self._companion(request, canvas, slot)
            if request.logits is not None:
                companion = replace(companion, logits=np.empty_like(request.logits))
            request = replace(request, guidance=self.guidance, unconditional=companion)
        return replace(request, alternatives=max(request.alternatives, self.alternatives))

    def _companion(self, request: Request, canvas: Canvas, slot: int) -> Request:
        plain = Request(
            request.tokens,
            request.score,
            slot,
            attention=request.attention,
            block_length=request.block_length,
            prefix=request.prefix,
            logit_shift=request.logit_shift,
            step=request.step,
        )
        if self.negative is None:
            masked = np.where(canvas.state == GIVEN, np.int32(canvas.mask_token), request.tokens)
            return replace(plain, tokens=masked.astype(np.int32))
        ahead = len(self.negative) - self.answer
        tokens = np.concatenate([self.negative, request.tokens[self.answer :]])
        score = (request.score + ahead).astype(np.int32)
        return replace(plain, tokens=tokens, score=score, prefix=max(0, request.prefix + ahead))


def wished_logits(request: Request) -> Float32:
    """The logits that a call filled in, [n, vocab], changed as the engine changes those that it proposes from."""
    assert request.logits is not None
    logits: Float32 = request.logits
    if request.unconditional is not None:
        assert request.unconditional.logits is not None
        without = request.unconditional.logits
        logits = without + np.float32(request.guidance + 1) * (logits - without)
    if request.repeated is None and request.bias_tokens is None:
        return logits
    logits = logits.copy()
    if request.repeated is not None:
        values, penalty = logits[:, request.repeated], np.float32(request.repetition_penalty)
        logits[:, request.repeated] = np.where(values > 0, values / penalty, values * penalty)
    if request.bias_tokens is not None and request.bias is not None:
        logits[:, request.bias_tokens] += request.bias
    return logits
