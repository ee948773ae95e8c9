"""The model that is evaluated: a diffusion model as its record says, or a left-to-right one.

A model without a diffusion record, or any with --attention causal, is left to right: row i - 1 predicts token i and
sees nothing later, so likelihoods are exact. As a diffusion model that is one of blocks of a single position, which
gives it the decoders, caches and batches of the others for generating. Not here: what is asked of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine import File
from ..errors import ModelFileError, OptionError
from ..hub.store import located
from ..loading import EMBEDDED, load
from ..model import Model
from ..options import GenerateOptions
from ..presets import record_in_force
from ..spec import DiffusionSpec
from ..text import Tokenizer
from .tasks import Task

LEFT_TO_RIGHT: Mapping[str, Any] = {"attention": "block_causal", "block_length": 1, "logit_shift": True}
_EVERY_TOKEN = 1 << 30  # steps, which are no more than there are tokens: those of the record are another decoder's
_LEFT_TO_RIGHT_SETTINGS = ("temperature", "top_p", "top_k")  # of a task's published ones, those that hold for it too


@dataclass(frozen=True)
class Subject:
    """exact: left to right. notices: sentences a user should see."""

    model: Model
    spec: DiffusionSpec
    exact: bool
    notices: tuple[str, ...] = ()

    def opening(self, text: str) -> list[int]:
        """The ids of a text that something follows; its begin or end token where there is no text."""
        tokenizer = self.model.tokenizer
        roles = (tokenizer.bos, tokenizer.eos, self.spec.mask_token)
        return tokenizer.encode(text) or [next(token for token in roles if token is not None)]

    def options(self, asked: GenerateOptions, task: Task) -> GenerateOptions:
        """What the caller asked for, then the task's published settings where they fit the model."""
        settings = dict(task.settings)
        if self.exact:
            settings = {name: value for name, value in settings.items() if name in _LEFT_TO_RIGHT_SETTINGS}
        elif self.spec.attention != "full" or asked.decoder not in (None, settings.get("decoder")):
            settings = {}
        given = {name: value for name, value in dataclasses.asdict(asked).items() if value is not None}
        return GenerateOptions(**{**settings, **given})


@contextlib.contextmanager
def open_subject(
    path: str | os.PathLike[str] | None, causal: bool = False, diffusion: str | None = None, **loading: Any
) -> Iterator[Subject]:
    """Load a GGUF file; None: the embedded model. causal: left to right, whatever its record says.

    loading   as in localdiff.load
    raises    ModelFileError, OptionError
    """
    with File.open(EMBEDDED if path is None else located(path)) as file:
        metadata = dict(file.metadata)
    spec = record_in_force(metadata, diffusion).spec
    exact = causal or spec is None or (spec.attention == "causal" and spec.logit_shift)
    if exact:
        diffusion = _left_to_right(metadata, spec, diffusion)
    with load(path, diffusion=diffusion, **loading) as model:
        if model.spec is None:
            raise ModelFileError(f"{model.path}: has no diffusion record")
        yield Subject(model, model.spec, exact, () if exact else model.notices)


def _left_to_right(metadata: Mapping[str, Any], spec: DiffusionSpec | None, diffusion: str | None) -> str:
    """The --diffusion text of a left-to-right model. Its mask is a token that it is never to write.

    diffusion   what the caller gave; its other values stay
    """
    if spec is not None:
        mask: int | None = spec.mask_token
    else:
        tokenizer = Tokenizer.from_gguf(metadata)
        roles = (tokenizer.mask, tokenizer.pad, tokenizer.bos)
        control = (token for token in range(tokenizer.vocab_size - 1, -1, -1) if tokenizer.is_special(token))
        ends = (tokenizer.eos, tokenizer.eot)
        mask = next((token for token in (*roles, *control) if token is not None and token not in ends), None)
    if mask is None:
        raise OptionError(
            "the vocabulary has no control token beside its end token, expected one that is never written and can "
            "stand for what is not known yet; give --diffusion mask=ID,shift=1,attn=block_causal,block=1"
        )
    values = {
        "mask": mask, "shift": 1, "attn": "block_causal", "block": 1, "decoder": "llada", "process": "absorbing",
        "steps": _EVERY_TOKEN,
    }  # fmt: skip
    kept = [part for part in (diffusion or "").split(",") if part and part.partition("=")[0].strip() not in values]
    return ",".join([*kept, *(f"{name}={value}" for name, value in values.items())])
