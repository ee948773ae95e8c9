"""Same seed, same tokens: whatever the threads, the batch and the place in it (T19), for every kernel row, and for fast
arithmetic on the best one.

The default model, 100 prompts, sampled decoding. Between kernel rows the rounding differs, so tokens are compared
within a row. The scalar row answers fewer prompts, for it is slow.
"""

import numpy as np
import pytest

import localdiff
from localdiff.engine import isa_rows

OPENINGS = ["Once upon a time", "One day", "In the morning", "The little", "Yesterday"]
SUBJECTS = ["a cat", "the old king", "two birds", "Anna", "a small house", "the sea", "my friend", "rain", "a fox"]
SUBJECTS += ["the moon", "three brothers", "bread", "an elephant", "the school", "snow", "a boat", "a red ball"]
SUBJECTS += ["the wise woman", "the forest", "Tom"]
PROMPTS = [f"{opening} {subject}" for opening in OPENINGS for subject in SUBJECTS]
OPTIONS = {"max_new_tokens": 12, "steps": 4, "decoder": "topk", "temperature": 0.8, "top_p": 0.95}


def answers(
    isa: str, math: str, threads: int, batch: int, prompts: list[str], order: np.ndarray
) -> dict[str, list[int]]:
    """prompt -> tokens, generated `batch` prompts at a time in the given order, all with one seed."""
    model = localdiff.load(threads=threads, isa=isa, math=math)
    found = {}
    for begin in range(0, len(order), batch):
        part = [prompts[i] for i in order[begin : begin + batch]]
        for prompt, out in zip(part, model.generate(part, seed=7, **OPTIONS), strict=True):
            found[prompt] = list(out.tokens)
    model.close()
    return found


ROWS = [name for name, supported in isa_rows() if supported]


@pytest.mark.parametrize(("isa", "math"), [(ROWS[0], "fast"), *((isa, "exact") for isa in ROWS)])
def test_tokens_do_not_depend_on_threads_batch_or_place(isa: str, math: str) -> None:
    prompts = PROMPTS if isa != "scalar" else PROMPTS[:8]
    forward = np.arange(len(prompts))
    expected = answers(isa, math, 1, 1, prompts, forward)
    assert len({tuple(tokens) for tokens in expected.values()}) > len(prompts) // 2, "the answers hardly differ"
    for threads in (1, 2, 3, 4, 8):
        for batch in (1, 2, 7, 32):
            if isa == "scalar" and (threads, batch) not in ((2, 7), (3, 2), (8, 32)):
                continue
            order = np.random.default_rng(threads * 100 + batch).permutation(len(prompts))
            assert answers(isa, math, threads, batch, prompts, order) == expected, (
                f"{threads} threads, batches of {batch}"
            )
