"""Model over a fake engine: prompts, batches, streams, infilling, cancelling, sessions."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, Logits, point_mass, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from text_metadata import tiny_bpe, tiny_spm

import localdiff
from localdiff.canvas import COMMITTED, Hole
from localdiff.errors import Cancelled, ModelFileError, OptionError
from localdiff.infill import LENGTHS, parse_infill
from localdiff.model import Model
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

TOKENIZER = Tokenizer.from_gguf(tiny_bpe())
VOCAB = TOKENIZER.vocab_size
BOS, EOS, MASK = 260, 261, 262


def model_of(
    logits: Logits, spec: DiffusionSpec | None = None, metadata: dict[str, Any] | None = None, vocab: int = VOCAB,
    context: int = 128,
) -> tuple[Model, FakeEngine]:  # fmt: skip
    engine = FakeEngine(logits, vocab, context)
    spec = spec or DiffusionSpec(MASK, True)
    return Model(engine, metadata or tiny_bpe(), spec, Path("fake.gguf")), engine  # type: ignore[arg-type]


def says(text: str, prompt: str = "", end: bool = True) -> Logits:
    """A shifted model that is certain of bos, prompt, text and eos."""
    ids = [BOS, *TOKENIZER.encode(prompt, add_bos=False), *TOKENIZER.encode(text, add_bos=False)]
    return point_mass([*ids, *[EOS] * (120 - len(ids) if end else 0)], VOCAB, shift=True)


# ---- generate ----


@pytest.mark.parametrize("decoder", ["random-keep", "topk", "llada", "threshold"])
def test_generate_gives_the_text_and_what_it_took(decoder: str) -> None:
    model, engine = model_of(says(" over the hill.", "The cow"))
    out = model.generate("The cow", max_new_tokens=40, decoder=decoder, seed=3)
    assert out.text == " over the hill."
    assert out.tokens == TOKENIZER.encode(" over the hill.", add_bos=False)
    assert out.stop_reason == "stop"
    assert out.prompt_tokens == 1 + len(TOKENIZER.encode("The cow", add_bos=False))
    assert out.nfe == len(engine.sessions[0].requests)
    assert out.tokens_per_forward == len(out.tokens) / out.nfe
    assert 0 <= (out.first_settled_seconds or 0) <= out.seconds
    assert (out.seed, out.device, out.isa, out.threads, out.model) == (3, "cpu", "none", 1, "fake")
    assert out.decoder["decoder"] == decoder
    assert set(out.as_dict()) == {
        "text", "tokens", "prompt_tokens", "nfe", "seconds", "answer_tokens_per_second", "tokens_per_forward",
        "first_settled_seconds", "stop_reason", "seed", "model", "decoder", "device", "isa", "threads", "rows",
        "token_details",
    }  # fmt: skip


def test_without_a_stop_token_the_canvas_is_filled() -> None:
    model, _ = model_of(says("ab" * 30, end=False))
    out = model.generate("", max_new_tokens=10, seed=1)
    assert (out.text, out.stop_reason, len(out.tokens)) == ("ababababab", "length", 10)


def test_a_new_seed_each_time_unless_given() -> None:
    model, _ = model_of(random_table(VOCAB))
    outs = model.generate(["hello"] * 4, max_new_tokens=12)
    assert len({out.seed for out in outs}) == 4
    again = model.generate("hello", max_new_tokens=12, seed=outs[2].seed)
    assert again.tokens == outs[2].tokens


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("hello wrd", max_size=20), min_size=1, max_size=5), st.integers(0, 2**32), st.booleans())
def test_batch_equals_single(prompts: list[str], seed: int, shift: bool) -> None:
    model, engine = model_of(random_table(VOCAB), DiffusionSpec(MASK, shift, stop_tokens=(5,)))
    options = {"max_new_tokens": 12, "steps": 4, "seed": seed}
    batch = model.generate(prompts, **options)
    calls = len(engine.sessions[0].requests)
    assert calls == max(out.nfe for out in batch)  # one call per step for all
    for prompt, out in zip(prompts, batch, strict=True):
        alone = model.generate(prompt, **options)
        assert (alone.text, alone.tokens, alone.nfe) == (out.text, out.tokens, out.nfe)


def test_raw_ids_are_taken_as_they_are() -> None:
    model, engine = model_of(random_table(VOCAB))
    ids = [7, MASK, BOS, 9]
    model.generate(ids, max_new_tokens=3, steps=1)
    assert engine.sessions[0].requests[0][0].tokens.tolist() == [*ids, MASK, MASK, MASK]
    batch = model.generate([ids, [5]], max_new_tokens=3, steps=1)
    assert [out.prompt_tokens for out in batch] == [4, 1]
    assert model.generate(np.array(ids), max_new_tokens=3, steps=1).prompt_tokens == 4  # type: ignore[call-overload]


def test_with_shift_position_0_is_given() -> None:
    for metadata, lead in ((tiny_bpe(), BOS), (tiny_bpe(**{"tokenizer.ggml.bos_token_id": None}), MASK)):
        model, engine = model_of(random_table(VOCAB), metadata=metadata)
        out = model.generate("", max_new_tokens=4, seed=1)
        request = engine.sessions[0].requests[0][0]
        assert request.tokens.tolist() == [lead] + [MASK] * 4
        assert request.score.tolist() == [1, 2, 3, 4]
        assert len(out.tokens) == 4
        model.infill([Hole(2), " x"])
        assert engine.sessions[0].requests[-1][0].tokens[0] == lead
    model, engine = model_of(random_table(VOCAB), DiffusionSpec(MASK, False))
    model.generate("", max_new_tokens=4)
    assert engine.sessions[0].requests[0][0].score.tolist() == [0, 1, 2, 3]


def test_the_mask_and_rows_without_token_are_never_proposed() -> None:
    model, engine = model_of(point_mass([MASK], VOCAB + 3), vocab=VOCAB + 3)
    out = model.generate("hello", max_new_tokens=4)
    assert MASK not in out.tokens
    assert engine.sessions[0].requests[0][0].forbidden.tolist() == [MASK, VOCAB, VOCAB + 1, VOCAB + 2]


def test_attention_of_the_record_reaches_the_engine() -> None:
    spec = DiffusionSpec(MASK, False, attention="prefix_causal")
    model, engine = model_of(random_table(VOCAB), spec)
    model.generate("hello", max_new_tokens=4)
    request = engine.sessions[0].requests[0][0]
    assert (request.attention, request.prefix) == ("prefix_causal", len(request.tokens) - 4)
    spec = DiffusionSpec(MASK, False, attention="block_causal", block_length=4)
    model, engine = model_of(random_table(VOCAB), spec)
    model.generate("hello", max_new_tokens=4, decoder="threshold", block_length=8)
    request = engine.sessions[0].requests[0][0]
    assert (request.attention, request.block_length) == ("block_causal", 4)


def test_pads_at_the_end_are_left_out() -> None:
    pad = 5
    logits = point_mass([BOS, 1, 2, pad, 3, pad, pad, pad], VOCAB, shift=True)
    model, _ = model_of(logits, DiffusionSpec(MASK, True, pad_token=pad))
    assert model.generate("", max_new_tokens=7).tokens == [1, 2, pad, 3]


def test_stop_tokens_of_the_record_replace_the_tokenizers() -> None:
    logits = point_mass([BOS, 1, EOS, 2, 3, 4], VOCAB, shift=True)
    assert model_of(logits)[0].generate("", max_new_tokens=4).tokens == [1]
    spec = DiffusionSpec(MASK, True, stop_tokens=(3,))
    assert model_of(logits, spec)[0].generate("", max_new_tokens=4).tokens == [1, EOS, 2]


def test_sentencepiece_answers_keep_their_first_space() -> None:
    metadata = tiny_spm()
    space_a, b = len(metadata["tokenizer.ggml.tokens"]) - 2, 261
    vocab = len(metadata["tokenizer.ggml.tokens"])
    spec = DiffusionSpec(0, False, stop_tokens=(2,))
    model, _ = model_of(point_mass([space_a, b] * 20, vocab), spec, metadata, vocab)
    prompt = model.tokenize("ab")
    out = model.generate("ab", max_new_tokens=2 + len(prompt) % 2, decoder="llada")
    assert out.text.removeprefix("b") == " ab"
    assert model.generate("", max_new_tokens=3, decoder="llada").text == "b ab"


# ---- limits and refusals ----


def test_what_is_no_prompt_is_refused_and_a_model_says_what_it_is() -> None:
    model, _ = model_of(random_table(VOCAB), DiffusionSpec(MASK, True))
    for wrong, kind in ((5, "int"), (None, "NoneType")):
        with pytest.raises(OptionError, match=f"the prompt is a {kind}, expected text"):
            model.generate(wrong)  # type: ignore[call-overload]
    assert repr(model).startswith(f"<Model {model.name}: ")


def test_prompts_that_do_not_fit() -> None:
    model, _ = model_of(random_table(VOCAB), DiffusionSpec(MASK, True, canvas_max=16))
    assert model.canvas_limit == 16
    with pytest.raises(OptionError, match=r"would have 6 \+ 11 tokens, but the canvas holds 16"):
        model.generate("abcde", max_new_tokens=11)
    with pytest.raises(OptionError, match=r"would have 16 \+ 1 tokens"):
        model.generate("a" * 15)
    assert len(model.generate("a" * 14, max_new_tokens=1).tokens) == 1
    assert model.generate("abcde").decoder["steps"] == 10  # the default number of tokens is what fits
    with pytest.raises(OptionError, match="the text has 18 tokens, holes included, but the canvas holds 16"):
        model.infill("abcde [[12]]")


def test_records_that_do_not_fit_the_model() -> None:
    with pytest.raises(OptionError, match="mask_token is 999, but the vocabulary has 263 tokens"):
        model_of(random_table(VOCAB), DiffusionSpec(999, True))
    with pytest.raises(OptionError, match="canvas_max is 500, but the context of the model has 128"):
        model_of(random_table(VOCAB), DiffusionSpec(MASK, True, canvas_max=500))


def test_without_a_record_only_logits_work() -> None:
    engine = FakeEngine(random_table(VOCAB), VOCAB)
    model = Model(engine, tiny_bpe(), None, Path("plain.gguf"))  # type: ignore[arg-type]
    assert model.logits([1, 2, 3]).shape == (3, VOCAB)
    for ask in (lambda: model.generate("a"), lambda: model.infill("a [[3]]"), lambda: model.stream("a")):
        with pytest.raises(OptionError, match="plain.gguf has no diffusion record.*--diffusion mask=ID,shift=0|1"):
            ask()


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("a", {"colour": 1}, TypeError, "colour"),
        ("a", {"steps": 0}, OptionError, "steps is 0"),
        ("a", {"decoder": "threshold", "steps": 3}, OptionError, "threshold has no option steps"),
        ([], {}, OptionError, "list of prompts is empty"),
        ([5, 263], {}, OptionError, "token id 263 is outside the vocabulary, expected 0 to 262"),
        ([-1], {}, OptionError, "token id -1 is outside"),
        ([0.5], {}, OptionError, "expected a list of ids"),
    ],
)
def test_wrong_calls(prompt: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, engine = model_of(random_table(VOCAB))
    with pytest.raises(error, match=message):
        model.generate(prompt, **options)
    assert not engine.sessions


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="device is 'tpu', expected one of auto, cpu, cuda"):
        localdiff.load(tmp_path / "x.gguf", device="tpu")
    with pytest.raises(ModelFileError):
        localdiff.load(tmp_path / "absent.gguf")


# ---- streams ----


def test_events_replay_and_settle() -> None:
    model, _ = model_of(says("abcdefgh", "hello"))
    options = {"max_new_tokens": 20, "decoder": "llada", "block_length": 4, "steps": 20}
    stream = model.stream("hello", **options)
    events = list(stream)
    assert [event.step for event in events] == list(range(1, len(events) + 1))
    known = ""
    for event in events:
        assert event.text.startswith(known)
        known = event.text
        assert (event.canvas.state[event.positions] == COMMITTED).all()
        assert {span.kind for span in event.spans} <= {"settled", "fresh", "masked"}
        assert "".join(span.text for span in event.spans if span.kind != "masked").startswith(known)
    assert known == stream.result.text == "abcdefgh"
    assert events[-1].stop_reason == stream.result.stop_reason == "stop"
    assert stream.result.tokens == model.generate("hello", **options).tokens


def test_spans_show_what_is_fresh_and_what_is_masked() -> None:
    model, _ = model_of(says("abcd", "hello"))
    events = list(model.stream("hello", max_new_tokens=4, decoder="llada", block_length=1))
    assert [(span.kind, span.text, span.tokens) for span in events[1].spans] == [
        ("settled", "a", 1), ("fresh", "b", 1), ("masked", "", 2)
    ]  # fmt: skip
    assert [(span.kind, span.text) for span in events[3].spans] == [("settled", "abc"), ("fresh", "d")]


def test_half_characters_wait_in_text_and_spans() -> None:
    model, _ = model_of(says("é!", end=False))
    events = list(model.stream("", max_new_tokens=3, decoder="llada", block_length=1))
    assert [event.text for event in events[1:]] == ["é", "é!"]
    assert "".join(span.text for span in events[1].spans) == "é"


def test_events_of_a_batch_say_whose_they_are() -> None:
    model, _ = model_of(random_table(VOCAB))
    stream = model.stream(["a", "hello hello"], max_new_tokens=6, steps=3, decoder="topk", seed=1)
    assert {event.index for event in stream} == {0, 1}
    assert [len(result.tokens) for result in stream.results] == [6, 6]


def test_closing_early_keeps_what_was_settled() -> None:
    model, engine = model_of(says("abcdefgh"))
    stream = model.stream("", max_new_tokens=8, decoder="llada", block_length=1)
    for _ in range(3):
        next(stream)
    stream.close()
    assert (stream.result.text, stream.result.stop_reason, stream.result.nfe) == ("abc", "cancelled", 3)
    assert list(stream) == []
    never = model.stream("", max_new_tokens=8)
    never.close()
    assert (never.result.text, never.result.nfe) == ("", 0)
    assert len(engine.sessions) == 1


# ---- cancel and sessions ----


def test_cancel_from_another_thread() -> None:
    model, engine = model_of(says("abcdefgh"))
    model.generate("", max_new_tokens=1)
    calls = 0

    def cancel_in_the_third_call() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            other = threading.Thread(target=model.cancel)
            other.start()
            other.join()

    engine.sessions[0].before_call = cancel_in_the_third_call
    stream = model.stream("", max_new_tokens=8, decoder="llada", block_length=1)
    with pytest.raises(Cancelled):
        list(stream)
    assert (stream.result.text, stream.result.stop_reason) == ("ab", "cancelled")
    assert engine.sessions[0].closed  # a late cancellation cannot hit the next text
    assert model.generate("", max_new_tokens=8).text == "abcdefgh"


def test_cancel_of_one_stream_leaves_the_others() -> None:
    model, _ = model_of(says("abcdefgh"))
    streams = [model.stream("", max_new_tokens=8, decoder="llada", block_length=1) for _ in range(2)]
    for stream in streams:
        next(stream)
    streams[0].cancel()
    with pytest.raises(Cancelled):
        list(streams[0])
    assert len(list(streams[1])) == 7
    early = model.stream("", max_new_tokens=8)
    early.cancel()
    with pytest.raises(Cancelled):
        next(early)


def test_cancel_after_the_end_hits_nobody() -> None:
    model, _ = model_of(says("abcdefgh"))
    stream = model.stream("", max_new_tokens=8)
    list(stream)
    stream.cancel()
    model.cancel()
    assert model.generate("", max_new_tokens=8).text == "abcdefgh"


def test_sessions_are_kept_and_grow() -> None:
    model, engine = model_of(random_table(VOCAB))
    for count in (4, 20, 1):
        model.generate("hello", max_new_tokens=count)
    assert [session.slot_length for session in engine.sessions] == [64]
    model.generate(["a", "b"], max_new_tokens=70)
    assert [(session.slots, session.slot_length, session.closed) for session in engine.sessions] == [
        (1, 64, True), (2, 128, False)
    ]  # fmt: skip
    model.generate(["a", "b"], max_new_tokens=5)
    assert len(engine.sessions) == 2
    model.close()
    assert engine.closed
    assert all(session.closed for session in engine.sessions)


# ---- infill ----


def test_parse_infill() -> None:
    assert parse_infill("Once [[8]] and [[]].") == ["Once ", Hole(8), " and ", Hole(), "."]
    assert parse_infill("[[2]][[ 3 ]]") == [Hole(2), Hole(3)]
    assert parse_infill("no hole [1] [[x]]") == ["no hole [1] [[x]]"]
    with pytest.raises(OptionError, match="length of a hole is 0"):
        parse_infill("a [[0]]")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("ab é[", max_size=6) | st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_given_text_stays_word_for_word(parts: list[str | int], shift: bool) -> None:
    model, engine = model_of(random_table(VOCAB), DiffusionSpec(MASK, shift))
    pieces = [part if isinstance(part, str) else Hole(part) for part in parts]
    if not any(isinstance(part, int) for part in parts):
        with pytest.raises(OptionError, match="has no hole"):
            model.infill(pieces)
        return
    out = model.infill(pieces, steps=3)
    rest = out.text
    holes = iter(out.holes)
    for part in parts:
        piece = part if isinstance(part, str) else next(holes)
        assert rest.startswith(piece)
        rest = rest[len(piece) :]
    assert not rest
    assert len(out.tokens) == sum(part for part in parts if isinstance(part, int))
    assert not {EOS, MASK} & set(out.tokens)
    first = engine.sessions[0].requests[0][0]
    assert len(first.tokens) == out.prompt_tokens + len(out.tokens)


def test_the_space_before_a_hole_goes_with_its_word() -> None:
    ids = [BOS, *TOKENIZER.encode("a hello.", add_bos=False)]
    model, engine = model_of(point_mass(ids, VOCAB, shift=True))
    out = model.infill("a [[2]].")
    assert engine.sessions[0].requests[0][0].tokens.tolist() == [ids[0], ids[1], MASK, MASK, ids[-1]]
    assert (out.text, out.holes) == ("a hello.", ["hello"])
    assert out.as_dict()["holes"] == ["hello"]


def test_open_holes_take_the_likeliest_length() -> None:
    """The fake is sure of its tokens in a canvas of one length only."""
    wanted = 8

    def logits(request: Any) -> np.ndarray:
        rows = np.zeros((len(request.tokens), VOCAB))
        rows[:, 5] = 20.0 if len(request.tokens) == 2 + wanted + 1 else 1.0
        return rows

    model, engine = model_of(logits)
    out = model.infill("a[[]]&")  # token 5
    assert len(out.tokens) == wanted
    assert out.nfe == len(engine.sessions[0].requests)
    assert [len(request.tokens) - 3 for request in engine.sessions[0].requests[0]] == list(LENGTHS)
    assert {int(request.tokens[-1]) for request in engine.sessions[0].requests[0]} == {MASK}  # the "&" is asked for
    assert len(model.infill(["a", Hole(), "b", Hole(), "c"]).holes) == 2
    small, _ = model_of(logits, DiffusionSpec(MASK, True, canvas_max=6))
    assert len(small.infill("a[[]]b").tokens) <= 3


def test_infill_streams_the_whole_text() -> None:
    ids = [BOS, *TOKENIZER.encode("a hello, b", add_bos=False)]
    model, _ = model_of(point_mass(ids, VOCAB, shift=True))
    stream = model.stream_infill("a [[2]], b", decoder="llada", block_length=1)
    events = list(stream)
    assert [(span.kind, span.text, span.tokens) for span in events[0].spans] == [
        ("given", "a", 1), ("fresh", " ", 1), ("masked", "", 1), ("given", ", b", 3)
    ]  # fmt: skip
    assert events[-1].text == stream.result.text == "a hello, b"


def test_infill_refuses() -> None:
    model, _ = model_of(random_table(VOCAB))
    with pytest.raises(OptionError, match="infill has no max_new_tokens"):
        model.infill("a [[3]]", max_new_tokens=3)
    with pytest.raises(OptionError, match="the text has no hole"):
        model.infill("a b c")
    with pytest.raises(OptionError, match="infill got a int"):
        model.infill(["a", 3])  # type: ignore[list-item]


# ---- logits, text, chat ----


def test_logits_are_raw_rows() -> None:
    model, engine = model_of(random_table(VOCAB))
    model.logits([1, 2, 3])
    request = engine.sessions[0].requests[0][0]
    assert (request.attention, request.logit_shift, request.score.tolist()) == ("full", False, [0, 1, 2])
    model.logits([1, 2, 3], attention="causal")
    assert engine.sessions[0].requests[1][0].attention == "causal"
    for arguments, message in (
        (([],), "there are no tokens"),
        (([1], "sideways"), "attention is 'sideways'"),
        (([1], "block_causal"), "block_length is 0"),
        (([VOCAB],), "outside the vocabulary"),
        (([1] * 129,), "129 tokens, but the context has 128"),
    ):
        with pytest.raises(OptionError, match=message):
            model.logits(*arguments)


def test_text_there_and_back() -> None:
    model, _ = model_of(random_table(VOCAB))
    assert model.detokenize(model.tokenize("hello wörld")) == "hello wörld"
    assert BOS not in model.tokenize("<|im_start|>")


def test_chat_uses_the_template() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    model, engine = model_of(random_table(VOCAB), metadata=tiny_bpe() | {"tokenizer.chat_template": template})
    messages = [{"role": "user", "content": "hello <|im_end|>"}]
    tokens = model.chat_tokens(messages)
    assert (tokens[0], tokens[-2], tokens[-1]) == (BOS, EOS, BOS)
    assert tokens.count(EOS) == 1  # the user's text gives none
    model.chat(messages, max_new_tokens=2)
    assert engine.sessions[0].requests[0][0].tokens[: len(tokens)].tolist() == tokens
    plain, _ = model_of(random_table(VOCAB))
    with pytest.raises(OptionError, match="has no chat template"):
        plain.chat(messages)
