"""Finding the settings that make a model fast on this machine without making its texts worse than a bound.

First the number of threads, by timing forward passes; then exact decoding, one token a step, as the reference; then,
for each block length, ever more tokens a step, until the bound is broken; then ever lower thresholds, above which even
more are written; then the caches. Texts are sampled as the model's record says. Worse means: the log-likelihood of a
token under the model itself (quality.own; or under a judge) falls by more than `bound` nats on average, or texts repeat
themselves more (distinct pairs of tokens below REPEATS of the reference's). Agreement with exact decoding at
temperature 0 is reported for what was chosen. When the time is over the best so far is the answer. Not here: where
profiles are kept (profiles.py), the terminal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .arithmetic import TEXT
from .cache.table import CACHES
from .decode.table import settings_for
from .devices import usable_processors
from .engine import Request
from .errors import OptionError
from .options import GenerateOptions
from .profiles import PRESETS, Profile, sampling
from .quality import agreement, distinct, judged, own

if TYPE_CHECKING:
    from .model import Model
    from .spec import DiffusionSpec

BOUND = 0.03  # nats a token
REPEATS = 0.75
PROMPT, ANSWER, SHORTEST = 16, 64, 8  # tokens
MOST_TEXTS, FEWEST_TEXTS, ALONE = 64, 4, 3  # ALONE: of them are made one at a time, for the seconds
SHARE = 0.1  # of the time: what exact decoding of the texts may take
DECODER = "spread"
BLOCKS = (64, 32, 16, 8)
PACES = (2, 3, 4, 5, 6, 8)  # tokens a step
THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)

Progress = Callable[[str, float], None]  # what is being done, seconds since the beginning


@dataclass(frozen=True)
class Measured:
    """One candidate: seconds and forward passes of a text made alone, nats a token, distinct pairs of tokens."""

    options: Mapping[str, Any]
    seconds: float
    forwards: float
    nats: float
    distinct: float


class _OutOfTime(Exception):
    def __init__(self, best: Measured) -> None:
        super().__init__()
        self.best = best


def tune(
    model: Model,
    *,
    seconds: float = 120,
    bound: float = BOUND,
    judge: Model | None = None,
    text: str = TEXT,
    progress: Progress = lambda what, spent: None,
) -> Profile:
    """Find the settings; takes about `seconds`, more where exact decoding of FEWEST_TEXTS short texts does.

    bound    nats per token that texts may be less likely
    judge    an autoregressive model of the same vocabulary, in place of the model itself
    text     where prompts are taken from
    raises   OptionError for models that cannot be tuned
    """
    if model.spec is None:
        raise OptionError(f"{model.path.name} has no diffusion record, so there is nothing to tune; give --diffusion")
    if model.spec.process == "uniform":
        raise OptionError(f"{model.path.name} is a model of random tokens, whose one decoder has nothing to tune")
    return _Search(model, model.spec, seconds, bound, judge, text, progress).run()


class _Search:
    def __init__(
        self,
        model: Model,
        spec: DiffusionSpec,
        seconds: float,
        bound: float,
        judge: Model | None,
        text: str,
        progress: Progress,
    ) -> None:
        self.model, self.spec, self.judge, self.bound = model, spec, judge, bound
        self.progress, self.budget, self.started = progress, seconds, time.perf_counter()
        self.sampling = sampling(spec)
        self.answer = min(ANSWER, max(1, model.canvas_limit // 2))
        length = min(PROMPT, model.canvas_limit - self.answer)
        tokens = model.tokenize(text)
        if not tokens:
            raise OptionError("the text to take prompts from is empty; give some text")
        starts = np.linspace(0, max(0, len(tokens) - length), MOST_TEXTS).astype(int)
        self.prompts = [tokens[at : at + length] for at in starts]

    def run(self) -> Profile:
        threads = self._threads()
        self.model.use_threads(threads)
        self._fit()
        reference = self._measure(PRESETS["exact"].options[""])
        best = reference
        try:
            for ladder in self._candidates():
                best = self._climbed(ladder, best, reference)
            if best is not reference:
                lower = [{**best.options, "threshold": threshold} for threshold in THRESHOLDS]
                best = self._climbed(lower, best, reference)
            for cache in self._caches(best.options):
                best = self._climbed([{**best.options, "cache": cache}], best, reference)
        except _OutOfTime as stopped:
            best = stopped.best
        self._say("agreement with exact decoding")
        same = agreement(self._greedy(best.options), self._greedy(reference.options))
        measured = {
            "seconds": round(best.seconds, 4),
            "exact_seconds": round(reference.seconds, 4),
            "forwards": round(best.forwards, 1),
            "exact_forwards": round(reference.forwards, 1),
            "nats": round(best.nats - reference.nats, 4),
            "distinct": round(best.distinct / reference.distinct, 3) if reference.distinct else 1.0,
            "agreement": round(same, 3),
            "answer_tokens": self.answer,
            "texts": len(self.prompts),
        }
        return Profile(dict(best.options), threads, measured)

    def _threads(self) -> int | None:
        """The number that makes a forward pass of a whole canvas fastest; None where that is all, given ones stay."""
        if self.model.threads is not None:
            return self.model.threads
        usable = usable_processors()
        length = len(self.prompts[0]) + self.answer
        rows = np.arange(length, dtype=np.int32)
        request = Request(np.full(length, self.spec.mask_token, np.int32), rows)
        fastest: dict[int, float] = {}
        for count in dict.fromkeys((usable, *(usable >> half for half in range(1, usable.bit_length())))):
            self._say(f"{count} threads")
            self.model.use_threads(count)
            times = []
            for _ in range(4):
                began = time.perf_counter()
                self.model.forward([request])
                times.append(time.perf_counter() - began)
            fastest[count] = min(times[1:])
        best = min(fastest, key=lambda count: fastest[count])
        return None if best == usable or fastest[best] > 0.95 * fastest[usable] else best

    def _fit(self) -> None:
        """As many texts as exact decoding can make in its share of the time; shorter ones where they are too few."""
        self._say("exact decoding")
        began = time.perf_counter()
        self.model.generate(self.prompts[0], **self._options(PRESETS["exact"].options[""], 0))
        each = time.perf_counter() - began
        share = SHARE * self.budget / each
        if share < FEWEST_TEXTS:
            self.answer = max(min(SHORTEST, self.answer), int(self.answer * share / FEWEST_TEXTS))
        count = min(MOST_TEXTS, max(FEWEST_TEXTS, int(share)))
        self.prompts = [self.prompts[index * MOST_TEXTS // count] for index in range(count)]

    def _candidates(self) -> list[list[dict[str, Any]]]:
        """Ever more tokens a step for each block length; with block-causal attention for the one it was made for."""
        fixed, found = self.spec.attention == "block_causal", []
        fitting = [length for length in BLOCKS if length <= max(self.answer, BLOCKS[-1])]
        for length in [self.spec.block_length] if fixed else fitting:
            block = {} if fixed else {"block_length": length}
            paces = {max(1, round(length / pace)): float(pace) for pace in PACES[::-1] if pace <= length}
            common = {"decoder": DECODER, "threshold": 1.0, **block}
            found.append([{**common, "pace": pace} for _, pace in sorted(paces.items(), reverse=True)])
        return found

    def _caches(self, options: Mapping[str, Any]) -> list[str]:
        """The approximating ones that go with the options."""
        found = []
        for cache in CACHES.keys() - {"exact", "block"}:
            try:
                settings_for(GenerateOptions(**{**options, "cache": cache}), self.spec, self.answer)
            except OptionError:
                continue
            found.append(cache)
        return sorted(found)

    def _measure(self, options: Mapping[str, Any]) -> Measured:
        self._say(" ".join(str(value) for value in options.values()))
        alone = [
            self.model.generate(prompt, **self._options(options, index))
            for index, prompt in enumerate(self.prompts[:ALONE])
        ]
        made = alone + self.model.generate(self.prompts[ALONE:], **self._options(options, ALONE))
        answers = [each.tokens for each in made]
        if self.judge is None:
            nats = own(self.model, self.prompts, answers)
        else:
            nats = judged(self.judge, self.prompts, answers)
        return Measured(
            dict(options),
            statistics.median(each.seconds for each in alone),
            statistics.mean(each.nfe for each in made),
            sum(nats) / max(1, sum(map(len, answers))),
            distinct(answers, 2),
        )

    def _climbed(self, ladder: Sequence[Mapping[str, Any]], best: Measured, reference: Measured) -> Measured:
        """The best after trying ever faster settings, until one breaks the bound; less repetition may still follow."""
        for options in ladder:
            if time.perf_counter() - self.started > self.budget:
                raise _OutOfTime(best)
            found = self._measure(options)
            if found.nats > reference.nats + self.bound:
                break
            if found.distinct >= REPEATS * reference.distinct and found.seconds < best.seconds:
                best = found
        return best

    def _greedy(self, options: Mapping[str, Any]) -> list[list[int]]:
        made = self.model.generate(self.prompts, **{**self._options(options, 0), "temperature": 0.0})
        return [each.tokens for each in made]

    def _options(self, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return {"max_new_tokens": self.answer, "seed": seed, **self.sampling, **options}

    def _say(self, what: str) -> None:
        self.progress(what, time.perf_counter() - self.started)
