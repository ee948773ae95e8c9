"""Holes that begin or end inside a word: given characters stay, their tokens may reach into the hole."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, FakeSession, Logits, point_mass
from hypothesis import given, settings
from hypothesis import strategies as st
from text_metadata import read, tiny_bpe

from localdiff.canvas import Hole
from localdiff.engine import Proposal, Request
from localdiff.model import Model
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

KINDS = ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3", "bert-bge"]
LOSSLESS = {"gpt-2", "llama-bpe", "qwen2", "llama-spm"}
TEXT = "Once upon a time the happiness of 12 children's unbelievable elephants, Zoë and naïve Jörg, ended: it was over."
TINY = Tokenizer.from_gguf(tiny_bpe())
MASK = 262
LARGEST = 152_000  # tokens of any of the vocabularies


@cache
def metadata_of(folder: Path, kind: str) -> dict[str, Any]:
    return read(folder / "tokenizers" / f"ggml-vocab-{kind}.gguf")


@cache
def tokenizer_of(folder: Path, kind: str) -> Tokenizer:
    return Tokenizer.from_gguf(metadata_of(folder, kind))


class AnyTokens(FakeSession):
    """Proposes random tokens that are not forbidden, without logits, which large vocabularies make slow."""

    vocab: int

    def _propose(self, request: Request) -> Proposal:
        rng = np.random.default_rng([request.step, request.seed, len(request.tokens)])
        allowed = np.ones(LARGEST, bool)
        assert request.forbidden is not None
        allowed[request.forbidden] = False
        allowed[self.vocab :] = False
        tokens = rng.choice(np.flatnonzero(allowed), len(request.score)).astype(np.int32)
        scores = np.sort(rng.random(len(tokens))).astype(np.float32)
        none = np.empty((len(tokens), 0))
        return Proposal(tokens, scores, scores, -scores, none.astype(np.int32), none.astype(np.float32))


class AnyEngine(FakeEngine):
    def session(self, *arguments: Any, **named: Any) -> FakeSession:
        self.sessions.append(AnyTokens(point_mass([0], 1)))
        self.sessions[-1].vocab = self.info.vocab  # type: ignore[attr-defined]
        return self.sessions[-1]


def model_of(folder: Path, kind: str) -> Model:
    tokenizer = tokenizer_of(folder, kind)
    engine = AnyEngine(point_mass([0], 1), tokenizer.vocab_size, 512)
    model = Model(engine, metadata_of(folder, kind), DiffusionSpec(3, False), Path("fake.gguf"))  # type: ignore[arg-type]
    model.__dict__["tokenizer"] = tokenizer  # made once for all
    return model


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=12)
@given(
    cuts=st.lists(st.integers(0, len(TEXT)), min_size=1, max_size=5, unique=True),
    lengths=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_given_characters_stay_word_for_word(
    data_dir: Path, kind: str, cuts: list[int], lengths: list[int], seed: int
) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    texts = [TEXT[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    parts: list[str | Hole] = []
    for text, length in zip(texts, [*lengths, 0][: len(texts) - 1] + [0], strict=True):
        parts += [part for part in (text, Hole(length) if length else "") if part != ""]
    tokenizer = tokenizer_of(data_dir, kind)
    stream = model_of(data_dir, kind).stream_infill(parts, decoder="threshold", seed=seed)
    tokens = [event.canvas.tokens for event in stream][-1].tolist()
    out = stream.result
    holes, rest = iter(out.holes), out.text
    for part in parts:
        piece = part if isinstance(part, str) else next(holes)
        assert rest.startswith(piece)
        rest = rest[len(piece) :]
    assert not rest
    assert len(out.tokens) == sum(part.length or 0 for part in parts if isinstance(part, Hole))
    if kind in LOSSLESS:  # the canvas says the same, but for a space before a hole, which its first word may lack
        said = tokenizer.decode(tokens)
        assert said.replace(" ", "") == out.text.replace(" ", "")


def certain(wanted: dict[int, int]) -> Logits:
    """A model that is sure of some tokens, by position."""

    def logits(request: Any) -> np.ndarray:
        rows = np.zeros((len(request.tokens), TINY.vocab_size))
        rows[:, 10] = 1.0
        for position, token in wanted.items():
            rows[position, token] = 30.0
        return rows

    return logits


def tiny(logits: Logits) -> tuple[Model, FakeEngine]:
    engine = FakeEngine(logits, TINY.vocab_size, 128)
    return Model(engine, tiny_bpe(), DiffusionSpec(MASK, False), Path("fake.gguf")), engine  # type: ignore[arg-type]


HE, LL, HELL, HELLO = (TINY.token_id(text) for text in ("he", "ll", "hell", "hello"))
LETTER_O = TINY.token_id("o")


def test_a_likelier_token_takes_the_place_of_a_partial_word() -> None:
    assert None not in (HE, LL, HELL, HELLO)
    before = len(TINY.encode("a ", add_bos=False))
    model, engine = tiny(certain({before: HELLO}))  # type: ignore[dict-item]
    out = model.infill("a he[[2]].")
    assert out.text.startswith("a hello")
    assert out.holes[0].startswith("llo")
    assert HELLO in engine.sessions[0].requests[1][0].tokens
    assert out.nfe == len(engine.sessions[0].requests)


def test_the_given_token_stays_where_it_is_likelier() -> None:
    before = len(TINY.encode("a ", add_bos=False))
    model, engine = tiny(certain({before: HE}))  # type: ignore[dict-item]
    out = model.infill("a he[[2]].")
    assert HE in engine.sessions[0].requests[1][0].tokens
    assert out.text.startswith("a he")


def test_words_are_healed_at_the_end_of_a_hole() -> None:
    opening = TINY.encode("a", add_bos=False)
    model, engine = tiny(certain({len(opening) + 2: HELLO}))  # type: ignore[dict-item]
    out = model.infill("a [[2]]o b")
    assert HELLO in engine.sessions[0].requests[1][0].tokens
    assert out.holes[0].endswith("hell")
    assert out.text.endswith("hello b")
    model, engine = tiny(certain({len(opening) + 2: LETTER_O}))  # type: ignore[dict-item]
    assert model.infill("a [[2]]o b").text.endswith("o b")


def test_a_word_between_two_holes_is_healed_on_both_sides() -> None:
    model, _ = tiny(certain({}))
    for text in ("a [[2]]o[[2]] b", "a he[[1]]he[[1]]o", "[[1]]he[[1]]", "he[[1]][[1]]o"):
        out = model.infill(text)
        given_parts = [part for part in text.replace("]]", "[[").split("[[") if part and not part.isdigit()]
        at = 0
        for part in given_parts:
            at = out.text.index(part.strip(), at) + len(part.strip())


def test_no_pass_is_spent_where_words_are_whole() -> None:
    model, engine = tiny(certain({}))
    model.infill("he [[2]] he. [[2]], he", decoder="threshold", threshold=0.0, block_length=8)
    assert len(engine.sessions[0].requests) == 1
