"""Figures of quality of made texts: likelihood under a judge or under the model itself, repetition, agreement.

A text is its prompt and its answer as token ids; likelihoods are negative log-probabilities of the answer in nats, the
prompt given. Low ones alone prove little, since repetition is likely too: distinct n-grams belong beside them. Used by
`localdiff tune` and bench/quality.py. Not here: making texts, deciding what is good enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .arithmetic import log_softmax
from .engine import Request
from .errors import OptionError

if TYPE_CHECKING:
    from .model import Model

Tokens = Sequence[int]
PARTS = 4  # a part of the answer is judged by the others: three quarters of it are known


def distinct(texts: Sequence[Tokens], n: int) -> float:
    """Different n-grams over n-grams, within each text; the mean over those that have any. 1 = nothing is repeated."""
    grams = [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts]
    shares = [len(set(found)) / len(found) for found in grams if found]
    return float(np.mean(shares)) if shares else 1.0


def agreement(texts: Sequence[Tokens], others: Sequence[Tokens]) -> float:
    """The share of positions that hold the same token; where one text is longer, the rest of it differs."""
    pairs = list(zip(texts, others, strict=True))
    same = sum(a == b for text, other in pairs for a, b in zip(text, other, strict=False))
    total = sum(max(len(text), len(other)) for text, other in pairs)
    return same / total if total else 1.0


def perplexity(nats: Sequence[float], tokens: int) -> float:
    """exp of the mean over all tokens; NaN where there are none."""
    return math.exp(sum(nats) / tokens) if tokens else math.nan


def judged(judge: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[float]:
    """Nats of each answer, summed, under an autoregressive model (causal attention) of the same vocabulary.

    raises   OptionError where a token is none of the judge's, or a text does not fit its context
    """
    nats = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer:
            nats.append(0.0)
            continue
        if not prompt:
            raise OptionError("a judge needs a prompt of at least one token to say how likely the answer is")
        rows = log_softmax(judge.logits([*prompt, *answer][:-1], attention="causal")[len(prompt) - 1 :])
        nats.append(-float(rows[np.arange(len(answer)), np.asarray(answer)].sum()))
    return nats


def own(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[float]:
    """Nats of each answer, summed, under the model itself: every PARTS-th token is masked in turn, the rest is known.

    The pseudo-likelihood of Besag (1975) with parts in place of single tokens, PARTS forward passes for all texts.
    """
    spec = model.spec
    if spec is None:
        raise OptionError(f"{model.name} has no diffusion record, so it cannot judge a text with masks")
    nats = [0.0] * len(answers)
    for part in range(PARTS):
        places = [index for index, answer in enumerate(answers) if len(answer) > part]
        requests = []
        for slot, index in enumerate(places):
            canvas = np.array([*prompts[index], *answers[index]], np.int32)
            masked = np.arange(len(prompts[index]) + part, len(canvas), PARTS, dtype=np.int32)
            canvas[masked] = spec.mask_token
            requests.append(
                Request(
                    canvas,
                    masked,
                    slot=slot,
                    attention=spec.attention,
                    block_length=spec.block_length,
                    prefix=len(prompts[index]),
                    logit_shift=spec.logit_shift,
                )
            )
        for index, logits in zip(places, model.forward(requests) if requests else [], strict=True):
            tokens = np.asarray(answers[index][part::PARTS])
            nats[index] -= float(log_softmax(logits)[np.arange(len(tokens)), tokens].sum())
    return nats
