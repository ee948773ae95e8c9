"""Decoders and the loop against a fake engine: counts, bounds, independence; samplers A and B against the published
pseudo-code, written down a second time here."""

from dataclasses import replace

import numpy as np
import pytest
from fake import FakeSession, Logits, draw, point_mass, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from localdiff.cache.table import make_cache
from localdiff.canvas import COMMITTED, GIVEN, MASKED, Canvas, Hole
from localdiff.decode.decoder import Facts, uniform
from localdiff.decode.loop import Job, Step, denoise, first_stop
from localdiff.decode.schedule import left_masked, reveal_probability, share
from localdiff.decode.table import DECODERS, make_decoder, settings_for
from localdiff.engine import Request
from localdiff.errors import Cancelled, OptionError
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec

VOCAB, MASK = 12, 11
BACKGROUND = np.full(VOCAB, 1 / VOCAB, np.float32)


def job(
    layout: str = "gg" + "." * 20, seed: int = 1, stop: tuple[int, ...] = (), shift: bool = True,
    spec: DiffusionSpec | None = None, **options: object,
) -> Job:  # fmt: skip
    """A job over a layout such as "gg....g": given and masked positions."""
    spec = spec or DiffusionSpec(MASK, shift)
    canvas = Canvas.of([[index % 7] if char == "g" else Hole(1) for index, char in enumerate(layout)], MASK)
    chosen = settings_for(GenerateOptions(**options), spec, len(canvas.masked))  # type: ignore[arg-type]
    forbidden = np.array([MASK], np.int32)
    decoder = make_decoder(chosen, seed, Facts(VOCAB, forbidden, 1000, None, None, (), 10, BACKGROUND))
    decoder.check(canvas)
    return Job(
        canvas, decoder, make_cache(chosen), chosen, seed, "full", 0, 0, shift,
        forbidden, stop, layout.find("."),
    )  # fmt: skip


def run(jobs: list[Job], logits: Logits) -> tuple[list[Step], FakeSession]:
    session = FakeSession(logits)
    return list(denoise(session, jobs)), session


# Those that a plain model can run and whose tokens stay once written; the others are in test_decoders.py.
KEEPING = [name for name, row in DECODERS.items() if row.traits <= {"blocks"}]
LAYOUTS = st.text("g.", min_size=1, max_size=40).filter(lambda text: "." in text).map(lambda text: "g" + text)
JOBS = st.fixed_dictionaries(
    {"layout": LAYOUTS, "seed": st.integers(0, 2**64 - 1), "decoder": st.sampled_from(KEEPING),
     "temperature": st.sampled_from([0.0, 0.7, 1.0]), "shift": st.booleans()}
)  # fmt: skip


# ---- what holds for every decoder ----


@settings(deadline=None, max_examples=150)
@given(JOBS, st.integers(1, 30))
def test_every_mask_is_filled_once_within_the_steps(fields: dict, steps: int) -> None:
    if fields["decoder"] in ("random-keep", "topk"):
        fields["steps"] = steps
    the_job = job(**fields)
    events, session = run([the_job], random_table(VOCAB))
    limit = the_job.settings.steps or len(the_job.canvas.masked)
    assert 1 <= len(events) <= limit
    written = np.concatenate([event.commits.positions for event in events])
    assert sorted(written.tolist()) == the_job.canvas.masked.tolist()
    last = events[-1]
    assert last.stop_reason == "length"
    assert not len(last.canvas.masked)
    assert MASK not in last.canvas.tokens
    kept = the_job.canvas.state == GIVEN
    assert np.array_equal(last.canvas.tokens[kept], the_job.canvas.tokens[kept])
    assert [len(call) for call in session.requests] == [1] * len(events)


@settings(deadline=None, max_examples=40)
@given(st.lists(JOBS, min_size=2, max_size=5))
def test_a_batch_gives_what_each_prompt_gives_alone(batch: list[dict]) -> None:
    jobs = [job(**fields) for fields in batch]
    together, session = run(jobs, random_table(VOCAB))
    for index, the_job in enumerate(jobs):
        alone, _ = run([the_job], random_table(VOCAB))
        mine = [event for event in together if event.index == index]
        assert len(mine) == len(alone)
        for event, other in zip(mine, alone, strict=True):
            assert np.array_equal(event.canvas.tokens, other.canvas.tokens)
    assert len(session.requests) == max(event.step for event in together)


