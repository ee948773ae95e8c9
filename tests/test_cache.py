"""Caches: policies against a fake engine that keeps state as the real one does, row counts against hand calculation,
drift against a direct computation, and the embedded model: what is exact, what is refused, what prompts cost again."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake import FakeSession
from hypothesis import given, settings
from hypothesis import strategies as st

import localdiff
from localdiff.cache.drift import DriftMeter
from localdiff.cache.state import reach
from localdiff.cache.table import CACHES, make_cache
from localdiff.canvas import GIVEN, Canvas, Hole
from localdiff.cli import main
from localdiff.decode.decoder import Facts
from localdiff.decode.loop import Job, Step, denoise
from localdiff.decode.table import DECODERS, make_decoder, settings_for
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import EngineError, OptionError
from localdiff.loading import EMBEDDED
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec

VOCAB, MASK, BLOCK = 12, 11, 4
EVEN = np.full(VOCAB, 1 / VOCAB, np.float32)
FACTS = Facts(VOCAB, np.array([MASK], np.int32), 32, 10, 9, stop_tokens=(8,), line_end=7, background=EVEN)


class Layers(FakeSession):
    """Two layers of keys and values per position: a kept one stays as it was. The second layer's depend on the first's
    of all visible positions, so that whoever keeps what must change gets other logits."""

    def __init__(self) -> None:
        super().__init__(lambda request: self._rows[request.slot])
        self._rows: dict[int, np.ndarray] = {}
        self._first: dict[int, np.ndarray] = {}
        self._second: dict[int, np.ndarray] = {}

    def _call(self, requests: Any) -> None:
        super()._call(requests)
        for request in requests:
            length, slot, seen = len(request.tokens), request.slot, reach(request)
            rows = np.arange(length) if request.compute is None else np.asarray(request.compute)
            assert len(rows), "no rows to compute"
            assert np.all(np.diff(rows) > 0)
            source = np.maximum(request.score - 1, 0) if request.logit_shift else request.score
            assert np.isin(source, rows).all(), "scoring needs a row that is not computed"
            for layer in (self._first, self._second):
                layer[slot] = np.resize(np.append(layer.get(slot, [])[:length], np.full(length, -1)), length)
            first, second = self._first[slot], self._second[slot]
            before = second.copy()
            first[rows] = request.tokens[rows]
            out = np.zeros((length, VOCAB))
            for row in rows:
                if np.any(first[: seen[row]] < 0):
                    raise EngineError(f"position {row} sees positions that were never computed")
                second[row] = hash((row, *first[: seen[row]].tolist())) % 10**9
            if request.value_drift is not None:  # all or nothing
                request.value_drift[: len(rows)] = before[rows] != second[rows]
            for row in rows:
                out[row] = np.random.default_rng(abs(hash(tuple(second[: seen[row]].tolist())))).normal(0, 2, VOCAB)
            if request.hidden is not None and np.any(first < 0):
                raise EngineError("shadows see positions that were never computed")
            self._rows[slot] = out

    def logits(self, requests: Any) -> list[np.ndarray]:
        self._call(requests)
        shifted = [r.score - 1 if r.logit_shift else r.score for r in requests]
        return [self._rows[r.slot][s].astype(np.float32) for r, s in zip(requests, shifted, strict=True)]


def job(layout: str, attention: str = "full", shift: bool = False, seed: int = 1, **options: Any) -> Job:
    """A job over a layout such as "gg....g": given and masked positions, with blocks of BLOCK positions."""
    spec = DiffusionSpec(MASK, shift, attention=attention, block_length=BLOCK)
    canvas = Canvas.of([[index % 7] if char == "g" else Hole(1) for index, char in enumerate(layout)], MASK)
    chosen = settings_for(GenerateOptions(**options), spec, len(canvas.masked))
    return Job(
        canvas, make_decoder(chosen, seed, FACTS), make_cache(chosen), chosen, seed, attention, BLOCK,
        layout.find("."), shift, np.array([MASK], np.int32), (), layout.find("."),
    )  # fmt: skip


def run(jobs: list[Job], **beside: Any) -> tuple[list[Step], Layers]:
    session = Layers()
    return list(denoise(session, jobs, **beside)), session


def rows_of(session: Layers) -> list[int]:
    """Rows computed in each call of one canvas, its shadows' included."""
    shadows = [0 if r.hidden is None else len(r.hidden) for (r,) in session.requests]
    rows = [len(r.tokens) if r.compute is None else len(r.compute) for (r,) in session.requests]
    return [sum(each) for each in zip(rows, shadows, strict=True)]


