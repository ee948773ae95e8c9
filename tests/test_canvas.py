"""The canvas: what may be written, and that given tokens never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdiff.canvas import COMMITTED, GIVEN, MASKED, Canvas, Commits, Hole
from localdiff.errors import OptionError

MASK = 9


def commits(positions: list[int], tokens: list[int]) -> Commits:
    return Commits(np.array(positions, np.int32), np.array(tokens, np.int32))


def test_parts_are_joined() -> None:
    canvas = Canvas.of([[1, 2], Hole(2), [3], Hole(1)], MASK)
    assert canvas.tokens.tolist() == [1, 2, MASK, MASK, 3, MASK]
    assert canvas.masked.tolist() == canvas.maskable.tolist() == [2, 3, 5]
    assert canvas.state.tolist() == [GIVEN, GIVEN, MASKED, MASKED, GIVEN, MASKED]


def test_a_genuine_token_may_have_the_id_of_the_mask() -> None:
    canvas = Canvas.of([[MASK, 1], Hole(1)], MASK)
    assert canvas.masked.tolist() == [2]


def test_apply_gives_a_new_canvas() -> None:
    before = Canvas.of([[1], Hole(3)], MASK)
    after = before.apply(commits([1, 3], [5, 6]))
    assert after.tokens.tolist() == [1, 5, MASK, 6]
    assert after.state.tolist() == [GIVEN, COMMITTED, MASKED, COMMITTED]
    assert before.tokens.tolist() == [1, MASK, MASK, MASK]
    assert after.apply(commits([], [])).tokens.tolist() == after.tokens.tolist()


def test_arrays_cannot_be_written() -> None:
    canvas = Canvas.of([[1], Hole(1)], MASK)
    with pytest.raises(ValueError, match="read-only"):
        canvas.tokens[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        canvas.state[0] = MASKED


@pytest.mark.parametrize(
    ("positions", "tokens", "message"),
    [
        ([0], [5], "expected masked positions"),  # given
        ([2], [5], "expected masked positions"),  # committed before
        ([3, 1], [5, 5], "expected ascending"),
        ([1, 1], [5, 5], "expected ascending"),
        ([4], [5], "below 4"),
        ([-1], [5], "below 4"),
        ([1], [MASK], "writes the mask token"),
    ],
)
def test_wrong_commits_are_refused(positions: list[int], tokens: list[int], message: str) -> None:
    canvas = Canvas.of([[1], Hole(3)], MASK).apply(commits([2], [7]))
    with pytest.raises(ValueError, match=message):
        canvas.apply(commits(positions, tokens))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_given_tokens_never_change(holes: list[bool], data: st.DataObject) -> None:
    canvas = Canvas.of([Hole(1) if hole else [index % 9] for index, hole in enumerate(holes)], MASK)
    first = canvas
    while len(canvas.masked):
        chosen = data.draw(st.lists(st.sampled_from(canvas.masked.tolist()), unique=True))
        canvas = canvas.apply(commits(sorted(chosen), [8] * len(chosen)))
        if not chosen:
            break
    kept = first.state == GIVEN
    assert np.array_equal(canvas.tokens[kept], first.tokens[kept])
    assert np.array_equal(canvas.state == GIVEN, kept)


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "3"])
def test_hole_lengths(length: object) -> None:
    with pytest.raises(OptionError, match="length of a hole"):
        Hole(length)  # type: ignore[arg-type]


# ---- commits that do more than write ----


def test_a_committed_token_can_be_edited_or_masked_again_where_the_commits_say_so() -> None:
    canvas = Canvas.of([[1], Hole(3)], MASK).apply(commits([1, 2], [7, 8]))
    change = Commits(np.array([1, 2], np.int32), np.array([5, MASK], np.int32), state=np.array([2, 1], np.uint8))
    after = canvas.apply(change)
    assert after.tokens.tolist() == [1, 5, MASK, MASK]
    assert after.state.tolist() == [GIVEN, COMMITTED, MASKED, MASKED]
    assert change.written.tolist() == [1]
    with pytest.raises(ValueError, match="no given positions"):
        canvas.apply(Commits(np.array([0], np.int32), np.array([5], np.int32), state=np.array([2], np.uint8)))
    with pytest.raises(ValueError, match="writes the mask token"):
        canvas.apply(Commits(np.array([1], np.int32), np.array([MASK], np.int32), state=np.array([2], np.uint8)))


def test_positions_can_be_removed_and_multiplied_and_know_where_they_came_from() -> None:
    canvas = Canvas.of([[1], Hole(3), [2]], MASK)
    change = Commits(
        np.array([1, 2, 3], np.int32), np.array([MASK, MASK, 7], np.int32), None,
        np.array([MASKED, MASKED, COMMITTED], np.uint8), np.array([2, 0, 1], np.int32),
    )  # fmt: skip
    after = canvas.apply(change)
    assert after.tokens.tolist() == [1, MASK, MASK, 7, 2]
    assert after.state.tolist() == [GIVEN, MASKED, MASKED, COMMITTED, GIVEN]
    assert after.origin.tolist() == [0, 1, 1, 3, 4]
    assert change.written.tolist() == [3]