@settings(deadline=None, max_examples=40)
@given(JOBS)
def test_same_seed_same_text_and_events_replay(fields: dict) -> None:
    the_job = job(**fields)
    events, _ = run([the_job], random_table(VOCAB))
    again, _ = run([job(**fields)], random_table(VOCAB))
    assert np.array_equal(events[-1].canvas.tokens, again[-1].canvas.tokens)
    canvas = the_job.canvas
    for event in events:
        canvas = canvas.apply(event.commits)
        assert np.array_equal(canvas.tokens, event.canvas.tokens)
        assert np.array_equal(canvas.state, event.canvas.state)


def test_other_seeds_give_other_texts() -> None:
    for name in ("random-keep", "topk"):
        texts = {tuple(run([job(seed=s, decoder=name)], random_table(VOCAB))[0][-1].canvas.tokens) for s in range(8)}
        assert len(texts) == 8


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 40])
def test_a_certain_model_gives_its_text_for_every_number_of_steps(name: str, steps: int) -> None:
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    options = {"steps": steps} if "steps" in DECODERS[name].defaults else {}
    the_job = job(decoder=name, **options)
    events, _ = run([the_job], point_mass(text, VOCAB, shift=True))
    wanted = np.resize(text, len(the_job.canvas))
    assert events[-1].canvas.tokens[2:].tolist() == wanted[2:].tolist()


@pytest.mark.parametrize("name", ["random-keep", "topk", "llada", "threshold"])
def test_requests_carry_the_settings(name: str) -> None:
    _, session = run([job(decoder=name, temperature=0.5, top_k=3, top_p=0.8, seed=5)], random_table(VOCAB))
    for number, (request,) in enumerate(session.requests, 1):
        found = (request.temperature, request.top_k, request.top_p, request.seed, request.step, request.logit_shift)
        assert found == (0.5, 3, 0.8, 5, number, True)
        assert request.scores_from == ("sampled" if name in ("random-keep", "topk") else "raw")
        assert request.compute is None
        assert MASK in request.forbidden


def test_an_argmax_is_ranked_by_the_model_itself() -> None:
    _, session = run([job(decoder="topk", temperature=0.0)], random_table(VOCAB))
    assert {request.scores_from for (request,) in session.requests} == {"raw"}


def test_cancel_in_the_middle() -> None:
    session = FakeSession(random_table(VOCAB))
    events = denoise(session, [job(decoder="llada")])
    next(events)
    session.cancel()
    with pytest.raises(Cancelled):
        next(events)
    assert len(list(denoise(session, [job(decoder="llada")]))) == 20  # the session is usable


def test_a_canvas_without_holes_needs_no_pass() -> None:
    whole = replace(job(), canvas=Canvas.of([[1, 2]], MASK))
    assert run([whole], random_table(VOCAB))[0] == []


# ---- sampler A ----


def pseudo_code_a(the_job: Job, logits: Logits) -> list[int]:
    """generate_samples of DiffuLLaMA as the design page restates it, with logit_shift."""
    steps, seed = the_job.settings.steps, the_job.seed
    assert steps is not None
    source = the_job.canvas.state == GIVEN
    x_t, x_0 = the_job.canvas.tokens.copy(), the_job.canvas.tokens.copy()
    still = ~source
    for t in range(steps, 0, -1):
        if t < steps:
            number = steps - t  # of the forward pass whose x_0 is revealed
            reveal = still & (uniform(seed, number, np.arange(len(x_t), dtype=np.int32)) < 1 / (t + 1))
            x_t[reveal] = x_0[reveal]
            still &= ~reveal
        request = request_of(the_job, x_t, steps - t + 1)
        rows = logits(request)
        drawn = [draw(rows[position - 1], request, position)[0] for position in range(1, len(x_t))]
        x_0 = np.where(still, np.array([x_t[0], *drawn]), x_t)
    return x_0.tolist()


