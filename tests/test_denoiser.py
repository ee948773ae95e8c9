"""The Denoiser: jobs that join and leave while others run come out as alone, on one engine or moved to another."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import CHOICES, LAYOUTS, Layers, job, run

from localdiff.decode.loop import Denoiser, Step


def tokens_of(steps: list[Step]) -> list[list[int]]:
    return [step.canvas.tokens.tolist() for step in steps]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(LAYOUTS, st.sampled_from(CHOICES), st.integers(0, 6), st.booleans()), min_size=2, max_size=5),
    st.integers(0, 9),
)
def test_who_joins_and_leaves_makes_no_difference(
    arrivals: list[tuple[str, dict[str, Any], int, bool]], leaves: int
) -> None:
    jobs = [job(layout, seed=seed, **choice) for seed, (layout, choice, _, _) in enumerate(arrivals)]
    denoiser = Denoiser(Layers())
    seen: dict[int, list[Step]] = {slot: [] for slot in range(len(jobs))}
    todo = {slot: arrivals[slot][2] for slot in seen}
    moment = 0
    while todo or denoiser.live:
        for slot in [slot for slot, when in todo.items() if when <= moment]:
            denoiser.add(slot, jobs[slot])
            del todo[slot]
        if moment == leaves:
            denoiser.remove(0)
        if denoiser.movable and any(arrivals[slot][3] for slot in denoiser.live):
            denoiser.move(Layers())
        for step in denoiser.step():
            seen[step.index].append(step)
        moment += 1
    for slot, steps in seen.items():
        alone, _ = run([jobs[slot]])
        assert tokens_of(steps) == tokens_of(alone)[: len(steps)]
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        assert len(steps) == len(alone) or slot == 0


@pytest.mark.parametrize("cache", sorted({choice["cache"] for choice in CHOICES}))
def test_what_an_approximation_left_is_not_begun_with(cache: str) -> None:
    choice = next(c for c in CHOICES if c["cache"] == cache and c["attention"] in ("block_causal", "prefix_causal"))
    session, states = Layers(), {}
    for layout in ("gggg........", "ggggggg....."):
        denoiser = Denoiser(session, states)
        denoiser.add(0, job(layout, **choice))
        list(denoiser.step())  # abandoned after a step
        exact = {"cache": "exact", "decoder": "threshold", "attention": choice["attention"]}
        denoiser = Denoiser(session, states)
        denoiser.add(0, job(layout, **exact))
        steps = []
        while denoiser.live:
            steps += list(denoiser.step())
        assert tokens_of(steps) == tokens_of(run([job(layout, **exact)])[0])


def test_some_of_the_live_may_step_alone() -> None:
    denoiser = Denoiser(Layers())
    for slot in (0, 3):
        denoiser.add(slot, job("g......", decoder="llada", steps=6))
    assert [step.index for step in denoiser.step([3])] == [3]
    assert {step.index: step.step for step in denoiser.step()} == {0: 1, 3: 2}
    denoiser.remove(3)
    assert denoiser.live == [0]
    assert np.all([step.index == 0 for step in denoiser.step()])
