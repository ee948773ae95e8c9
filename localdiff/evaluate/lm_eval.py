"""The model "localdiff" of the lm-eval harness (package lm-eval, extra [eval]): its tasks on our engine.

    python -m localdiff.evaluate.lm_eval --model localdiff --model_args model=model.gguf,draws=32 --tasks piqa

That is lm-eval's own command line, which knows our model once this module is imported; so does lm_eval.simple_evaluate.
A log-likelihood is minus the bound of a diffusion model, with `draws` noise draws, and exact for a left-to-right one.
It counts as greedy where generating as many tokens at temperature 0 gives the continuation. The noise of a text hangs
on the text alone, so equal requests get equal answers. Not here: chat templates and several devices.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..errors import LocaldiffError, OptionError
from ..options import GenerateOptions
from .choosing import passage_of
from .protocol import batched
from .scorer import Passage, Scorer
from .subject import open_subject

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    lacking = (
        f"the lm-eval adapter needs the package '{missing.name}', which is not installed; run: pip install "
        "'localdiff[eval]'"
    )
    if __name__ == "__main__":
        sys.exit(f"localdiff: {lacking}")
    raise LocaldiffError(lacking) from None

NEW_TOKENS = 256
_GENERATION = {field.name for field in dataclasses.fields(GenerateOptions)} - {"seed", "max_new_tokens"}
_OF_HARNESS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}  # gen_kwargs -> options


@register_model("localdiff")
class LocaldiffLM(LM):  # type: ignore[misc]
    """Arguments, as --model_args names them:

    model       GGUF file; None: the embedded model
    draws, seed of the bound; seed of generation too
    diffusion   the record or changes to it; preset, or values joined by + instead of commas: mask=811+shift=1
    attention   "causal": left to right
    greedy      False: do not find out whether continuations are greedy, which costs a pass for every token
    max_gen_toks  where a task does not say it
    threads, isa, math   as in localdiff.load; others are settings of GenerateOptions
    batch_size, max_batch_size, device   given by the harness whether its user says so or not; the engine has its own
    """

    def __init__(
        self,
        model: str | None = None,
        draws: int = 32,
        seed: int = 0,
        diffusion: str | None = None,
        attention: str | None = None,
        greedy: bool = True,
        max_gen_toks: int = NEW_TOKENS,
        threads: int | None = None,
        isa: str | None = None,
        math: str = "auto",
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(settings) - _GENERATION)
        if unknown:
            known = ", ".join(sorted(_GENERATION))
            raise OptionError(f"--model_args: unknown name '{unknown[0]}', expected one of {known}")
        if attention not in (None, "causal"):
            raise OptionError(f"attention is '{attention}', expected causal, or leave it out")
        self._stack = ExitStack()
        record = None if diffusion is None else diffusion.replace("+", ",")
        self._subject = self._stack.enter_context(
            open_subject(model, attention == "causal", record, threads=threads, isa=isa, math=math)
        )
        self._scorer = Scorer(self._subject)
        self._draws, self._seed, self._greedy, self._new_tokens = draws, seed, greedy, max_gen_toks
        self._options = GenerateOptions(seed=seed, **settings)

    @property
    def tokenizer_name(self) -> str:
        return str(self._subject.model.name)

    def close(self) -> None:
        self._stack.close()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood or its bound, whether greedy) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        passages = []
        for place, (context, continuation) in enumerate(pairs):
            passage = passage_of(self._subject, context, continuation, zlib.crc32((context + continuation).encode()))
            if passage is None:
                raise OptionError(
                    f"request {place} has a continuation of {len(continuation)} characters, expected one that is not "
                    f"empty and fits the canvas of {self._subject.model.canvas_limit} tokens"
                )
            passages.append(passage)
        found = self._scorer.likelihoods(passages, self._draws, self._seed) if passages else []
        results = [(-each.nats, is_greedy) for each, is_greedy in zip(found, self._are_greedy(passages), strict=True)]
        for pair, result in zip(pairs, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The sum over a text that is cut into canvases; each but the first begins with the last token before it."""
        model = self._subject.model
        room, results = model.canvas_limit - 1, []
        for request in requests:
            (text,) = request.args
            start, rest = self._subject.opening("")[:1], model.tokenizer.encode(text, add_bos=False)
            whole = np.array(start + rest, np.int32)
            cuts = range(0, len(rest), room)
            passages = [Passage(whole[at : at + room + 1], 1, zlib.crc32(whole[at:].tobytes())) for at in cuts]
            found = self._scorer.likelihoods(passages, self._draws, self._seed) if passages else []
            results.append(-sum(each.nats for each in found))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each (context, settings), cut before the first of its `until`; too long contexts lose their
        beginning."""
        model = self._subject.model
        asked = []
        for context, settings in (request.args for request in requests):
            wanted = int(settings.get("max_gen_toks", settings.get("max_new_tokens", self._new_tokens)))
            count = min(wanted, model.canvas_limit - 1)
            given = self._subject.opening(context)[-(model.canvas_limit - count) :]
            values = {ours: settings[name] for name, ours in _OF_HARNESS.items() if name in settings}
            if settings.get("do_sample") is False:
                values = {"temperature": 0.0}
            options = dataclasses.replace(self._options, max_new_tokens=count, **values)
            asked.append((given, options, len(given) + count))
        texts = [each.text for each in batched(model, asked)]
        results = [
            _until(text, request.args[1].get("until")) for text, request in zip(texts, requests, strict=True)
        ]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, result)
        return results

    def _are_greedy(self, passages: Sequence[Passage]) -> list[bool]:
        if not self._greedy:
            return [False for _ in passages]
        asked = []
        for each in passages:
            count = len(each.tokens) - each.given
            options = dataclasses.replace(self._options, max_new_tokens=count, temperature=0.0)
            asked.append((each.tokens[: each.given].tolist(), options, len(each.tokens)))
        made = batched(self._subject.model, asked)
        return [one.tokens == each.tokens[each.given :].tolist() for one, each in zip(made, passages, strict=True)]


def _until(text: str, until: str | Sequence[str] | None) -> str:
    ends = [until] if isinstance(until, str) else list(until or ())
    return text[: min([len(text), *(text.index(end) for end in ends if end and end in text)])]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