def request_of(the_job: Job, tokens: np.ndarray, step: int) -> Request:
    chosen = the_job.settings
    return Request(
        tokens, np.arange(len(tokens)), logit_shift=True, temperature=chosen.temperature, top_k=chosen.top_k,
        top_p=chosen.top_p, seed=the_job.seed, step=step, forbidden=the_job.forbidden,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(LAYOUTS, st.integers(0, 2**32), st.integers(1, 24), st.sampled_from([0.0, 0.95]), st.sampled_from([0.9, 1.0]))
def test_sampler_a_is_the_published_one(layout: str, seed: int, steps: int, temperature: float, top_p: float) -> None:
    the_job = job(layout, seed, decoder="random-keep", steps=steps, temperature=temperature, top_p=top_p)
    events, _ = run([the_job], random_table(VOCAB))
    assert events[-1].canvas.tokens.tolist() == pseudo_code_a(the_job, random_table(VOCAB))


def test_sampler_a_reveals_the_same_number_at_each_step_on_average() -> None:
    steps, masks, runs = 8, 64, 200
    counts = np.zeros(steps)
    for seed in range(runs):
        events, _ = run([job("g" + "." * masks, seed, decoder="random-keep", steps=steps)], point_mass([1], VOCAB))
        for event in events:
            counts[event.step - 1] += len(event.commits)
    mean = counts / runs
    error = np.sqrt(masks * (1 / steps) * (1 - 1 / steps) / runs)  # standard error of a mean
    assert np.abs(mean - masks / steps).max() < 4 * error


def test_sampler_a_takes_all_its_steps_where_masks_remain() -> None:
    events, _ = run([job("g" + "." * 400, decoder="random-keep", steps=16)], point_mass([1], VOCAB))
    assert [event.step for event in events] == list(range(1, 17))


# ---- sampler B ----


def pseudo_code_b(the_job: Job, logits: Logits) -> tuple[list[int], list[int]]:
    """generate_samples of the trainer: (tokens, masked count before each forward pass)."""
    steps = the_job.settings.steps
    assert steps is not None
    source = the_job.canvas.state == GIVEN
    x_t = the_job.canvas.tokens.copy()
    maskable = ~source
    still = maskable.copy()
    counts = []

    def forward(number: int) -> tuple[np.ndarray, np.ndarray]:
        counts.append(int(still.sum()))
        request = request_of(the_job, x_t, number)
        rows = logits(request)
        answers = [draw(rows[max(0, position - 1)], request, position) for position in range(len(x_t))]
        tempered = the_job.settings.temperature > 0
        score = np.array([np.float32(answer[2] if tempered else answer[1]) for answer in answers])
        return np.array([answer[0] for answer in answers]), np.log(score)

    x_0, score = forward(1)
    for t in range(steps - 1, 0, -1):
        k = int(np.floor(maskable.sum() * t / steps))
        ranked = np.where(source, 1000.0, score)
        cut = np.sort(ranked)[k]
        reveal = still & ~(ranked < cut)
        x_t[reveal] = x_0[reveal]
        still &= ~reveal
        if not still.any():
            break
        x_0, score = forward(steps - t + 1)
    return np.where(still, x_0, x_t).tolist(), counts


@settings(deadline=None, max_examples=80)
@given(LAYOUTS, st.integers(0, 2**32), st.integers(1, 24), st.sampled_from([0.0, 0.9]))
def test_sampler_b_is_the_published_one(layout: str, seed: int, steps: int, temperature: float) -> None:
    the_job = job(layout, seed, decoder="topk", steps=steps, temperature=temperature)
    events, session = run([the_job], random_table(VOCAB))
    tokens, counts = pseudo_code_b(the_job, random_table(VOCAB))
    assert events[-1].canvas.tokens.tolist() == tokens
    masked = [int((request.tokens == MASK).sum()) for (request,) in session.requests]
    assert masked == counts
    total = len(the_job.canvas.masked)
    assert all(count <= total * (steps - index) // steps for index, count in enumerate(masked))


def test_sampler_b_scores_what_is_written_too() -> None:
    _, session = run([job(decoder="topk", steps=5)], random_table(VOCAB))
    assert {len(request.score) for (request,) in session.requests} == {20}


# ---- llada and threshold ----


@settings(deadline=None, max_examples=80)
@given(LAYOUTS, st.integers(1, 12), st.data(), st.sampled_from(["confidence", "random"]))
def test_llada_writes_its_counts_block_after_block(
    layout: str, block_length: int, data: st.DataObject, order: str
) -> None:
    total = layout.count(".")
    blocks = -(-total // block_length)
    steps = data.draw(st.integers(blocks, blocks + 40))
    the_job = job(layout, decoder="llada", steps=steps, block_length=block_length, order=order)
    events, _ = run([the_job], random_table(VOCAB))
    expected = []
    for number in range(blocks):
        m = min(block_length, total - number * block_length)
        s = steps // blocks + (number < steps % blocks)
        expected += [m // s + (i < m % s) for i in range(s)]
    assert [len(event.commits) for event in events] == [count for count in expected if count]
    masked = the_job.canvas.masked
    touched = [np.searchsorted(masked, event.commits.positions) // block_length for event in events]
    assert all(len(set(numbers.tolist())) == 1 for numbers in touched)
    assert [numbers[0] for numbers in touched] == sorted(numbers[0] for numbers in touched)


def test_llada_writes_the_surest_first() -> None:
    the_job = job("g" + "." * 8, decoder="llada", steps=4, block_length=8, shift=False)
    events, _ = run([the_job], random_table(VOCAB))
    probability = []
    request = replace(request_of(the_job, the_job.canvas.tokens, 1), logit_shift=False)
    for position in range(1, 9):
        probability.append(draw(random_table(VOCAB)(request)[position], request, position)[1])
    assert events[0].commits.positions.tolist() == sorted((1 + np.argsort(probability)[-2:]).tolist())


def test_llada_in_random_order_does_not_look_at_the_model() -> None:
    orders = []
    for logits in (random_table(VOCAB), point_mass([1], VOCAB)):
        events, _ = run([job(decoder="llada", order="random", seed=3)], logits)
        orders.append([event.commits.positions.tolist() for event in events])
    assert orders[0] == orders[1]


def test_llada_needs_a_step_per_block() -> None:
    with pytest.raises(OptionError, match="steps is 2, but the text has 3 blocks of 8"):
        job("g" + "." * 20, decoder="llada", steps=2, block_length=8)


@settings(deadline=None, max_examples=80)
@given(LAYOUTS, st.integers(1, 12), st.floats(0, 1))
def test_threshold_always_progresses_and_takes_what_is_sure(layout: str, block_length: int, bound: float) -> None:
    the_job = job(layout, decoder="threshold", threshold=bound, block_length=block_length)
    session = FakeSession(random_table(VOCAB))
    checked = the_job.canvas
    for event in denoise(session, [the_job]):
        (request,) = session.requests[-1]
        proposal = session._propose(request)
        sure = proposal.probability >= np.float32(bound)
        sure[np.argmax(proposal.probability)] = True
        assert event.commits.positions.tolist() == request.score[sure].tolist()
        masked = the_job.canvas.masked
        first = np.searchsorted(masked, checked.masked[0]) // block_length
        assert set((np.searchsorted(masked, request.score) // block_length).tolist()) == {first}
        checked = event.canvas


def test_threshold_one_step_per_block_for_a_certain_model() -> None:
    events, _ = run([job("g" + "." * 20, decoder="threshold", block_length=8)], point_mass([1, 2], VOCAB, shift=True))
    assert [len(event.commits) for event in events] == [8, 8, 4]


def test_blocks_of_block_causal_models_lie_at_multiples() -> None:
    spec = DiffusionSpec(MASK, False, attention="block_causal", block_length=8)
    events, _ = run([job("g" * 5 + "." * 14, decoder="threshold", spec=spec)], point_mass([1], VOCAB))
    assert [event.commits.positions.tolist() for event in events] == [[5, 6, 7], list(range(8, 16)), [16, 17, 18]]


# ---- the end of the text ----


@pytest.mark.parametrize("name", KEEPING)
def test_the_text_ends_at_a_stop_token_with_everything_before_it_settled(name: str) -> None:
    stop = 9
    text = [1, 2, 3, 4, 5, 6, 7, stop, 1, 2, 3, stop] + [1] * 20
    events, _ = run([job("gg" + "." * 30, decoder=name, stop=(stop,), shift=False)], point_mass(text, VOCAB))
    last = events[-1]
    assert last.stop_reason == "stop"
    assert first_stop(last.canvas, 2, (stop,)) == 7
    assert not np.any(last.canvas.state[:7] == MASKED)
    assert all(np.any(event.canvas.state[:8] == MASKED) or event is last for event in events)


def test_a_given_stop_token_ends_nothing() -> None:
    the_job = replace(job("ggg....", stop=(0, 1, 2), shift=False), answer=0)
    events, _ = run([the_job], point_mass([5], VOCAB))
    assert events[-1].stop_reason == "length"


def test_stopped_canvases_leave_the_batch() -> None:
    stop = 9
    batch = [job("g" + "." * 20, decoder="llada", stop=(stop,), shift=False, block_length=1) for _ in range(2)]
    batch[1] = replace(batch[1], stop_tokens=())
    _, session = run(batch, point_mass([1, 2, stop], VOCAB))
    assert [len(call) for call in session.requests] == [2, 2] + [1] * 18


# ---- schedules and settings ----


@given(st.integers(0, 500), st.integers(1, 500))
def test_shares_add_up(total: int, parts: int) -> None:
    shares = [share(total, parts, index) for index in range(parts)]
    assert sum(shares) == total
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


@given(st.integers(1, 500), st.integers(1, 200))
def test_masked_counts_fall_to_zero(total: int, steps: int) -> None:
    left = [left_masked(total, step, steps) for step in range(1, steps + 1)]
    assert left == [int(np.floor(total * (steps - step) / steps + 1e-9)) for step in range(1, steps + 1)]
    assert left[-1] == 0
    assert reveal_probability(steps, steps) == 1


def test_random_numbers_belong_to_positions() -> None:
    everywhere = uniform(5, 3, np.arange(50, dtype=np.int32))
    some = np.array([4, 9, 31], np.int32)
    assert np.array_equal(uniform(5, 3, some), everywhere[some])
    assert not np.array_equal(uniform(5, 4, some), everywhere[some])
    assert not np.array_equal(uniform(6, 3, some), everywhere[some])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "threshold", "steps": 4}, "threshold has no option steps; it takes threshold, block_length"),
        ({"decoder": "topk", "threshold": 0.5}, "topk has no option threshold; it takes steps"),
        ({"decoder": "random-keep", "block_length": 4}, "random-keep has no option block_length"),
        ({"decoder": "threshold", "order": "random"}, "threshold has no option order"),
        ({"decoder": "nonsense"}, "decoder is 'nonsense', expected one of random-keep, topk, rdm, llada, dream"),
        ({"cache": "magic"}, "cache is 'magic', expected one of exact, block"),
        ({"order": "leftmost", "decoder": "llada"}, "order is 'leftmost'"),
        ({"steps": 0}, "steps is 0, expected 1 or more"),
        ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
        ({"steps": True}, "steps is True"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"threshold": 2}, "threshold is 2, expected 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_options_are_refused_not_ignored(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings_for(GenerateOptions(**options), DiffusionSpec(MASK, True), 20)


def test_unknown_options_are_type_errors() -> None:
    with pytest.raises(TypeError):
        GenerateOptions(temprature=1)  # type: ignore[call-arg]


def test_where_settings_come_from() -> None:
    record = DiffusionSpec(MASK, True, decoder="topk", steps=8, temperature=0.3, top_p=0.7, block_length=4)
    found = settings_for(GenerateOptions(), record, 20)
    assert (found.decoder, found.steps, found.temperature, found.top_p) == ("topk", 8, 0.3, 0.7)
    found = settings_for(GenerateOptions(steps=5, top_p=1.0), record, 20)
    assert (found.steps, found.temperature, found.top_p) == (5, 0.3, 1.0)
    found = settings_for(GenerateOptions(decoder="llada"), record, 20)  # the record's numbers were for topk
    assert (found.steps, found.temperature, found.top_p, found.block_length) == (20, 0.0, 1.0, 4)
    found = settings_for(GenerateOptions(), DiffusionSpec(MASK, True), 200)
    assert (found.decoder, found.steps, found.temperature, found.top_p) == ("random-keep", 64, 0.95, 0.9)
    assert settings_for(GenerateOptions(), DiffusionSpec(MASK, True), 3).steps == 3  # a default is no more than needed
    assert settings_for(GenerateOptions(steps=64), DiffusionSpec(MASK, True), 3).steps == 64
    assert found.shown() == {
        "decoder": "random-keep", "temperature": 0.95, "top_k": 0, "top_p": 0.9, "cache": "exact", "steps": 64
    }  # fmt: skip


def test_a_record_may_name_a_decoder_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="the model record asks for the decoder 'magic'"):
        settings_for(GenerateOptions(), DiffusionSpec(MASK, True, decoder="magic"), 20)


def test_committed_positions_are_marked() -> None:
    events, _ = run([job("gg....", decoder="llada")], random_table(VOCAB))
    assert events[-1].canvas.state.tolist() == [GIVEN, GIVEN] + [COMMITTED] * 4
