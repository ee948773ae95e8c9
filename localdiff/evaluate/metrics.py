"""What answers are worth: exact match, ROUGE, numbers in solutions, entropy of a text; and means with their errors.

ROUGE is the F-measure of the package rouge-score (extra [eval]), without stemming. Not here: likelihoods.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from ..errors import LocaldiffError

_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")
_NEXT_QUESTION = "Question:"  # a model that was shown solved problems goes on with one of its own


def exact(made: str, target: str) -> float:
    return float(made.strip() == target.strip())


def rouge(name: str, made: str, target: str) -> float:
    """rouge1, rouge2 or rougeL, 0 to 1; LocaldiffError where the package is missing."""
    return float(_rouge_scorer(name).score(target, made)[name].fmeasure)


@functools.cache
def _rouge_scorer(name: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise LocaldiffError(
            f"ROUGE needs the package '{error.name}', which is not installed; run: pip install 'localdiff[eval]'"
        ) from None
    return RougeScorer([name], use_stemmer=False)


def check_metrics(names: Sequence[str]) -> None:
    """Raise LocaldiffError where the package of a metric is missing, before anything is measured."""
    for name in names:
        if name.startswith("rouge"):
            _rouge_scorer(name)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    **{name: functools.partial(rouge, name) for name in ("rouge1", "rouge2", "rougeL")},
}


def final_number(text: str) -> str | None:
    """The number that a solution comes to: the first after ####, else the last before another question; as written."""
    own = text.partition(_NEXT_QUESTION)[0]
    _, mark, after = own.partition("####")
    found = _NUMBER.findall(after if mark else own)
    return None if not found else str(found[0] if mark else found[-1])


def same_number(found: str | None, expected: str) -> bool:
    """Whether two numbers are equal, however their thousands, decimals and dollars are written."""
    values = [_value(each) for each in (found, expected)]
    return values[0] is not None and values[0] == values[1]


def _value(text: str | None) -> Decimal | None:
    try:
        return None if text is None else Decimal(re.sub(r"[$,+\s]", "", text))
    except InvalidOperation:
        return None


def token_entropy(tokens: Sequence[int]) -> float:
    """Of the frequencies of the tokens in one text, in nats: low where a text repeats itself."""
    _, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    share = counts / counts.sum()
    return float(max(0.0, -(share * np.log(share)).sum()))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; NaN where there is no value, or one."""
    if not len(values):
        return float("nan"), float("nan")
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return float(np.mean(values)), error
