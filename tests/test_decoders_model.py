"""Decoders as users meet them: every one on the embedded model, holes that choose their length, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, Logits
from text_metadata import tiny_bpe

import localdiff
from localdiff.canvas import Hole
from localdiff.decode.table import DECODERS
from localdiff.errors import OptionError
from localdiff.model import Model
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

TOKENIZER = Tokenizer.from_gguf(tiny_bpe())
VOCAB = TOKENIZER.vocab_size
BOS, MASK, EXPAND, DELETE = 260, 262, 1, 2


@pytest.mark.parametrize(
    "name", [name for name, row in DECODERS.items() if not row.traits & {"reorders", "noise"} and name != "dreamon"]
)
def test_every_decoder_writes_on_the_embedded_model(stories: Model, name: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "decoder": name, "seed": 2}
    if "expansions" in DECODERS[name].defaults:
        options["expansions"] = 1
    out = stories.generate("Once upon a time", **options)
    assert out.decoder["decoder"] == name
    assert out.tokens
    assert out.nfe >= 1
    assert stories.generate("Once upon a time", **options).tokens == out.tokens


def test_wedlm_reads_known_tokens_first(stories: Model) -> None:
    with localdiff.load(threads=1, diffusion="attn=causal,shift=0") as model:
        out = model.generate("Once upon a time", max_new_tokens=12, decoder="wedlm", seed=2)
        assert out.tokens
        assert out.decoder["distance_penalty"] == 0.02
    with pytest.raises(OptionError, match="needs a model with causal attention"):
        stories.generate("Once upon a time", decoder="wedlm")


def wants(before: list[int], wanted: list[int]) -> Logits:
    """A shifted model that is certain of `wanted` after `before`, and asks for more or fewer masks until it fits."""

    def logits(request: Any) -> np.ndarray:
        rows = np.full((len(request.tokens), VOCAB), -50.0)
        hole = len(request.tokens) - AFTER - len(before)
        for place in range(hole):
            fits = wanted[place] if hole == len(wanted) else EXPAND if hole < len(wanted) else DELETE
            rows[len(before) + place - 1, fits] = 50.0
        return rows

    return logits


BEFORE = [BOS, *TOKENIZER.encode("The", add_bos=False)]
WANTED = TOKENIZER.encode(" quick brown", add_bos=False)
AFTER = len(TOKENIZER.encode_parts(["", " fox"], add_bos=False))


@pytest.mark.parametrize("length", [1, len(WANTED), 30])
def test_holes_of_dreamon_grow_and_shrink(length: int) -> None:
    spec = DiffusionSpec(MASK, True, decoder="dreamon", expand_token=EXPAND, delete_token=DELETE)
    engine = FakeEngine(wants(BEFORE, WANTED), VOCAB, 128)
    model = Model(engine, tiny_bpe(), spec, Path("fake.gguf"))  # type: ignore[arg-type]
    stream = model.stream_infill(["The", Hole(length), " fox"])
    texts = [event.text for event in stream]
    assert stream.result.text == "The quick brown fox"
    assert stream.result.holes == [" quick brown"]
    assert stream.result.tokens == WANTED
    assert stream.result.nfe == 1 + len(WANTED) + abs(len(WANTED) - length)  # one: is "The" a whole word?
    assert texts[-1] == "The quick brown fox"


def test_tokens_that_ask_for_room_are_never_text() -> None:
    spec = DiffusionSpec(MASK, True, expand_token=EXPAND, delete_token=DELETE)
    engine = FakeEngine(wants(BEFORE, WANTED), VOCAB, 128)
    model = Model(engine, tiny_bpe(), spec, Path("fake.gguf"))  # type: ignore[arg-type]
    out = model.infill(["The", Hole(3), " fox"], decoder="llada")
    assert not {EXPAND, DELETE} & set(out.tokens)


def test_daedal_needs_a_text_that_ends(stories: Model) -> None:
    with pytest.raises(OptionError, match="this text has no end of its own"):
        stories.infill("Once [[4]] time", decoder="daedal")


def test_daedal_begins_short_and_makes_no_more_than_was_asked_for(stories: Model) -> None:
    stream = stories.stream("Once upon a time", max_new_tokens=80, decoder="daedal", seed=1)
    first, *_ = stream
    assert len(first.canvas) == stream.result.prompt_tokens + 72  # 64 masks, and the first growth of 8
    assert len(stream.result.tokens) <= 80
    assert len(stories.generate("Once upon a time", max_new_tokens=12, decoder="daedal", seed=1).tokens) <= 12


@pytest.mark.parametrize("name", ["rdm", "p2", "remdm", "llada2.1", "dream", "llada"])
def test_the_text_of_an_event_never_takes_back_what_it_said(stories: Model, name: str) -> None:
    options = {"edit_threshold": 0.05, "block_length": 8} if name == "llada2.1" else {}
    texts = [e.text for e in stories.stream("Once", max_new_tokens=24, decoder=name, seed=3, **options)]
    assert texts[-1]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
