"""Every decoder with every cache, plain, with a constraint and with two other options, on the embedded model: it is
refused in one sentence, or given tokens stay, counts add up, the constraint holds and a batch changes nothing."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import localdiff
from localdiff.cache.table import CACHES
from localdiff.decode.table import DECODERS
from localdiff.errors import OptionError
from localdiff.generation import Generation
from localdiff.model import Model

PROMPTS = ["Once upon a time", "The big dog"]
TOKENS = 6
PATTERN = r" [a-z]{2,4}( [a-z]{1,4}){0,1}\."
OPTIONS: tuple[dict[str, Any], ...] = (
    {"guidance": 1.0}, {"guidance": 0.5, "negative_prompt": "A cat sat on"}, {"repetition_penalty": 1.3},
    {"deadline": 1e6}, {"stop": ["e"]}, {"logit_bias": {" the": 3.0}, "ban": [" a"]}, {"only": [" a", " b", "."]},
    {"alternatives": 3}, {"samples": 2}, {"report_drift": True}, {"grow": 3}, {"temperature": 0.7, "top_k": 3},
    {"temperature": 0.0}, {"regex": PATTERN}, {"length_beam": 2}, {"end_token": "never"}, {"threshold": 0.05},
)  # fmt: skip
PAIRS = list(itertools.combinations(OPTIONS, 2))
KINDS = {"wedlm": "attn=causal,shift=0", "entropy-bound": "process=uniform", "dreamon": "expand=5,delete=6"}


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str | None, Model]]:
    kinds = [None, "attn=block_causal,block=4", "attn=prefix_causal", *KINDS.values()]
    opened = {kind: localdiff.load(threads=1, diffusion=kind) for kind in kinds}
    yield opened
    for model in opened.values():
        model.close()


def made(model: Model, prompts: list[str], options: dict[str, Any]) -> list[Generation]:
    """The texts, once what was given is found where it was."""
    stream = model.stream(prompts, **options)
    last = {event.index: event.canvas for event in stream}
    for index, canvas in last.items():
        given = model.tokenize(prompts[index // options.get("samples", 1)])
        assert canvas.tokens[: len(given)].tolist() == given
        assert not len(canvas.masked) or stream.results[index].stop_reason == "stop"
    return stream.results


def holds(model: Model, options: dict[str, Any]) -> bool:
    """Whether the options go together; where they do, what has to hold does."""
    options = {"max_new_tokens": TOKENS, "seed": 3, **options}
    try:
        together = made(model, PROMPTS, options)
    except OptionError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert re.fullmatch(r"[^\n]{20,400}", refusal)
        return False
    alone = [text for prompt in PROMPTS for text in made(model, [prompt], options)]
    for text, other in zip(together, alone, strict=True):
        assert (text.tokens, text.text, text.nfe) == (other.tokens, other.text, other.nfe)
        assert text.rows == other.rows or options["cache"] == "block"  # which knows the prompt by now
        assert len(text.tokens) == len(text.token_details) <= TOKENS
        assert "".join(each.text for each in text.token_details).strip() == text.text.strip() or "stop" in options
        assert not np.isin(text.tokens, model.spec.mask_token).any()  # type: ignore[union-attr]
        if "regex" in options:
            assert re.fullmatch(PATTERN, text.text)
    return True


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_goes_together_holds_and_the_rest_is_refused(models: dict[str | None, Model], decoder: str) -> None:
    number, went = list(DECODERS).index(decoder), 0
    for kind in (KINDS.get(decoder), "attn=block_causal,block=4", "attn=prefix_causal"):
        for place, cache in enumerate(CACHES):
            options = {"decoder": decoder, "cache": cache}
            try:
                models[kind].stream(PROMPTS[0], **options).close()
            except OptionError:
                continue
            first, second = PAIRS[(number * 41 + place * 17 + 5 * len(kind or "")) % len(PAIRS)]
            plain = ({}, {"regex": PATTERN}) if kind == KINDS.get(decoder) else ()
            for beside in (*plain, {**first, **second}):
                went += holds(models[kind], {**options, **beside})
    assert went
