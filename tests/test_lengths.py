"""How long a text becomes: canvases that grow, nothing computed behind its end, lengths tried side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, FakeSession, Logits, point_mass, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoders import STOP, VOCAB, a_job, random_job, run
from text_metadata import tiny_bpe

import localdiff
from localdiff.canvas import GIVEN, MASKED, Canvas, Commits, Hole
from localdiff.decode.loop import denoise, longer
from localdiff.decode.table import DECODERS
from localdiff.errors import OptionError
from localdiff.model import Model
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer
from localdiff.trace import Trace

TOKENIZER = Tokenizer.from_gguf(tiny_bpe())
BOS, EOS, MASK = 260, 261, 262
GROWING = [name for name, row in DECODERS.items() if "resizes" not in row.traits]


@pytest.mark.parametrize("name", GROWING)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), grow=st.integers(1, 9), extra=st.integers(1, 20), ends=st.booleans())
def test_canvases_grow_until_the_text_ends_or_the_room_does(
    name: str, seed: int, grow: int, extra: int, ends: bool
) -> None:
    job, logits = random_job(name, seed)
    if job.settings.steps is not None and "block_length" in DECODERS[name].defaults:  # a step for each block
        grow = min(grow, job.settings.steps)
    room = len(job.canvas) + extra
    job = replace(job, grow=grow, room=room, stop_tokens=(STOP,) if ends else ())
    first = job.canvas.apply(job.decoder.start(job.canvas))
    steps = run(job, logits)
    written = np.full(len(first), -1)  # what may not change any more
    for step, canvas in zip(steps, Trace(first, tuple(s.commits for s in steps)).canvases(), strict=True):
        assert np.array_equal(canvas.tokens, step.canvas.tokens)
        assert np.array_equal(canvas.state, step.canvas.state)
        assert np.array_equal(canvas.origin, np.arange(len(canvas)))
        assert not np.any((written >= 0) & (canvas.tokens[: len(written)] != written))
        if len(canvas) > len(written):  # a stretch is full
            assert not np.any(canvas.state[: len(written)] == MASKED)
            assert len(canvas) == longer(len(written), grow, job.attention_block, room)
            written = np.concatenate([canvas.tokens[: len(written)], np.full(len(canvas) - len(written), -1)])
    last = steps[-1]
    stopped = ends and STOP in last.canvas.tokens[job.answer :][last.canvas.state[job.answer :] != GIVEN]
    assert last.stop_reason == ("stop" if stopped else "length")
    assert len(last.canvas) == room or stopped
    assert np.array_equal(last.canvas.tokens[: len(job.canvas)][job.canvas.state == GIVEN],
                          job.canvas.tokens[job.canvas.state == GIVEN])  # fmt: skip


def test_growing_ends_at_the_blocks_of_the_model() -> None:
    assert [longer(length, 6, 4, 100) for length in (0, 3, 4, 12)] == [8, 12, 12, 20]
    assert [longer(length, 6, 0, 20) for length in (0, 13, 14, 20, 25)] == [6, 19, 20, 20, 25]
    assert longer(5, 0, 4, 100) == 5


def test_a_longer_canvas_may_begin_with_other_tokens_than_masks() -> None:
    canvas = Canvas.of([[1], Hole(1)], MASK)
    one, two = np.array([1], np.int32), np.array([2], np.int32)
    noise = Commits(two, np.array([7], np.int32), None, np.array([MASKED], np.uint8))
    after = canvas.apply(replace(Commits(one, one).together(noise), added=2))
    assert after.tokens.tolist() == [1, 1, 7, MASK]
    assert after.state.tolist() == [GIVEN, 2, MASKED, MASKED]
    assert after.origin.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="cannot be joined"):
        Commits(one, one, copies=np.array([2], np.int32)).together(noise)


@pytest.mark.parametrize("name", [name for name, row in DECODERS.items() if not row.traits & {"resizes", "reorders"}])
def test_nothing_behind_a_settled_end_is_computed(name: str) -> None:
    for seed in range(30):
        job = replace(random_job(name, seed)[0], stop_tokens=(STOP,))
        job = replace(job, answer=int(job.canvas.maskable[0]))
        session, known = FakeSession(random_table(VOCAB)), job.canvas
        settled = 0
        for step in denoise(session, [job]):
            written = (known.state != GIVEN) & (known.state != MASKED) & (known.tokens == STOP)
            ends = [i for i in np.flatnonzero(written) if i < settled]
            request, seen = session.requests[-1][0], ends[0] + 1 if ends else len(known)
            if request.hidden is not None and request.attention == "block_causal":  # no further than the block
                last, size = max(request.hidden[-1], request.score[-1]), request.block_length
                seen = min(seen, (last // size + 1) * size)
            assert len(request.tokens) == seen
            known, settled = step.canvas, step.settled
        assert not np.any(known.state[: known.tokens.tolist().index(STOP) if STOP in known.tokens else None] == MASKED)


def model_of(
    logits: Logits, context: int = 128, likeliest: Sequence[int] = (), **spec: Any
) -> tuple[Model, FakeEngine]:
    """likeliest: what the length head says, where it has one, likeliest first."""
    lengths = np.zeros(context, np.float32)
    lengths[np.array(likeliest, int) - 1] = np.arange(len(likeliest), 0, -1)
    engine = FakeEngine(logits, TOKENIZER.vocab_size, context, lengths if likeliest else None)
    record = DiffusionSpec(MASK, True, **spec)
    return Model(engine, tiny_bpe(), record, Path("fake.gguf")), engine  # type: ignore[arg-type]


SAID = " over the hill."
BEFORE = [BOS, *TOKENIZER.encode("The cow", add_bos=False)]
IDS = [*BEFORE, *TOKENIZER.encode(SAID, add_bos=False)]
SAYS = point_mass([*IDS, *[EOS] * (120 - len(IDS))], TOKENIZER.vocab_size, shift=True)


@pytest.mark.parametrize("grow", [1, 4, 7, 100])
@pytest.mark.parametrize("decoder", ["random-keep", "topk", "llada", "threshold", "rdm", "p2"])
def test_an_answer_grows_until_it_ends(decoder: str, grow: int) -> None:
    model, engine = model_of(SAYS)
    stream = model.stream("The cow", decoder=decoder, grow=grow, seed=3)
    texts = [event.text for event in stream]
    assert stream.result.text == SAID
    assert stream.result.stop_reason == "stop"
    assert stream.result.decoder["grow"] == grow
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    longest = max(len(request.tokens) for call in engine.sessions[0].requests for request in call)
    made = len(IDS) - len(BEFORE) + 1
    assert longest == min(128, len(BEFORE) + -(-made // grow) * grow)
    assert [*stream.trace.canvases()][-1].tokens[: len(IDS)].tolist() == IDS
    assert model.generate("The cow", decoder=decoder, grow=grow, max_new_tokens=3).text == SAID[:3]


def test_text_of_earlier_stretches_is_settled() -> None:
    model, _ = model_of(SAYS)
    texts = {event.text for event in model.stream("The cow", decoder="rdm", steps=2, grow=4)}
    made = IDS[len(BEFORE) :]
    assert {TOKENIZER.decode(made[:count], continues=True) for count in (4, 8, 12)} <= texts


def test_growing_block_by_block_changes_nothing_where_blocks_see_no_later_ones() -> None:
    with localdiff.load(threads=1, diffusion="attn=block_causal,block=8") as model:
        for decoder in ("threshold", "llada2.1"):
            whole = model.generate("Once upon a time", decoder=decoder, max_new_tokens=36, temperature=0, threshold=0.3)
            grown = model.generate(
                "Once upon a time", decoder=decoder, max_new_tokens=36, temperature=0, threshold=0.3, grow=8
            )
            assert grown.text == whole.text


def test_canvases_that_grow_are_refused_where_they_cannot() -> None:
    model, _ = model_of(SAYS)
    with pytest.raises(OptionError, match="infill has no grow"):
        model.infill("a [[2]]", grow=4)
    with pytest.raises(OptionError, match="expected 1 or more|expected 1 to"):
        model.generate("a", grow=0)


# ---- several lengths side by side ----


def surest_at(length: int) -> Logits:
    """A model that is sure of its tokens in a canvas of one length only."""

    def logits(request: Any) -> np.ndarray:
        rows = random_table(TOKENIZER.vocab_size)(request)
        rows[:, 5] += 20.0 if len(request.tokens) == length else 3.0
        return rows

    return logits


def test_the_surest_of_several_lengths_is_kept() -> None:
    model, engine = model_of(surest_at(len(BEFORE) + 9 + 1), likeliest=[6, 3, 12, 9, 7], decoder="rdm", steps=4)
    stream = model.stream("The cow", length_beam=4, seed=1)
    events = list(stream)
    assert engine.sessions[0].prompts == [BEFORE]
    shown = [request.tokens.tolist() for request in engine.sessions[-1].requests[0]]
    assert shown == [[*BEFORE, *[MASK] * length, EOS] for length in (6, 3, 12, 9)]
    assert {len(event.canvas) for event in events} == {len(BEFORE) + 9 + 1}
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert len(stream.result.tokens) == 9
    assert stream.result.prompt_tokens == len(BEFORE)
    assert stream.result.nfe == 4 + 1
    assert len(stream.results) == len(stream.traces) == 1
    alone, _ = model_of(surest_at(len(BEFORE) + 9 + 1), likeliest=[9], decoder="rdm", steps=4)
    assert stream.result.tokens == alone.generate("The cow", seed=1).tokens


def test_a_length_head_says_how_long_an_answer_is() -> None:
    model, engine = model_of(SAYS, context=20, likeliest=[9, 4], decoder="rdm", steps=3)
    said = model.generate("The cow")
    assert said.tokens == IDS[len(BEFORE) : len(BEFORE) + 9]
    assert "".join(each.text for each in said.token_details) == said.text == TOKENIZER.decode(said.tokens)
    events = list(model.stream("The cow", seed=1))
    assert events[-1].text == said.text
    assert sum(span.tokens for span in events[0].spans) == 9  # the end token is none of the text
    # no more than was asked for, nor than there is room for beside the token that ends the text
    assert len(model.generate("The cow", max_new_tokens=5).tokens) == 5
    assert len(model.generate([5] * 15).tokens) == 4
    assert len(model.generate([5] * 19).tokens) == 1
    asked = sum(len(session.prompts) for session in engine.sessions)
    assert asked == 5
    # others go by what the caller says
    assert len(model.generate("The cow", decoder="topk", max_new_tokens=7).tokens) == 7
    assert len(model.infill("The cow[[6]]").tokens) == 6
    assert model.generate("The cow", grow=4, max_new_tokens=3).nfe == 3
    assert asked == sum(len(session.prompts) for session in engine.sessions)


def test_lengths_are_tried_where_something_says_which() -> None:
    model, _ = model_of(SAYS, decoder="rdm")
    with pytest.raises(OptionError, match="length head finds likeliest for a prompt, but this model has none"):
        model.generate("The cow", length_beam=2)
    assert len(model.generate("The cow", length_beam=1, max_new_tokens=3).tokens) == 3
    model = Model(FakeEngine(SAYS, TOKENIZER.vocab_size, lengths=np.ones(9, np.float32)), tiny_bpe(),  # type: ignore[arg-type]
                  DiffusionSpec(MASK, False, decoder="rdm"), Path("fake.gguf"))  # fmt: skip
    with pytest.raises(OptionError, match="but the prompt is empty"):
        model.generate("", length_beam=2)
    assert model.generate("", max_new_tokens=3).nfe == 3


def test_holes_of_open_length_are_tried_in_several() -> None:
    model, engine = model_of(surest_at(1 + 1 + 8 + 1), decoder="rdm", steps=4)
    out = model.infill("a[[]]&", length_beam=3, seed=1)  # token 5
    tried = {len(request.tokens) - 3 for request in engine.sessions[0].requests[1]}
    assert len(tried) == 3
    assert len(out.tokens) == 8
    two = model.infill("a[[]]b[[]]c", length_beam=4, seed=1)
    assert len(two.holes) == 2
    with pytest.raises(OptionError, match="no hole has an open length"):
        model.infill("a[[2]]b", length_beam=3)


def test_a_batch_of_texts_has_drafts_of_its_own() -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size), likeliest=[4, 6, 2], decoder="rdm", steps=4)
    together = model.generate(["The cow", "a"], max_new_tokens=6, length_beam=3, seed=1)
    alone = [model.generate(prompt, max_new_tokens=6, length_beam=3, seed=1) for prompt in ("The cow", "a")]
    assert [out.tokens for out in together] == [out.tokens for out in alone]


def test_traces_are_checked_where_they_are_read() -> None:
    job = a_job("topk", "g..g.", 1)
    trace = Trace(job.canvas, tuple(step.commits for step in run(job, random_table(VOCAB))))
    assert len([*Trace.from_json(trace.to_json()).canvases()]) == len(trace.steps)
    for damaged in ("", "[]", "{}", trace.to_json().replace("positions", "places")):
        with pytest.raises(OptionError, match="the trace cannot be read"):
            Trace.from_json(damaged)
