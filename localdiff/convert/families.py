"""The table of model families that `convert` reads, by the model_type of config.json."""

from __future__ import annotations

from ..errors import ModelFileError
from . import gpt2, llama, qwen2
from .family import Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in (gpt2.FAMILY, llama.FAMILY, qwen2.FAMILY)}


def find_family(model_type: object, origin: str) -> Family:
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        found = "absent" if model_type is None else repr(model_type)
        raise ModelFileError(
            f"{origin}: model_type is {found}, which is not supported; supported: {', '.join(FAMILIES)}"
        )
    return family
