"""Every decoder against its algorithm written a second time (decoder_references.py), at random settings each: the same
tokens in the same order. And what holds for all of them: nothing given changes, they end, every step replays."""

from typing import Any

import numpy as np
import pytest
from decoder_oracle import Oracle
from decoder_references import REFERENCES
from fake import FakeSession, Logits, point_mass, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from localdiff.cache.table import make_cache
from localdiff.canvas import GIVEN, MASKED, Canvas, Hole
from localdiff.decode.decoder import Facts
from localdiff.decode.loop import Job, Step, denoise
from localdiff.decode.table import DECODERS, make_decoder, settings_for
from localdiff.errors import OptionError
from localdiff.options import GenerateOptions
from localdiff.spec import DiffusionSpec
from localdiff.trace import Trace

VOCAB, MASK, EXPAND, DELETE, STOP, LINE_END = 12, 11, 10, 9, 8, 7
SETTINGS = 200  # of each decoder
GROWTH = 15  # positions by which a canvas may grow
BACKGROUND = np.random.default_rng(1).dirichlet(np.full(VOCAB, 0.3)).astype(np.float32)


def a_job(name: str, layout: str, seed: int, spec: dict[str, Any] | None = None, **options: Any) -> Job:
    """A job over a layout such as "gg....g": given and masked positions; it may grow by GROWTH."""
    record = DiffusionSpec(MASK, **({"logit_shift": False} | natural(name) | (spec or {})))
    canvas = Canvas.of([[index % 7] if char == "g" else Hole(1) for index, char in enumerate(layout)], MASK)
    chosen = settings_for(GenerateOptions(decoder=name, **options), record, len(canvas.masked))
    forbidden = np.array([MASK] if name == "dreamon" else [DELETE, EXPAND, MASK], np.int32)
    decoder = make_decoder(
        chosen, seed, Facts(VOCAB, forbidden, len(canvas) + GROWTH, EXPAND, DELETE, (STOP,), LINE_END, BACKGROUND)
    )
    decoder.check(canvas)
    return Job(
        canvas, decoder, make_cache(chosen), chosen, seed, record.attention, record.block_length, 0, record.logit_shift,
        forbidden, (), layout.find("."),
    )  # fmt: skip


def natural(name: str) -> dict[str, Any]:
    """The kind of model that a decoder is for."""
    if "reorders" in DECODERS[name].traits:
        return {"attention": "causal"}
    return {"process": "uniform"} if "noise" in DECODERS[name].traits else {}


def run(job: Job, logits: Logits) -> list[Step]:
    return list(denoise(FakeSession(logits), [job]))


def random_layout(rng: np.random.Generator) -> str:
    letters = rng.choice(["g", "."], int(rng.integers(1, 14)), p=[0.2, 0.8])
    return "g" + "".join(letters) + "."


VALUES: dict[str, Any] = {  # option -> how a value is drawn
    "steps": lambda rng: int(rng.integers(1, 16)),
    "block_length": lambda rng: int(rng.integers(1, 9)),
    "threshold": lambda rng: float(rng.uniform(0.2, 1)),
    "edit_threshold": lambda rng: float(rng.uniform(0.1, 0.9)),
    "relaxed_threshold": lambda rng: float(rng.uniform(0.1, 0.6)),
    "verify_threshold": lambda rng: float(rng.uniform(0.1, 0.9)),
    "edit_steps": lambda rng: int(rng.integers(0, 5)),
    "entropy_bound": lambda rng: float(rng.uniform(0, 2)),
    "distance_penalty": lambda rng: float(rng.uniform(0, 0.3)),
    "factor": lambda rng: float(rng.uniform(0, 3)),
    "order_temperature": lambda rng: float(rng.uniform(0, 1)),
    "remask_rate": lambda rng: float(rng.uniform(0, 0.8)),
    "divergence": lambda rng: float(rng.uniform(0, 3)),
    "end_temperature": lambda rng: float(rng.uniform(0.02, 1)),
    "delimiter_threshold": lambda rng: float(rng.uniform(0, 0.6)),
    "pace": lambda rng: float(rng.uniform(1, 6)),
    "position_decay": lambda rng: float(rng.uniform(0, 1)),
    "expansions": lambda rng: int(rng.integers(0, 6)),
    "radius": lambda rng: int(rng.integers(0, 4)),
}


COUNTS_FOR = {  # sdar's options and the orders that look at them
    "threshold": ("dynamic",), "entropy_bound": ("entropy",), "steps_per_block": ("dynamic", "static", "sequential"),
}  # fmt: skip


