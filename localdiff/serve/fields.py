"""Fields of requests: those of GenerateOptions under their own names, and what OpenAI's and Ollama's become.

Bodies are checked by pydantic, strictly. A field that nobody here knows is refused by its name; those of OPENAI_NEUTRAL
may be given as long as they ask for nothing. Not here: what the values may be, which GenerateOptions says.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from ..options import GenerateOptions
from .refusals import Refused

# report_drift takes twice the memory and more than twice the time; samples is called n
_NOT_SERVED = ("report_drift", "samples")
_JSON = {  # the types of what is no plain value in Python
    "stop": str | list[str],
    "logit_bias": dict[str, float],
    "ban": list[str | int],
    "avoid": str | list[str],
    "only": list[str | int],
    "negative_prompt": str | list[int],
    "json_schema": dict[str, Any] | bool,  # these two themselves, never a path: nobody may name files of the server
    "grammar": str,
}
_HINTS = {**typing.get_type_hints(GenerateOptions), **{name: kind | None for name, kind in _JSON.items()}}
OPTIONS = {
    field.name: (_HINTS[field.name], None)
    for field in dataclasses.fields(GenerateOptions)
    if field.name not in _NOT_SERVED
}  # name -> (type, default), as pydantic's create_model takes them


class Body(BaseModel):
    """What all bodies have in common: strict types, numbers that are numbers, no field that is not known."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None

    def check_fields(self, neutral: Mapping[str, Collection[Any]] = {}) -> None:  # noqa: B006
        """Refuse fields that are not known; `neutral`: name -> values that ask for nothing."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name not in neutral:
                if value is None:
                    continue
                raise Refused(400, f"{name[:60]} is not known here; leave it out", name[:60], "unsupported_parameter")
            if neutral[name] and value not in neutral[name]:
                raise Refused(400, f"{name} is not offered here; leave it out", name, "unsupported_parameter")

    def decoding(self, **named: Any) -> GenerateOptions:
        """GenerateOptions of the fields that are options and of `named`, which win; None = not given."""
        given = {name: getattr(self, name) for name in OPTIONS if name in type(self).model_fields}
        if given.get("logit_bias") is not None:  # JSON's names are texts; digits are an id, as with OpenAI
            pairs = given["logit_bias"].items()
            given["logit_bias"] = {int(token) if token.isdecimal() else token: bias for token, bias in pairs}
        given = {**given, **named}
        return GenerateOptions(**{name: value for name, value in given.items() if value not in (None, [], {})})


def with_options(name: str, base: type[Body], without: Collection[str] = ()) -> Any:
    """A body with the fields of `base` and all options but `without`."""
    fields = {option: kind for option, kind in OPTIONS.items() if option not in without}
    own = {option: kind for option, kind in fields.items() if option not in base.model_fields}
    return create_model(name, __base__=base, **typing.cast(dict[str, Any], own))


# Fields of OpenAI's that are not offered: the values that ask for nothing. Empty: any value, it changes no text.
OPENAI_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "user": (), "metadata": (), "safety_identifier": (), "prompt_cache_key": (), "service_tier": ("auto", "default"),
    "store": (False,), "frequency_penalty": (0,), "presence_penalty": (0,), "best_of": (1,), "echo": (False,),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}  # fmt: skip
# The same for the options of Ollama's. num_ctx, num_thread and the like are about how it runs its models, not the text.
OLLAMA_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_ctx": (), "num_thread": (), "num_gpu": (), "num_batch": (), "main_gpu": (), "use_mmap": (), "numa": (),
    "num_keep": (), "repeat_last_n": (-1,), "presence_penalty": (0,), "tfs_z": (1, 1.0),
    "frequency_penalty": (0,), "mirostat": (0,), "mirostat_eta": (), "mirostat_tau": (), "min_p": (0,),
    "typical_p": (1, 1.0), "penalize_newline": (),
}  # fmt: skip
