"""Names of models: "diffullama", "diffullama:Q8_0", "owner/repository", "owner/repository:Q4_K_M".

A short name is a row below: a repository that is known to hold GGUF files of a diffusion model. After the colon stands
the type that files of such repositories carry in their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import OptionError

SHORT = {
    "diffullama": "QuantFactory/diffullama-GGUF",
}
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "F16", "F32")  # where no type is named

_NAME = re.compile(r"(?P<repository>[\w.-]+(/[\w.-]+)?)(:(?P<type>[\w.-]+))?")
_TYPE = re.compile(
    r"[.-](?P<type>(I?Q\d\w*|MXFP4\w*|BF16|F16|F32))(?:-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.gguf$", re.I
)
_PART = re.compile(r"-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.I)


@dataclass(frozen=True)
class Name:
    """repository is "owner/name"; type in upper case, None where none was named."""

    repository: str
    type: str | None

    @staticmethod
    def parse(text: str) -> Name:
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:
            raise OptionError(
                f"'{text}' is no name of a model, expected NAME or OWNER/NAME, with :TYPE where it matters"
            )
        repository = match["repository"]
        if "/" not in repository and repository.lower() not in SHORT:
            known = ", ".join(SHORT)
            raise OptionError(f"there is no short name '{repository}', expected OWNER/NAME of a hub or one of: {known}")
        kind = match["type"].upper() if match["type"] else None
        return Name(SHORT.get(repository.lower(), repository), kind)


def type_of(file: str) -> str | None:
    """The type in the name of a GGUF file, in upper case."""
    match = _TYPE.search(file)
    return match["type"].upper() if match else None


def choose(files: list[str], name: Name) -> list[str]:
    """The GGUF file that is meant among those of a repository; all parts of it where it is split.

    raises   OptionError where there is none, or several that the name does not tell apart
    """
    ggufs = sorted(file for file in files if file.lower().endswith(".gguf") and "mmproj" not in file.lower())
    if not ggufs:
        raise OptionError(
            f"{name.repository} holds no GGUF file; download the checkpoint and run localdiff convert on it"
        )
    models: dict[str, list[str]] = {}
    for file in ggufs:
        models.setdefault(_PART.sub("", file), []).append(file)
    types = {stem: type_of(parts[0]) for stem, parts in models.items()}
    if name.type is not None:
        fitting = [stem for stem, kind in types.items() if kind == name.type]
    elif len(models) == 1:
        fitting = list(models)
    else:
        present = [kind for kind in PREFERRED if kind in types.values()][:1]
        fitting = [stem for stem, kind in types.items() if kind in present]
    if len(fitting) != 1:
        found = ", ".join(sorted({kind or file for file, kind in types.items()}))
        wanted = f"{len(fitting) or 'no'} files of type {name.type}" if name.type else "several files"
        raise OptionError(
            f"{name.repository} has {wanted}, expected one; it has {found}: name one as {name.repository}:TYPE"
        )
    parts = models[fitting[0]]
    match = _PART.search(parts[0])
    if match and len(parts) != int(match["parts"]):
        raise OptionError(f"{name.repository} has {len(parts)} of the {int(match['parts'])} parts of {parts[0]}")
    return parts
