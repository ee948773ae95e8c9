"""What callers ask of the tokens whatever the decoder: guidance, penalty, bias, bans, stop strings, samples, deadlines,
alternatives - on a fake engine that shows what it was asked, and on the embedded model as users type it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, FakeSession, Logits, point_mass, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from text_metadata import tiny_bpe

import localdiff
from localdiff.cache.table import make_cache
from localdiff.canvas import GIVEN, MASKED, Canvas, Hole
from localdiff.cli.generating import _below_each_other
from localdiff.decode.controls import Controls
from localdiff.decode.deadline import Pace
from localdiff.decode.decoder import Facts
from localdiff.decode.loop import Denoiser, Job, Step, denoise
from localdiff.decode.table import DECODERS, make_decoder, settings_for
from localdiff.details import Marks
from localdiff.errors import OptionError
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.page import Span
from localdiff.profiles import with_preset
from localdiff.spec import DiffusionSpec
from localdiff.stops import StopStrings
from localdiff.text import Tokenizer

VOCAB, MASK = 12, 11
EVEN = np.full(VOCAB, 1 / VOCAB, np.float32)
ALL = sorted(DECODERS)


def job(controls: Controls, layout: str = "ggg" + "." * 12, seed: int = 1, shift: bool = True, **options: Any) -> Job:
    """A job over a layout such as "gg....g" for a decoder that goes with the attention and the process it needs."""
    traits = DECODERS[options.get("decoder", "random-keep")].traits
    shift = shift and "reorders" not in traits
    spec = DiffusionSpec(
        MASK, shift, attention="causal" if "reorders" in traits else "full",
        process="uniform" if "noise" in traits else "absorbing",
    )  # fmt: skip
    canvas = Canvas.of([[index % 7] if char == "g" else Hole(1) for index, char in enumerate(layout)], MASK)
    chosen = settings_for(GenerateOptions(**options), spec, len(canvas.masked))
    forbidden = np.array([MASK], np.int32)
    facts = Facts(VOCAB, forbidden, 40, expand_token=8, delete_token=9, stop_tokens=(7,), line_end=10, background=EVEN)
    decoder = make_decoder(chosen, seed, facts)
    return Job(
        canvas, decoder, make_cache(chosen), chosen, seed, spec.attention, 0, 3, shift, forbidden, (7,), 3, controls,
    )  # fmt: skip


def run(jobs: list[Job], logits: Logits | None = None, **beside: Any) -> tuple[list[Step], FakeSession]:
    session = FakeSession(logits or random_table(VOCAB))
    return list(denoise(session, jobs, **beside)), session


def settled(steps: list[Step], index: int) -> list[int]:
    return [step for step in steps if step.index == index][-1].canvas.tokens.tolist()


# ---- guidance, penalty, bias: what the engine is asked ----


def test_guidance_shows_the_model_masks_in_place_of_what_is_given() -> None:
    steps, session = run([job(Controls(guidance=1.5), decoder="llada"), job(Controls(), decoder="llada")])
    for guided, plain in (call for call in session.requests if len(call) == 2):
        beside = guided.unconditional
        assert beside is not None
        assert plain.unconditional is None
        assert (guided.guidance, plain.guidance, beside.slot, beside.compute) == (1.5, 0.0, 2, None)
        assert beside.tokens[:3].tolist() == [MASK] * 3
        assert beside.tokens[3:].tolist() == guided.tokens[3:].tolist()
        assert beside.score.tolist() == guided.score.tolist()
        assert (beside.logit_shift, beside.prefix, beside.attention) == (True, 3, "full")
    assert settled(steps, 0)[:3] == [0, 1, 2]


def test_guidance_changes_what_is_written_as_the_formula_says() -> None:
    """The prompt makes 1 likelier than 2; the stronger the guidance, the more so."""

    def logits(request: Any) -> np.ndarray:
        rows = np.zeros((len(request.tokens), VOCAB))
        rows[:, 1], rows[:, 2] = (1.0, 0.5) if request.tokens[0] != MASK else (0.0, 2.0)
        return rows

    steps, _ = run([job(Controls(guidance=g), decoder="llada") for g in (0.5, 1.0)], logits)
    for index, guidance in enumerate((0.5, 1.0)):
        row = np.zeros(VOCAB)
        row[1], row[2] = 0 + (guidance + 1) * 1.0, 2.0 + (guidance + 1) * (0.5 - 2.0)
        row[MASK] = -np.inf
        first = next(step for step in steps if step.index == index)
        assert set(first.proposal.token.tolist()) == {1}
        np.testing.assert_allclose(first.proposal.probability, np.exp(row[1]) / np.exp(row).sum(), rtol=1e-6)


def test_a_negative_prompt_takes_the_place_of_the_prompt() -> None:
    negative = np.array([6, 5, 4, 3, 2], np.int32)
    _, session = run([job(Controls(guidance=1.0, negative=negative, answer=3), decoder="threshold")])
    for (request,) in session.requests:
        beside = request.unconditional
        assert beside is not None
        assert beside.tokens.tolist() == [*negative.tolist(), *request.tokens[3:].tolist()]
        assert beside.score.tolist() == (request.score + 2).tolist()
        assert beside.prefix == 5


def test_the_penalty_is_for_what_stands_there_and_the_bias_for_all() -> None:
    controls = Controls(
        repetition_penalty=1.3, unpenalised=np.array([0, 7, MASK], np.int32),
        bias_tokens=np.array([4], np.int32), bias=np.array([1.5], np.float32),
    )  # fmt: skip
    steps, session = run([job(controls, decoder="llada")])
    canvases = [job(controls).canvas, *(step.canvas for step in steps)]
    for (request,), canvas in zip(session.requests, canvases, strict=False):
        seen = set(canvas.tokens[canvas.state != MASKED].tolist()) - {0, 7}
        assert request.repeated is not None
        assert request.bias_tokens is not None
        assert (set(request.repeated.tolist()), request.repetition_penalty) == (seen, 1.3)
        assert (request.bias_tokens.tolist(), list(request.bias)) == ([4], [1.5])


@pytest.mark.parametrize("name", ALL)
def test_a_batch_gives_what_each_alone_gives_and_alternatives_change_nothing(name: str) -> None:
    traits = DECODERS[name].traits
    wants = [Controls(alternatives=5), Controls(until=1e9), Controls()]
    if not traits & {"reorders", "noise"} and name != "wino":
        wants.append(Controls(guidance=0.7, alternatives=3))
    if not traits & {"rewrites", "revises"}:
        wants.append(Controls(repetition_penalty=1.2))
    jobs = [job(each, "gg" + "." * (8 + i), decoder=name) for i, each in enumerate(wants)]
    together, _ = run(jobs)
    for index, each in enumerate(jobs):
        assert settled(together, index) == settled(run([each])[0], 0)
    plain = [job(Controls(), "gg" + "." * (8 + i), decoder=name) for i in range(3)]
    assert [settled(together, i) for i in range(3)] == [settled(run(plain)[0], i) for i in range(3)]


def test_a_guided_job_needs_two_slots() -> None:
    with pytest.raises(ValueError, match="expected two"):
        Denoiser(FakeSession(random_table(VOCAB))).add(0, job(Controls(guidance=1.0)))


# ---- deadlines ----


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(ALL), st.floats(0, 12), st.lists(st.floats(0.5, 1.5), max_size=60), st.integers(0, 9))
def test_a_deadline_is_kept_within_about_a_pass(name: str, seconds: float, takes: list[float], seed: int) -> None:
    """Whatever the decoder: the canvas is full, given tokens stay, and the time is over by at most what the two last
    passes, 1.5 each, take longer than twice the slowest seen, 0.5 or more; or it is that of two, since one has to be
    seen."""
    clock, taken = 0.0, iter(takes)
    session = FakeSession(random_table(VOCAB))

    def tick() -> None:
        nonlocal clock
        clock += next(taken, 1.0)

    session.before_call = tick
    the_job = job(Controls(until=seconds), decoder=name, seed=seed)
    steps = list(denoise(session, [the_job], pace=Pace(lambda: clock)))
    last = steps[-1]
    assert clock <= max(seconds + 2 * (1.5 - 0.5), 3.0)
    assert last.stop_reason in ("stop", "length", "deadline")
    if last.stop_reason != "stop":
        assert not len(last.canvas.masked)
    kept = last.canvas.tokens[last.canvas.state == GIVEN].tolist()
    assert kept == the_job.canvas.tokens[the_job.canvas.state == GIVEN].tolist()
    assert not {MASK, 8, 9} & set(last.commits.tokens.tolist()) or last.stop_reason != "deadline"
    if last.stop_reason == "deadline":
        assert all(step.stop_reason is None for step in steps[:-1])


HURRIED = ["llada", "dream", "random-keep", "sdar", "wedlm", "dreamon", "eb-sampler", "adablock"]


@pytest.mark.parametrize("name", HURRIED)
def test_with_a_deadline_every_step_writes_its_share(name: str) -> None:
    """48 masks in ten passes of one second: no step is left to write most of them."""
    clock, table = 0.0, random_table(VOCAB)

    def tick() -> None:
        nonlocal clock
        clock += 1.0

    def logits(request: Any) -> np.ndarray:
        rows = table(request)
        rows[:, 7:10] = -50  # no end, no wish for another length
        return rows

    session = FakeSession(logits)
    session.before_call = tick
    options: dict[str, Any] = {"block_length": 48} if "block_length" in DECODERS[name].defaults else {}
    the_job = job(Controls(until=10.0), "g" + "." * 48, decoder=name, **options)
    steps = list(denoise(session, [the_job], pace=Pace(lambda: clock)))
    assert clock <= 10.0
    assert max(len(step.commits) for step in steps) <= 12  # a block may hold less than the share
    assert not len(steps[-1].canvas.masked)


def test_a_deadline_that_is_over_still_gives_a_full_text() -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size))
    for out in (model.generate("hello", max_new_tokens=9, deadline=0.0), model.infill("a [[9]] b", deadline=0.0)):
        assert (out.nfe, out.stop_reason, len(out.tokens), out.decoder["deadline"]) == (1, "deadline", 9, 0.0)


def test_a_deadline_computes_every_row_at_the_end() -> None:
    clock = iter(range(100))
    session = FakeSession(random_table(VOCAB))
    jobs = [job(Controls(until=6.0), decoder="threshold", threshold=1.0, cache="dual")]
    steps = list(denoise(session, jobs, pace=Pace(lambda: float(next(clock)))))
    assert steps[-1].stop_reason == "deadline"
    computed = [request.compute for (request,) in session.requests]
    assert computed[-1] is None
    assert any(each is not None for each in computed)


# ---- per-token details ----


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(ALL), st.integers(0, 99), st.sampled_from([0.0, 0.8]), st.integers(0, 4))
def test_marks_are_of_the_step_that_wrote_the_token(name: str, seed: int, temperature: float, kept: int) -> None:
    the_job = job(Controls(alternatives=kept), decoder=name, seed=seed, temperature=temperature)
    marks = Marks.empty(len(the_job.canvas), kept)
    for step in run([the_job])[0]:
        before, marks = marks, marks.after(step.step, step.commits, step.scored, step.proposal)
        assert len(marks.step) == len(step.canvas)
        assert not np.any(marks.step[step.canvas.state == MASKED])
        assert np.all(marks.step[step.canvas.state == GIVEN] == 0)
        assert np.all(marks.step[step.commits.written] == step.step)
        for position in np.flatnonzero(step.canvas.state == 2) if len(before.step) == len(marks.step) else ():
            if position not in step.commits.positions:
                assert marks.step[position] == before.step[position]
                continue
            row = step.scored.tolist().index(position)
            token = step.canvas.tokens[position]
            if token == step.proposal.token[row]:
                assert marks.probability[position] == step.proposal.probability[row]
            assert marks.entropy[position] == step.proposal.entropy[row]
            listed = marks.alternative_token[position].tolist()
            assert listed == step.proposal.alternative_token[row][:kept].tolist()


# ---- texts ----

TOKENIZER = Tokenizer.from_gguf(tiny_bpe())
SPEC = DiffusionSpec(262, True)


def model_of(logits: Logits, spec: DiffusionSpec = SPEC) -> tuple[Model, FakeEngine]:
    engine = FakeEngine(logits, TOKENIZER.vocab_size, 128)
    return Model(engine, tiny_bpe(), spec, Path("fake.gguf")), engine  # type: ignore[arg-type]


def says(text: str) -> Logits:
    ids = [260, *TOKENIZER.encode(text, add_bos=False)]
    return point_mass([*ids, *[261] * (120 - len(ids))], TOKENIZER.vocab_size, shift=True)


@settings(deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_sure_before_a_stop_string_stays(text: str, strings: list[str]) -> None:
    stops = StopStrings(strings)
    whole = stops.cut(text)
    assert not any(string in whole for string in strings)
    assert text.startswith(whole)
    for end in range(len(text) + 1):
        assert whole.startswith(stops.sure(text[:end]))
    assert len(text) - len(stops.sure(text)) < max(map(len, strings)) or stops.find(text) >= 0


@pytest.mark.parametrize("decoder", ["llada", "p2", "threshold", "rdm", "llada2.1"])
@pytest.mark.parametrize("stop", ["over", ["zzz", "cow jum", " hill"], "r the"])
def test_texts_end_before_a_stop_string(decoder: str, stop: Any) -> None:
    model, _ = model_of(says("The cow jumped over the hill and away."))
    options: dict[str, Any] = {"max_new_tokens": 60, "decoder": decoder, "seed": 3}
    if decoder != "p2" and decoder != "rdm":
        options["block_length"] = 4
    whole = model.generate("", **options).text
    stream = model.stream("", stop=stop, **options)
    texts = [event.text for event in stream]
    out = stream.result
    assert out.text == StopStrings([stop] if isinstance(stop, str) else stop).cut(whole) != whole
    assert out.stop_reason == "stop"
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert texts[-1] == out.text == "".join(each.text for each in out.token_details)
    assert [each.token for each in out.token_details] == out.tokens
    assert out.decoder["stop"] == ((stop,) if isinstance(stop, str) else tuple(stop))
    if decoder in ("llada", "threshold"):
        assert out.nfe < model.generate("", **options).nfe


def test_details_spell_the_text_and_say_what_else_there_might_have_been() -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size, 4.0))
    stream = model.stream("hello", max_new_tokens=20, decoder="llada", steps=5, seed=4, alternatives=3)
    for event in stream:
        details = event.token_details
        assert "".join(each.text for each in details).startswith(event.text)
        assert [each.state for each in details].count("fresh") == len(set(event.positions.tolist()) & {
            each.position for each in details
        })  # fmt: skip
        for each in details:
            assert (each.step is None) == (each.state == "masked") == (each.probability is None)
    out = stream.result
    assert "".join(each.text for each in out.token_details) == out.text
    assert {each.step for each in out.token_details} == set(range(1, 6))
    for each in out.token_details:
        assert len(each.alternatives) == 3
        assert each.alternatives[0].token == each.token  # temperature 0
        assert each.alternatives[0].probability == pytest.approx(each.probability)
        assert each.alternatives[0].text == TOKENIZER.decode([each.token], continues=True)
    plain = out.as_dict()["token_details"][0]
    assert list(plain) == ["token", "text", "step", "probability", "entropy", "alternatives"]
    assert "alternatives" not in model.generate("hello", max_new_tokens=4).as_dict()["token_details"][0]
    json.dumps(out.as_dict())


def test_samples_have_seeds_that_follow_each_other_and_share_every_call() -> None:
    model, engine = model_of(random_table(TOKENIZER.vocab_size))
    outs = model.generate(["hello", "hell"], max_new_tokens=8, steps=3, seed=2**64 - 1, samples=3)
    assert [out.seed for out in outs] == [2**64 - 1, 0, 1] * 2
    assert len(engine.sessions[0].requests) == 3
    for out, prompt in zip(outs, ["hello"] * 3 + ["hell"] * 3, strict=True):
        assert out.tokens == model.generate(prompt, max_new_tokens=8, steps=3, seed=out.seed).tokens
    assert len({tuple(out.tokens) for out in outs}) == 6
    (only,) = model.generate("hello", max_new_tokens=8, samples=1)
    assert len(model.infill("a [[3]] b", samples=2)) == 2
    assert only.text


def test_banned_only_and_biased_tokens() -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size, 1.0))
    run_ = {"max_new_tokens": 30, "seed": 1, "temperature": 1.0, "decoder": "topk"}
    left = {TOKENIZER.encode_parts(["", "a"], add_bos=False)[0], 98}
    assert set(model.generate("hello", only=["a", 98], **run_).tokens) == left
    first = model.generate("hello", **run_).tokens
    banned = model.generate("hello", ban=first[:5], logit_bias={first[6]: False}, **run_).tokens
    assert not set(banned) & {*first[:5], first[6]}
    letter = TOKENIZER.encode_parts(["", "x"], add_bos=False)[0]
    pushed = model.generate("hello", logit_bias={"x": 100}, **run_)
    assert set(pushed.tokens) == {letter}
    assert pushed.decoder["logit_bias"] == {"x": 100.0}


def test_a_chats_negative_prompt_is_a_message(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    engine = FakeEngine(random_table(TOKENIZER.vocab_size), TOKENIZER.vocab_size, 128)
    metadata = {**tiny_bpe(), "tokenizer.chat_template": template}
    model = Model(engine, metadata, SPEC, Path("fake.gguf"))  # type: ignore[arg-type]
    model.chat([{"role": "user", "content": "hello"}], max_new_tokens=4, guidance=1.0, negative_prompt="hell")
    request = engine.sessions[0].requests[0][0]
    expected = model.chat_tokens([{"role": "user", "content": "hell"}])
    assert request.unconditional is not None
    assert request.unconditional.tokens[: len(expected)].tolist() == expected


# ---- options and refusals ----


def test_biases_are_written_in_every_usual_way() -> None:
    typed = ["15043=1.5", " cat=-inf", "7+2", "8-0.5", "a=b=3", "9=false"]
    wanted = {15043: 1.5, " cat": -np.inf, 7: 2.0, 8: -0.5, "a=b": 3.0, 9: -np.inf}
    assert GenerateOptions(logit_bias=typed).logit_bias == wanted  # type: ignore[arg-type]
    assert GenerateOptions(logit_bias=[[15043, 1.5], ["x", False]]).logit_bias == {15043: 1.5, "x": -np.inf}  # type: ignore
    assert GenerateOptions(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert GenerateOptions(ban=5).ban == (5,)  # type: ignore[arg-type]
    assert GenerateOptions(negative_prompt=[1, 2]).negative_prompt == (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": ["cat"]}, "expected TOKEN=NUMBER"),
        ({"logit_bias": {"a": "b"}}, "logit_bias of 'a' is 'b', expected a number"),
        ({"logit_bias": {"a": float("nan")}}, "expected -1e6 to 1e6"),
        ({"logit_bias": {"a": float("inf")}}, "expected -1e6 to 1e6"),
        ({"logit_bias": [[1, 2], [1, 3]]}, "names the token 1 twice"),
        ({"logit_bias": {"": 1.0}}, "names the token ''"),
        ({"logit_bias": {999: 1.0}}, "names the token 999, expected an id from 0 to 262"),
        ({"ban": ["hello hello"]}, "is [0-9]+ tokens of the model .* or avoid the text"),
        ({"only": [MASK_ID := 262]}, "leave no token to write"),
        ({"stop": [""]}, "expected texts that are not empty"),
        ({"stop": ["x"] * 17}, "holds 17 texts, expected at most 16"),
        ({"stop": 5}, "stop is 5, expected a list"),
        ({"samples": 0}, "samples is 0"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": 1.0, "cache": "dual", "decoder": "threshold"}, "the cache dual is one"),
        ({"guidance": 1.0, "report_drift": True}, "report_drift compares with a second canvas"),
        ({"negative_prompt": "x"}, "give guidance too"),
        ({"guidance": 1.0, "negative_prompt": "hello " * 90}, "shorten the negative prompt"),
        ({"repetition_penalty": 1.2, "decoder": "rdm"}, "a repetition of itself"),
        ({"repetition_penalty": 1.2, "decoder": "llada2.1"}, "a repetition of itself"),
        ({"alternatives": 65}, "alternatives is 65"),
        ({"deadline": -1}, "deadline is -1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], message: str) -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size))
    with pytest.raises(OptionError, match=message):
        model.generate("hello", **{"max_new_tokens": 30, **options})


def test_refusals_that_need_another_model_or_a_hole() -> None:
    model, _ = model_of(random_table(TOKENIZER.vocab_size))
    for name in ("stop", "negative_prompt"):
        with pytest.raises(OptionError, match=f"infill has no {name}"):
            model.infill("a [[2]]", **{name: "x"})
    spec = DiffusionSpec(262, True, attention="block_causal", block_length=4)
    blocks, _ = model_of(random_table(TOKENIZER.vocab_size), spec)
    with pytest.raises(OptionError, match="differ by a multiple of 4 tokens"):
        blocks.generate("hello", max_new_tokens=4, guidance=1.0, negative_prompt=[1, 2, 3])
    assert blocks.generate([1, 2, 3], max_new_tokens=4, guidance=1.0, negative_prompt=[5] * 7).tokens
    causal, _ = model_of(random_table(TOKENIZER.vocab_size), DiffusionSpec(262, False, attention="causal"))
    with pytest.raises(OptionError, match="cannot show the model masks"):
        causal.generate("hello", decoder="wedlm", guidance=1.0)


# ---- the embedded model ----


def test_the_embedded_model_does_all_of_it_in_one_batch(stories: Model) -> None:
    options = {
        "max_new_tokens": 12, "decoder": "llada", "steps": 6, "seed": 5, "guidance": 0.5, "negative_prompt": "The dog",
        "repetition_penalty": 1.1, "logit_bias": {".": -1.0}, "ban": ["!"], "alternatives": 2, "stop": ["never"],
    }  # fmt: skip
    prompts = ["Once upon a time", "The cat"]
    batch = stories.generate(prompts, samples=2, temperature=0.8, **options)
    for out, prompt, seed in zip(batch, [prompts[0]] * 2 + [prompts[1]] * 2, [5, 6, 5, 6], strict=True):
        alone = stories.generate(prompt, temperature=0.8, **{**options, "seed": seed})
        assert (alone.tokens, alone.token_details) == (out.tokens, out.token_details)
    plain = stories.generate(prompts, max_new_tokens=12, decoder="llada", steps=6, seed=5)
    assert [out.tokens for out in plain] != [out.tokens for out in batch[::2]]


@pytest.mark.parametrize("attention", ["block_causal,block=8", "prefix_causal"])
def test_guidance_goes_with_the_cache_that_changes_nothing(attention: str) -> None:
    """The companion keeps its states too: fewer rows, the same text, also where it has another length."""
    options = {"max_new_tokens": 20, "decoder": "threshold", "threshold": 0.5, "seed": 1, "guidance": 1.0}
    with localdiff.load(threads=1, diffusion=f"attn={attention}") as model:
        prompt = model.tokenize("Once upon a time there was")
        for negative in (None, prompt[:1] * (len(prompt) + 8)):
            cached, whole = (
                model.generate(prompt, negative_prompt=negative, cache=cache, **options) for cache in ("block", "exact")
            )
            assert (cached.tokens, cached.nfe) == (whole.tokens, whole.nfe)
            assert cached.rows < whole.rows


def test_the_live_view_shows_samples_below_each_other() -> None:
    texts = {1: [Span("settled", "b", 1)], 0: [Span("fresh", "a", 1), Span("masked", "", 3)]}
    kinds = [(span.kind, span.text.strip()) for span in _below_each_other(texts)]
    assert kinds == [("fresh", "a"), ("masked", ""), ("note", "--- 2"), ("settled", "b")]


def test_the_command_line_prints_every_sample(tmp_path: Path) -> None:
    base = [sys.executable, "-m", "localdiff", "run", "-p", "Once upon", "-n", "8", "--seed", "3", "--samples", "2"]
    more = ["--stop", "zzz", "--ban", "!", "--logit-bias", "5=-inf", "--guidance", "1", "--alternatives", "1"]
    done = subprocess.run([*base, *more, "--json"], capture_output=True, text=True, check=True)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["seed"] for each in objects] == [3, 4]
    for each in objects:
        assert [one["token"] for one in each["token_details"]] == each["tokens"]
        assert each["decoder"]["logit_bias"] == {"5": False}
        assert each["decoder"]["guidance"] == 1.0
    shown = subprocess.run(base, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("--- 1, seed 3\n")
    assert "\n--- 2, seed 4\n" in shown


def test_a_records_penalty_counts_with_its_own_decoder_and_in_presets() -> None:
    record = replace(SPEC, decoder="llada", repetition_penalty=1.3)
    penalty = lambda record, **options: settings_for(GenerateOptions(**options), record, 8).repetition_penalty  # noqa: E731
    assert penalty(record) == 1.3
    assert penalty(record, repetition_penalty=1.0) == 1.0
    assert penalty(record, decoder="topk") == 1.0
    assert penalty(record, decoder="rdm") == 1.0
    assert with_preset(GenerateOptions(preset="balanced"), record, ()).repetition_penalty == 1.3
    with pytest.raises(OptionError, match="a repetition of itself"):
        penalty(replace(record, decoder="rdm"))
    model, _ = model_of(random_table(TOKENIZER.vocab_size), record)
    assert model.generate("hello", max_new_tokens=4, seed=1).decoder["repetition_penalty"] == 1.3
    assert "repetition_penalty" not in model.infill("hello [[3]] hello", seed=1).decoder
    assert model.infill("hello [[3]]", seed=1, repetition_penalty=1.1).decoder["repetition_penalty"] == 1.1