def goes(cache: str, decoder: str, attention: str) -> bool:
    try:
        job("g....", attention, decoder=decoder, cache=cache)
    except OptionError:
        return False
    return True


LAYOUTS = st.text("g.", min_size=1, max_size=24).filter(lambda text: "." in text).map(lambda text: "g" + text)
ATTENTION = ["full", "block_causal", "prefix_causal"]
CHOICES = [
    {"cache": cache, "decoder": decoder, "attention": attention}
    for cache in CACHES for decoder in DECODERS for attention in ATTENTION if goes(cache, decoder, attention)
]  # fmt: skip


# ---- what holds for every combination ----


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CHOICES), LAYOUTS, st.booleans(), st.integers(0, 99))
def test_the_canvas_is_filled_and_given_tokens_stay(choice: dict, layout: str, shift: bool, seed: int) -> None:
    """And the engine's rule holds: whatever a computed row sees was computed (Layers refuses anything else)."""
    the_job = job(layout, shift=shift, seed=seed, **choice)
    events, session = run([the_job])
    last = events[-1].canvas
    assert not len(last.masked)
    given = [canvas.tokens[canvas.state == GIVEN].tolist() for canvas in (last, the_job.canvas)]
    assert given[0] == given[1]
    assert [event.rows for event in events] == rows_of(session)
    assert all(event.rows <= the_job.places for event in events)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(CHOICES), LAYOUTS, st.booleans()), min_size=2, max_size=4))
def test_a_batch_gives_what_each_canvas_gives_alone(batch: list) -> None:
    jobs = [job(layout, shift=shift, **choice) for choice, layout, shift in batch]
    together, _ = run(jobs)
    for index, the_job in enumerate(jobs):
        alone, _ = run([the_job])
        mine = [event for event in together if event.index == index]
        assert [event.rows for event in mine] == [event.rows for event in alone]
        assert np.array_equal(mine[-1].canvas.tokens, alone[-1].canvas.tokens)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([choice for choice in CHOICES if choice["cache"] == "block"]), LAYOUTS, st.booleans(),
    st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_the_block_cache_changes_no_token(choice: dict, layout: str, shift: bool, temperature: float) -> None:
    fields = {"layout": layout, "shift": shift, "temperature": temperature}
    exact, _ = run([job(**{**choice, **fields, "cache": "exact"})])
    cached, session = run([job(**choice, **fields)])
    assert len(exact) == len(cached)
    for one, other in zip(exact, cached, strict=True):
        assert np.array_equal(one.canvas.tokens, other.canvas.tokens)
    assert sum(rows_of(session)) <= sum(event.rows for event in exact)


def test_the_fake_notices_what_is_kept_wrongly() -> None:
    """Otherwise the tests above would prove nothing."""
    texts = []
    for cache in ("exact", "dual"):
        events, _ = run([job("g" + "." * 16, decoder="llada", cache=cache)])
        texts.append(events[-1].canvas.tokens.tolist())
    assert texts[0] != texts[1]


