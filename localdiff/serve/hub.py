"""The hub: the models that are served, by name, each with its scheduler.

A model is loaded once. Names are exact, but for Ollama's ":latest"; a request that names none gets the only model there
is. Not here: HTTP shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import Request

from ..errors import OptionError
from .answers import Answer
from .refusals import Refused
from .scheduler import Limits, Scheduler

if TYPE_CHECKING:
    from ..canvas import Hole
    from ..model import Model
    from ..options import GenerateOptions
    from ..page import Page


@dataclass(frozen=True)
class Served:
    """One model and the scheduler that runs it; created: when it was loaded, seconds since 1970."""

    name: str
    model: Model
    scheduler: Scheduler
    created: int

    async def compose(self, make: Callable[[], list[Page]]) -> list[Page]:
        """Pages, made beside the event loop: tokenizers and templates take their time."""
        pages = await to_thread.run_sync(make)
        if any(page.drafts for page in pages):
            raise OptionError(
                "length_beam compares texts that are made side by side, which is not served; leave it out"
            )
        return pages

    def prompt(self, prompt: str | Sequence[Any], options: GenerateOptions) -> list[Page]:
        """The pages of a prompt or a list of them; a length head is asked on the scheduler's thread."""
        model, scheduler = self.model, self.scheduler
        return model.compose(prompt, options, lambda tokens: scheduler.ask(lambda: model.length_logits(tokens)))

    def infill(self, text: str | Sequence[str | Hole], options: GenerateOptions) -> list[Page]:
        """The pages of an infill; holes of open length are measured on the scheduler's thread."""
        model, scheduler = self.model, self.scheduler
        return model.compose_infill(text, options, lambda requests: scheduler.ask(lambda: model.propose(requests)))

    def answer(self, pages: Sequence[Page], events: bool = False, every: bool = False) -> Answer:
        """Send the pages on their way; Busy where the queue is full."""
        return Answer(self.scheduler, pages, events, every)


class Hub:
    """texts: how many texts one request may ask for."""

    def __init__(self, models: Sequence[tuple[str, Model]], limits: Limits, texts: int = 64) -> None:
        self.models: dict[str, Served] = {}
        self.texts = texts
        self.started = time.time()
        for name, model in models:
            if name in self.models:
                raise OptionError(f"--model: the name {name} is given twice")
            if model.spec is None:
                raise OptionError(f"{name} has no diffusion record, so it cannot be served; give --diffusion")
            model.tokenizer, model.arithmetic  # noqa: B018  made now, not when the first request waits
            self.models[name] = Served(name, model, Scheduler(model, limits), int(time.time()))

    def find(self, name: str | None) -> Served:
        """The model of a request; Refused where there is none of this name."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        found = self.models.get(name or "") or self.models.get((name or "").removesuffix(":latest"))
        if found is None:
            known = ", ".join(self.models)
            what = "model is missing" if name is None else f"there is no model {name!r} here"
            raise Refused(404 if name else 400, f"{what}; this server has {known}", "model", "model_not_found")
        return found

    def check_texts(self, count: int, param: str) -> None:
        if count > self.texts:
            raise Refused(400, f"{param} asks for {count} texts, but a request may have {self.texts}", param)

    def close(self) -> None:
        """End all schedulers; the models can be closed afterwards."""
        for served in self.models.values():
            served.scheduler.close()


def hub_of(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub
