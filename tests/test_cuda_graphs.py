"""The GPU's plug-in computes a step it has met before as one recorded graph: the same bits as launch by launch.

Every kind of change between two steps (tokens, intervals, numbers of rows, slots, what is scored), failures of
recording, cancelling, and how often a graph was in fact made and launched. Kernels are emulated on the processor, with
their arguments kept at the time of recording, so an argument that changes from step to step would be found here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import VOCAB, FamilyFiles
from emulated import PLUGIN, needs_plugin

from localdiff.engine import EngineModel, File, Request
from localdiff.engine import Session as EngineSession
from localdiff.errors import Cancelled, OptionError

pytestmark = needs_plugin
LENGTH = 16

Ask = Callable[[EngineSession], Any]


def graphs() -> tuple[int, int]:
    """How many graphs were made and launched so far; only the emulator knows."""
    counter = getattr(ctypes.CDLL(str(PLUGIN)), "ld_emulated_graphs", None)
    if counter is None:
        pytest.skip("a GPU does not count its graphs")
    made, launched = ctypes.c_int(), ctypes.c_int()
    counter(ctypes.byref(made), ctypes.byref(launched))
    return made.value, launched.value


def tokens_of(seed: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, length, dtype=np.int32)


def rows_of(*bounds: int) -> np.ndarray:
    return np.arange(*bounds, dtype=np.int32)


def whole(seed: int, **options: Any) -> Ask:
    """All rows of other tokens, another half of them scored."""
    score = rows_of(seed % 3, LENGTH, 2)
    return lambda session: session.propose([Request(tokens_of(seed), score, temperature=0.8, seed=seed, **options)])[0]


def block(seed: int, begin: int, length: int = 4) -> Ask:
    """Rows [begin, begin + length) again, which see what lies before them and themselves."""
    rows = rows_of(begin, begin + length)
    options: dict[str, Any] = {"compute": rows, "attention": "block_causal", "block_length": 4, "temperature": 0.7}
    return lambda session: session.propose([Request(tokens_of(seed), rows, seed=seed, **options)])[0]


def two(seed: int) -> Ask:
    requests = [Request(tokens_of(seed + slot, 6), rows_of(6), slot=slot) for slot in (0, 1)]
    return lambda session: session.propose(requests[:: 1 if seed % 2 else -1])[1]


STEPS = [
    whole(1), whole(2), whole(3), block(4, 0), block(5, 4), block(6, 8), two(7), block(7, 4), two(8), two(9),
    block(8, 12), block(9, 8, 8), whole(4, attention="causal"), whole(5, attention="prefix_causal", prefix=5),
    whole(6, attention="prefix_causal", prefix=9), whole(7, attention="prefix_causal", prefix=9), whole(8),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return FamilyFiles(tmp_path_factory.mktemp("graphs"))


def answers(path: Path, steps: list[Ask] = STEPS, **options: Any) -> list[Any]:
    with (
        File.open(path) as file,
        EngineModel(file, device=PLUGIN, **options) as model,
        model.session(slots=2, slot_length=LENGTH, threads=1) as session,
    ):
        return [step(session) for step in steps]


def assert_equal(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.token, other.token)
        assert np.array_equal(one.probability, other.probability)
        assert np.array_equal(one.entropy, other.entropy)


@pytest.mark.parametrize("name", ["Dream", "ModernBERT", "SDAR-MoE"])
def test_a_graph_gives_the_bits_of_its_launches(
    files: FamilyFiles, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = graphs()
    recorded = answers(files(name))
    made, launched = (now - then for now, then in zip(graphs(), before, strict=True))
    # Kinds met again: 16 rows of a canvas (4 times), 4 rows (5), 12 rows (3), 9 rows of a prompt and 7 others (2); met
    # once: 8 rows, 16 of a prompt, 5 and 11. The first step of a kind is no graph.
    assert made == 4
    assert launched == 3 + 4 + 2 + 1
    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "off")
    assert_equal(recorded, answers(files(name)))
    assert graphs() == (before[0] + made, before[1] + launched)


def test_a_part_of_a_split_model_is_recorded(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    before = graphs()
    recorded = answers(files("Dream"), STEPS[:6], gpu_layers=2)
    assert graphs()[1] - before[1] == 4
    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "off")
    assert_equal(recorded, answers(files("Dream"), STEPS[:6], gpu_layers=2))


def test_steps_that_cannot_be_recorded_are_launched(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(files("Dream"))
    before = graphs()
    monkeypatch.setenv("LD_EMULATED_CAPTURE", "fails")
    assert_equal(expected, answers(files("Dream")))
    assert graphs() == before


def test_the_drift_of_values_is_asked_for_launch_by_launch(
    files: FamilyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(seed: int) -> Ask:
        def ask(session: EngineSession) -> Any:
            drift = np.empty(LENGTH, np.float32)
            proposal = whole(seed, value_drift=drift)(session)
            return proposal, drift

        return ask

    steps = [whole(1), drifting(2), whole(3), drifting(4), drifting(5), whole(6)]
    before = graphs()
    recorded = answers(files("Dream"), steps)
    assert graphs()[1] - before[1] == 2
    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "off")
    expected = answers(files("Dream"), steps)
    for at in (1, 3, 4):
        assert np.array_equal(recorded[at][1], expected[at][1])
        assert recorded[at][1].max() > 0
    plain = [[each[at] for at in (0, 2, 5)] for each in (recorded, expected)]
    assert_equal(*plain)


def test_a_cancelled_step_is_forgotten(files: FamilyFiles) -> None:
    """Cancelled while it would be launched, recorded and replayed; the next one gives what it would have given."""

    def cancelled(session: EngineSession) -> Any:
        session.cancel()
        with pytest.raises(Cancelled):
            whole(2)(session)
        return whole(2)(session)

    steps = [cancelled] * 4
    for each in answers(files("Dream"), steps):
        assert_equal([each], answers(files("Dream"), [whole(2)]))


def test_old_recordings_make_room(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """More kinds of steps than are kept, each met twice in a row, then all again."""

    def short(length: int) -> Ask:
        return lambda session: session.propose([Request(tokens_of(length, length), rows_of(length))])[0]

    causal = whole(1, attention="causal")
    steps = [short(n) for n in range(1, 17) for _ in range(2)] + [causal, causal, short(1), whole(1)]
    before = graphs()
    recorded = answers(files("Dream"), steps)
    made, launched = (now - then for now, then in zip(graphs(), before, strict=True))
    assert (made, launched) == (17, 18)
    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "off")
    assert_equal(recorded, answers(files("Dream"), steps))


def test_the_setting_is_checked(files: FamilyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDIFF_CUDA_GRAPHS", "perhaps")
    with File.open(files("Dream")) as file, pytest.raises(OptionError, match="is 'perhaps', expected on or off"):
        EngineModel(file, device=PLUGIN)