# ---- row counts, calculated by hand: 3 given, 12 masked in blocks of 4, one given at the end; 16 positions ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cache": "exact"}, [16] * 12),
        ({"cache": "prefix"}, [16, 13, 13, 13, 16, 9, 9, 9, 16, 5, 5, 5]),  # from position 3, 7, 11 to the end
        ({"cache": "dual"}, [16, 4, 4, 4] * 3),
        ({"cache": "vicinity", "cache_window": 2}, [16, 8, 8, 8, 16, 8, 8, 8, 16, 7, 7, 7]),  # cut at the end
        ({"cache": "vicinity", "cache_window": 99}, [16] * 12),
        # after n steps 12 - n are masked, and the token just written is computed once more
        ({"cache": "dkv", "cache_refresh": 0}, [16, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]),
        ({"cache": "dkv", "cache_refresh": 3}, [16, 12, 11, 16, 9, 8, 16, 6, 5, 16, 3, 2]),
        # the written token and the two surest of those of the block that are left; a new block has no proposals yet
        ({"cache": "active", "cache_window": 2, "cache_refresh": 0}, [16, 3, 3, 2, 5, 3, 3, 2, 5, 3, 3, 2]),
        ({"cache": "active", "cache_window": 2, "cache_refresh": 6}, [16, 3, 3, 2, 5, 3, 16, 2, 5, 3, 3, 2]),
        # the block's rows are scored or just written; of the others the first drift 1, as never computed twice
        ({"cache": "dllm", "cache_window": 2, "cache_refresh": 0}, [16, 6, 5, 4, 7, 6, 5, 4, 7, 6, 5, 4]),
        ({"cache": "dllm", "cache_window": 99, "cache_refresh": 0}, [16] * 12),
    ],
)
def test_rows_of_llada_one_token_at_a_time(options: dict, expected: list[int]) -> None:
    _, session = run([job("ggg............g", decoder="llada", **options)])
    assert rows_of(session) == expected