def random_options(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Each option of the decoder is left at its default or drawn; what would be refused is not asked for."""
    row = DECODERS[name]
    drawn = {option: VALUES[option](rng) for option in VALUES if option in row.defaults and rng.random() < 0.8}
    drawn |= {option: str(rng.choice(known)) for option, known in row.choices.items()}
    if "steps_per_block" in row.defaults and rng.random() < 0.5:
        drawn["block_length"] = drawn.get("block_length", 4)
        drawn["steps_per_block"] = int(rng.integers(1, drawn["block_length"] + 1))
    if name == "sdar":
        for option, orders in COUNTS_FOR.items():
            if drawn["order"] not in orders:
                drawn.pop(option, None)
    if name == "rnd1" and "steps" in drawn:
        drawn.pop("entropy_bound", None)
    if drawn.get("order") == "random":
        drawn.pop("order_temperature", None)
    if drawn.get("remask") == "confidence":
        drawn.pop("remask_rate", None)
    if name in ("llada", "prophet", "pc-sampler"):
        drawn["steps"] = int(rng.integers(14, 24))  # a step for each block
    temperature = float(rng.choice([0.0, 0.5, 1.0]))
    if name == "entropy-bound":
        temperature = float(rng.uniform(0.1, 1.5))
    sampling = {"temperature": temperature, "top_p": float(rng.choice([0.8, 1.0])), "top_k": int(rng.choice([0, 5]))}
    return drawn | sampling


def random_job(name: str, seed: int) -> tuple[Job, Logits]:
    rng = np.random.default_rng([seed, len(name)])
    spec: dict[str, Any] = {}
    if "reorders" not in DECODERS[name].traits:
        spec["logit_shift"] = bool(rng.random() < 0.5)
    options = random_options(name, rng)
    if name == "wino":  # much is written and much of it taken back
        options |= {"threshold": float(rng.uniform(0.02, 0.5)), "verify_threshold": float(rng.uniform(0.2, 1))}
        options["block_length"] = int(rng.integers(2, 13))
    if "blocks" in DECODERS[name].traits and rng.random() < 0.5:
        spec |= {"attention": "block_causal", "block_length": options.get("block_length", 4)}
    logits = random_table(VOCAB, float(rng.choice([2.0, 4.0, 9.0])))
    if name == "daedal":  # which looks for the end of an answer in a window of 32 tokens
        options |= {"threshold": float(rng.uniform(0.05, 0.5)), "relaxed_threshold": float(rng.uniform(0.2, 0.95))}
        layout, end = "gg" + "." * int(rng.integers(17, 26)), int(rng.integers(0, 6))
        return a_job(name, layout, seed, spec, **options), ending(logits, end)
    return a_job(name, random_layout(rng), seed, spec, **options), logits


def ending(logits: Logits, end: int) -> Logits:
    """The model, mostly sure of stop tokens from row `end` on."""

    def stopping(request: Any) -> np.ndarray:
        rows = logits(request)
        rows[end:, STOP] += 9
        return rows

    return stopping


@pytest.mark.parametrize("name", REFERENCES)
def test_same_tokens_in_the_same_order_as_the_published_algorithm(name: str) -> None:
    for seed in range(SETTINGS):
        job, logits = random_job(name, seed)
        tokens, masked = job.canvas.tokens.tolist(), (job.canvas.state == MASKED).tolist()
        wanted = list(REFERENCES[name](Oracle(job, logits, VOCAB), tokens, masked, job.settings))
        found = [(step.canvas.tokens.tolist(), (step.canvas.state == MASKED).tolist()) for step in run(job, logits)]
        assert found == wanted, f"{seed}: {job.settings}"


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_given_tokens_stay_and_every_step_replays_and_ends_within_its_bound(name: str, seed: int) -> None:
    row = DECODERS[name]
    job, logits = random_job(name, seed)
    total = len(job.canvas.masked)
    canvas = job.canvas.apply(job.decoder.start(job.canvas))
    steps = run(job, logits)
    trace = Trace(canvas, tuple(step.commits for step in steps))
    again = Trace.from_json(trace.to_json())
    assert again.to_json() == trace.to_json()
    for step, after in zip(steps, again.canvases(), strict=True):
        before, canvas = canvas, after
        assert np.array_equal(canvas.tokens, step.canvas.tokens)
        assert np.array_equal(canvas.state, step.canvas.state)
        given_now = canvas.state == GIVEN
        assert np.array_equal(canvas.tokens[given_now], job.canvas.tokens[job.canvas.state == GIVEN])
        assert step.commits.scores is None or len(step.commits.scores) == len(step.commits)
        if not row.traits & {"rewrites", "resizes", "revises"}:  # monotone: what is written stays
            kept = before.state != MASKED
            assert np.array_equal(before.tokens[kept], canvas.tokens[kept])
    assert steps[-1].stop_reason == "length"
    assert not len(canvas.masked)
    assert not np.isin(job.forbidden, canvas.tokens[canvas.state != GIVEN]).any()
    if not row.traits & {"rewrites", "resizes", "revises"}:  # counts add up
        assert sum(len(step.commits) for step in steps) == total
    bound = job.settings.steps or total
    if name == "llada2.1":
        bound = total * (1 + job.settings.edit_steps)
    elif "resizes" in row.traits:
        bound = total + (10 if name == "daedal" else 2) * job.settings.expansions
        assert len(canvas) <= job.decoder.room(job.canvas)
    elif job.settings.entropy_bound is not None and name == "rnd1":
        bound = total
    assert len(steps) <= bound


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_that_is_certain_gives_its_text(name: str) -> None:
    text = [3, 1, 4, 1, 5, 2, 6]
    shift = "reorders" not in DECODERS[name].traits
    job = a_job(name, "gg" + "." * 18, 1, {"logit_shift": shift})
    logits = point_mass(text, VOCAB, shift=True) if shift else by_position(text)
    last = run(job, logits)[-1].canvas.tokens.tolist()
    assert last[2:] == np.resize(text, len(last)).tolist()[2:]
    assert len(last) == 20 or "resizes" in DECODERS[name].traits


def by_position(text: list[int]) -> Logits:
    """A model that is certain of one text whatever order it is read in."""

    def logits(request: Any) -> np.ndarray:
        rows = np.full((len(request.tokens), VOCAB), -50.0)
        rows[np.arange(len(rows)), np.resize(text, len(rows))[request.positions]] = 50.0
        return rows

    return logits


@pytest.mark.parametrize("name", [name for name, row in DECODERS.items() if "noise" not in row.traits])
def test_a_batch_gives_what_each_text_gives_alone(name: str) -> None:
    jobs = [random_job(name, 5000 + seed)[0] for seed in range(6)]
    logits = random_table(VOCAB)
    together = list(denoise(FakeSession(logits), jobs))
    for index, job in enumerate(jobs):
        mine = [step.canvas.tokens.tolist() for step in together if step.index == index]
        assert mine == [step.canvas.tokens.tolist() for step in run(job, logits)]


def test_the_names_of_the_papers_are_understood() -> None:
    for published, here in (("origin", "random"), ("maskgit_plus", "confidence"), ("topk_margin", "margin")):
        assert a_job("dream", "g..", 1, order=published).settings.order == here
    assert a_job("sdar", "g..", 1, order="entropy_bounded").settings.order == "entropy"


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("dream", {"attention": "block_causal", "block_length": 4}, {}, "works in blocks: llada, threshold"),
    ("wedlm", {"attention": "full"}, {}, "needs a model with causal attention"),
    ("wedlm", {"logit_shift": True}, {}, "no row can predict the next position"),
    ("dream", {"process": "uniform"}, {}, "for process=uniform choose entropy-bound"),
    ("entropy-bound", {"process": "absorbing"}, {}, "do not go together"),
    ("entropy-bound", {"process": "uniform"}, {"report_drift": True}, "so there is no drift to report"),
    ("dream", {}, {"order": "random", "order_temperature": 0.5}, "no effect on the order random"),
    ("rnd1", {}, {"steps": 4, "entropy_bound": 0.1}, "steps and entropy_bound both say"),
    ("sdar", {}, {"order": "static", "threshold": 0.5}, "threshold counts only for the order dynamic"),
    ("sdar", {}, {"entropy_bound": 0.5}, "entropy_bound counts only for the order entropy"),
    ("sdar", {}, {"order": "entropy", "steps_per_block": 2}, "steps_per_block has no effect"),
    ("sdar", {}, {"steps_per_block": 5}, "steps_per_block is 5, but a block has 4"),
    ("remdm", {}, {"remask": "confidence", "remask_rate": 0.5}, "remask_rate has no effect"),
    ("wino", {"attention": "causal"}, {}, "a model with causal attention never sees"),
    ("wino", {}, {"guidance": 1.0}, "would take back what guidance leads to"),
    ("wino", {}, {"repetition_penalty": 1.2}, "looks at written tokens again"),
    ("wino", {}, {"regex": "a+"}, "takes tokens back or moves them"),
    ("daedal", {}, {"grow": 4}, "the decoder daedal decides itself how the canvas grows"),
    ("rdm", {}, {"grow": 4, "length_beam": 2}, "leave one of them out"),
    ("topk", {}, {"length_beam": 2}, "topk has no option length_beam"),
    ("rdm", {}, {"deadline": 5.0, "length_beam": 2}, "lengths cannot be compared"),
    ("llada", {}, {"regex": "a+", "grow": 4}, "regex is matched over a canvas of one length"),
    ("dream", {}, {"order": "sequential"}, "dream knows no order sequential, expected confidence, margin, entropy"),
    ("rdm", {}, {"remask": "loop"}, "rdm knows no remask loop, expected uncond, cond"),
]


@pytest.mark.parametrize(("name", "spec", "options", "message"), REFUSED)
def test_what_combines_badly_is_refused_with_the_reason(
    name: str, spec: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        a_job(name, "g....", 1, spec, **options)


def test_records_that_name_no_decoder_get_one_that_goes_with_the_model() -> None:
    kinds = {"random-keep": {}, "threshold": {"attention": "block_causal", "block_length": 4},
             "entropy-bound": {"process": "uniform"}}  # fmt: skip
    for name, kind in kinds.items():
        spec = DiffusionSpec(MASK, False, **kind)  # type: ignore[arg-type]
        assert settings_for(GenerateOptions(), spec, 8).decoder == name


def test_dreamon_needs_a_model_that_can_expand() -> None:
    chosen = settings_for(GenerateOptions(decoder="dreamon"), DiffusionSpec(MASK, True), 4)
    decoder = make_decoder(chosen, 1, Facts(VOCAB))
    with pytest.raises(OptionError, match="the record names none"):
        decoder.check(Canvas.of([[1], Hole(4)], MASK))
