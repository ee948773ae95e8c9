"""The one table of evaluation tasks: what each reads, what is done with its items, the settings of its publication.

A new data set is a reader (reading.py) and a row. Code is imported when a task runs, so that help stays fast. The
settings are those of GenerateOptions that the paper names for the task; they count for models with full attention where
the caller says nothing else, the others keep their own decoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PUBLISHED = "published"  # arXiv:2410.17891, evaluation of multiple choice
BOUND = "bound"


@dataclass(frozen=True)
class Task:
    """One task.

    place      module:class of what is done with the items
    reader     function of reading.py that gives the items, "" where the data are texts, or none
    source     where the data set and the protocol come from
    settings   of generation, as published
    metrics    of a filled hole, in the order of the table; the first is the headline
    draws      noise draws for each likelihood that is a bound; 0: the task generates instead
    word_steps generate with as many denoise steps as the hole has tokens
    """

    place: str
    reader: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    draws: int = 0
    word_steps: bool = False


EXACT = "exact, each token given those before it"  # in place of the source of nll where a model is left to right
_SAMPLED = {"decoder": "topk", "steps": 64, "temperature": 0.9}

TASKS: dict[str, Task] = {
    "nll": Task("likelihood:Likelihood", "", "bound: arXiv:2406.07524, in the form of arXiv:2502.09992", draws=8),
    "infill": Task(
        "filling:Filling",
        "stories",
        "the middle one of five sentences, as with ROCStories in arXiv:2410.17891",
        _SAMPLED,
        ("rougeL", "rouge1", "rouge2", "exact"),
    ),
    "lambada": Task(
        "filling:Filling",
        "last_words",
        "last word, its length known, arXiv:1606.06031 and 2410.17891",
        {"decoder": "topk", "temperature": 1.0},
        ("exact",),
        word_steps=True,
    ),
    "hellaswag": Task("choosing:Choosing", "hellaswag", "HellaSwag, arXiv:1905.07830", draws=32),
    "piqa": Task("choosing:Choosing", "choices", "PIQA, arXiv:1911.11641, and whatever has its form", draws=32),
    "gsm8k": Task(
        "answering:Answering",
        "problems",
        "GSM8K, arXiv:2110.14168 and 2410.17891",
        {"decoder": "topk", "steps": 64, "temperature": 0.0},
    ),
    "humaneval-infill": Task(
        "filling:Filling",
        "code_lines",
        "single-line infilling of HumanEval, arXiv:2207.14255",
        _SAMPLED,
        ("exact", "passed"),
    ),
    "unconditional": Task("writing:Writing", "", "generative perplexity and entropy against steps, arXiv:2410.17891"),
}


def load(place: str) -> Any:
    """The object of "module:name" within this package."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)