def test_the_row_before_the_block_is_computed_while_it_predicts() -> None:
    _, session = run([job("ggg............g", shift=True, decoder="llada", cache="dual")])
    for number, (request,) in enumerate(session.requests):
        start = 3 + 4 * (number // 4)
        before = [start - 1] if request.score[0] == start else []
        if number % 4:
            assert request.compute.tolist() == [*before, *range(start, start + 4)]
        else:
            assert request.compute is None


def test_rows_of_the_block_cache() -> None:
    """Blocks of 4 positions: the prompt of 6 reaches into the second, of which 2 positions are left to fill."""
    _, session = run([job("gggggg" + "." * 10, "block_causal", decoder="llada", cache="block")])
    assert [r.compute.tolist() for (r,) in session.requests[:4]] == [
        list(range(8)), list(range(4, 8)), list(range(4, 12)), list(range(8, 12)),
    ]  # fmt: skip
    _, session = run([job("gggg" + "." * 4, "prefix_causal", decoder="llada", cache="block")])
    assert rows_of(session) == [8, 4, 4, 4]
    shifted = job("gggg" + "." * 4, "block_causal", shift=True, decoder="threshold", threshold=1.0, cache="block")
    _, session = run([shifted])
    assert rows_of(session)[:2] == [8, 5]  # the row before the block predicts its first position


def test_active_scores_only_what_it_computes() -> None:
    _, session = run([job("g" + "." * 12, decoder="llada", block_length=12, cache="active", cache_window=3)])
    assert [len(r.score) for (r,) in session.requests] == [12, 3, 3, 3, 3, 3, 3, 3, 4, 3, 2, 1]
    assert {r.compute is None for (r,) in session.requests[0:9:8]} == {True}


# ---- the table of combinations ----


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        ("full", {"cache": "block"}, "block does not go with full attention: every state depends on the whole text"),
        ("block_causal", {"cache": "dual"}, "dual does not go with block_causal attention: the cache block keeps"),
        ("causal", {"cache": "dkv"}, "dkv does not go with causal attention.*use exact"),
        ("full", {"cache": "prefix", "decoder": "random-keep"}, "prefix does not go with the decoder random-keep"),
        ("full", {"cache": "dual", "decoder": "topk"}, "denoises no block at a time"),
        ("full", {"cache": "dkv", "decoder": "topk"}, "topk: it looks at written positions again"),
        ("full", {"cache": "active", "decoder": "random-keep"}, "random-keep: it writes positions whatever"),
        ("full", {"cache": "active", "decoder": "llada", "order": "random"}, "llada: it writes positions whatever"),
        ("full", {"cache": "dual", "decoder": "llada", "cache_window": 3}, "no option cache_window; it takes no opt"),
        ("full", {"cache": "dkv", "cache_window": 3}, "dkv has no option cache_window; it takes cache_refresh"),
        ("full", {"cache_refresh": 3}, "the cache exact has no option cache_refresh"),
        ("full", {"cache": "vicinity", "decoder": "llada", "cache_window": 0}, "cache_window is 0, expected 1 or more"),
        ("full", {"report_drift": 1}, "report_drift is 1, expected True or False"),
    ],
)
def test_what_does_not_go_together_is_refused(attention: str, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        job("g....", attention, **options)


def test_the_cache_in_force_is_shown() -> None:
    spec = DiffusionSpec(MASK, True, attention="block_causal", block_length=4)
    assert settings_for(GenerateOptions(decoder="llada"), spec, 4).shown()["cache"] == "block"
    spec = replace(spec, attention="full")
    assert settings_for(GenerateOptions(), spec, 4).shown()["cache"] == "exact"
    shown = settings_for(GenerateOptions(cache="active", decoder="llada", report_drift=True), spec, 4).shown()
    assert (shown["cache_window"], shown["cache_refresh"]) == (16, 8)
    assert "report_drift" not in shown


# ---- drift ----


@pytest.mark.parametrize("cache", ["dual", "dkv", "active", "prefix", "dllm"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drift_is_what_a_direct_computation_gives(cache: str, temperature: float) -> None:
    options = {"cache_window": 2} if cache == "dllm" else {}
    the_job = job("gg" + "." * 12, shift=True, decoder="llada", cache=cache, temperature=temperature, **options)
    meter = DriftMeter(1)
    events, session = run([the_job], meter=meter)
    plain, _ = run([the_job])
    assert np.array_equal(events[-1].canvas.tokens, plain[-1].canvas.tokens)  # measuring changes nothing
    canvas, distances, differing, replayed = the_job.canvas, [], 0, Layers()
    asked = [replace(call[0], value_drift=None) for call in session.requests[::4]]  # cached, exact, two of logits
    for request, event in zip(asked, events, strict=True):
        exact = Layers()
        cached_rows = np.exp(replayed.logits([request])[0].astype(np.float64)[:, :MASK])
        exact_rows = np.exp(exact.logits([replace(request, compute=None)])[0].astype(np.float64)[:, :MASK])
        for one, other in zip(cached_rows, exact_rows, strict=True):
            distances.append(np.abs(one / one.sum() - other / other.sum()).sum() / 2)
        scored = the_job.decoder.look(canvas, event.step, None).rows
        proposal = exact.propose([replace(request, compute=None, score=scored)])[0]
        wanted = dict(zip(scored.tolist(), proposal.token.tolist(), strict=True))
        for position, token in zip(event.commits.positions.tolist(), event.commits.tokens.tolist(), strict=True):
            differing += wanted[position] != token
        canvas = event.canvas
    found = meter.drift[0].as_dict()
    assert found["compared_tokens"] == 12
    assert found["compared_rows"] == len(distances)
    assert found["tokens"] == differing / 12
    assert found["probability"] == pytest.approx(np.mean(distances), abs=1e-12)
    assert found["probability_max"] == pytest.approx(max(distances), abs=1e-12)
    assert found["probability"] > 0


def test_each_canvas_of_a_batch_has_its_drift() -> None:
    jobs = [job("g" + "." * 8, decoder="llada", cache=cache) for cache in ("exact", "dual")]
    meter = DriftMeter(2)
    _, session = run(jobs, meter=meter)
    assert meter.drift[0].as_dict() == {
        "tokens": 0.0, "probability": 0.0, "probability_max": 0.0, "compared_tokens": 8, "compared_rows": 20
    }  # fmt: skip
    alone = DriftMeter(1)
    run([jobs[1]], meter=alone)
    assert meter.drift[1] == alone.drift[0]
    assert {request.slot for call in session.requests for request in call} == {0, 1, 2, 3}


# ---- the embedded model ----

PROMPT = "Once upon a time there was a little fox who"


@pytest.fixture(scope="module")
def model() -> Any:
    with localdiff.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def blocks() -> Any:
    with localdiff.load(threads=1, diffusion="attn=block_causal,block=8") as loaded:
        yield loaded


def test_measured_rows_and_drift_on_the_model(model: Model) -> None:
    options = {"max_new_tokens": 48, "decoder": "llada", "block_length": 16, "temperature": 0.0, "seed": 1}
    exact = model.generate(PROMPT, **options)
    canvas = exact.prompt_tokens + 48
    assert exact.rows == exact.nfe * canvas
    assert exact.drift is None
    with pytest.raises(OptionError, match="computes everything; give a cache too"):
        model.generate(PROMPT, report_drift=True, **options)
    dual = model.generate(PROMPT, cache="dual", report_drift=True, **options)
    assert 3 * canvas + 45 * 16 < dual.rows <= 3 * canvas + 45 * 17  # a block of 16, and at first the row before it
    assert dual.drift is not None
    assert 0 < dual.drift["probability"] < dual.drift["probability_max"] < 1
    assert dual.tokens == model.generate(PROMPT, cache="dual", **options).tokens
    assert json.loads(json.dumps(dual.as_dict()))["drift"]["compared_tokens"] == 48


@pytest.mark.parametrize("cache", [name for name in CACHES if goes(name, "llada", "full")])
def test_every_cache_fills_holes_and_batches_on_the_model(model: Model, cache: str) -> None:
    options = {"decoder": "llada", "block_length": 8, "cache": cache, "seed": 3}
    out = model.infill("Once upon a time [[12]] and they all [[9]] happy.", **options)
    assert out.text.startswith("Once upon a time ")
    assert out.text.endswith(" happy.")
    assert len(out.tokens) == 21
    prompts = [PROMPT, "The cat"]
    together = model.generate(prompts, max_new_tokens=24, **options)
    assert [each.tokens for each in together] == [
        model.generate(prompt, max_new_tokens=24, **options).tokens for prompt in prompts
    ]


def test_drift_on_the_model_is_what_its_logits_give() -> None:
    """The rows that dual computes, replayed in a session of their own against the whole canvas, through the C ABI."""
    asked: list[Request] = []
    with File.open(EMBEDDED) as file:
        engine = EngineModel(file, threads=1)
        session, meter = engine.session(slots=2, slot_length=64, threads=1), DriftMeter(1)
        spec = DiffusionSpec(1, True)
        canvas = Canvas.of([[0, 50, 60, 70], Hole(24)], 1)
        chosen = settings_for(GenerateOptions(decoder="llada", block_length=8, cache="dual"), spec, 24)
        parts = (canvas, make_decoder(chosen, 1, Facts()), make_cache(chosen), chosen, 1, "full", 0, 4, True)
        the_job = Job(*parts, np.array([1], np.int32), (), 4)
        propose = session.propose

        def recording(requests: Any) -> Any:
            asked.extend(request for request in requests if request.slot == 0)
            return propose(requests)

        session.propose = recording  # type: ignore[method-assign]
        list(denoise(session, [the_job], meter=meter))
        again, distances = engine.session(slots=2, slot_length=64, threads=1), []
        for request in asked:
            pair = [request, replace(request, slot=1, compute=None)]
            ours, exact = (np.exp(rows.astype(np.float64)) for rows in again.logits(pair))
            ours[:, 1] = exact[:, 1] = 0  # the mask token
            distance = np.abs(ours / ours.sum(1, keepdims=True) - exact / exact.sum(1, keepdims=True)).sum(1) / 2
            distances += distance.tolist()
        assert meter.drift[0].as_dict()["probability"] == pytest.approx(np.mean(distances), rel=1e-9)
        assert meter.drift[0].as_dict()["compared_rows"] == len(distances) == 3 * sum(range(1, 9))
        session.close()
        again.close()
        engine.close()


@pytest.mark.parametrize("decoder", [name for name, row in DECODERS.items() if "blocks" in row.traits])
def test_the_block_cache_is_exact_to_the_bit_on_the_model(blocks: Model, decoder: str) -> None:
    """A distance of 0 means equal logits: those of the kept state and those of a whole pass."""
    options = {"max_new_tokens": 40, "decoder": decoder, "seed": 5}
    exact = blocks.generate(PROMPT, cache="exact", **options)
    cached = blocks.generate(PROMPT, report_drift=True, **options)
    assert cached.decoder["cache"] == "block"
    assert cached.tokens == exact.tokens
    assert cached.drift is not None
    assert (cached.drift["tokens"], cached.drift["probability_max"]) == (0.0, 0.0)
    # without a cache wino is not shown what stands behind its block
    assert cached.rows < exact.rows / (2 if decoder == "wino" else 3)


@pytest.mark.parametrize("attention", ["block_causal,block=8", "prefix_causal"])
def test_a_prompt_is_computed_once(attention: str) -> None:
    """Turns of a conversation: the second costs its new tokens, and its answer is that of a model that knew nothing."""
    options = {"max_new_tokens": 16, "decoder": "llada", "seed": 1, "temperature": 0.0, "block_length": 8}
    with localdiff.load(threads=1, diffusion=f"attn={attention}") as model:
        first = model.generate(PROMPT, **options)
        again = model.generate(PROMPT, **options)
        assert again.tokens == first.tokens
        assert first.rows - again.rows >= first.prompt_tokens // 8 * 8 - 8
        history = [*model.tokenize(PROMPT), *first.tokens]
        turn = [*history, *model.tokenize(" But then")]
        second = model.generate(turn, **options)
        model.logits([3, 4, 5])  # takes the slot, so nothing of it can be kept
        anew = model.generate(turn, **options)
        assert second.tokens == anew.tokens
        assert second.rows < anew.rows
        other = model.generate([5, *turn], **options)
        model.logits([3, 4, 5])
        assert model.generate([5, *turn], **options).rows == other.rows  # nothing was shared
    with localdiff.load(threads=1, diffusion=f"attn={attention}") as fresh:
        assert fresh.generate(turn, **options).tokens == second.tokens
        assert fresh.generate(turn[:-3], **options).tokens == fresh.generate(turn[:-3], cache="exact", **options).tokens


def test_nothing_is_kept_where_the_prompt_sees_the_answer(model: Model) -> None:
    options = {"max_new_tokens": 8, "decoder": "llada", "seed": 1}
    counts = [model.generate(PROMPT, **options).rows for _ in range(2)]
    assert counts[0] == counts[1]
    dual = [model.generate(PROMPT, cache="dual", **options) for _ in range(2)]
    assert dual[0].rows == dual[1].rows
    assert dual[0].tokens == dual[1].tokens


# ---- the command line ----


def test_flags(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-p", "Once", "-n", "8", "--decoder", "llada", "--cache", "vicinity", "--cache-window", "2"]
    assert main(["run", *arguments, "--report-drift", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["decoder"]["cache"], shown["decoder"]["cache_window"]) == ("vicinity", 2)
    assert shown["drift"]["compared_tokens"] == 8
    assert main(["infill", "Once [[1]].", "--decoder", "llada", "--cache", "prefix", "--report-drift"]) == 0
    assert "% of 1 token would be others" in capfd.readouterr().err
    assert main(["run", "-p", "Once", "--cache", "block"]) == 2
    assert "does not go with full attention" in capfd.readouterr().err
