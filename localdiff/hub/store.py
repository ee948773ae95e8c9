"""The models on this machine: MODELS/OWNER/NAME/FILE.gguf with FILE.gguf.json beside it, which says where it came from.

MODELS is $LOCALDIFF_MODELS, else localdiff/models in the user's data folder. The record is written last, so a model
without one is not there. Only what has a record is listed and removed: other files are none of ours. Nothing here needs
a network.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..atomic import atomic_file
from ..errors import OptionError
from .names import Name, type_of

_RECORD = ".json"


@dataclass(frozen=True)
class Stored:
    """One model.

    files     names of its parts, the first is the one to open
    commit    of the repository it was taken from
    sha256    of each file
    """

    repository: str
    commit: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    bytes: int

    @property
    def name(self) -> str:
        kind = type_of(self.files[0])
        return f"{self.repository}:{kind}" if kind else self.repository

    @property
    def path(self) -> Path:
        return folder(self.repository) / self.files[0]


def models_folder() -> Path:
    named = os.environ.get("LOCALDIFF_MODELS")
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "localdiff" / "models"


def folder(repository: str) -> Path:
    return models_folder().joinpath(*repository.split("/"))


def stored() -> list[Stored]:
    """All models, by name."""
    found = []
    for record in models_folder().glob("*/*/**/*.gguf" + _RECORD):
        try:
            values = json.loads(record.read_text())
            model = Stored(**{**values, "files": tuple(values["files"]), "sha256": tuple(values["sha256"])})
            if all((folder(model.repository) / file).is_file() for file in model.files):
                found.append(model)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # not one of ours, or being written
    return sorted(found, key=lambda model: model.name.lower())


def keep(model: Stored) -> None:
    """Write the record of a model whose files are in place."""
    with atomic_file(Path(f"{model.path}{_RECORD}")) as temporary:
        temporary.write_text(json.dumps(asdict(model), indent=1) + "\n")


def find(text: str) -> Path | None:
    """The file of the model that is called so, None where there is none; OptionError where several are."""
    try:
        name = Name.parse(text)
    except OptionError:
        return None
    fitting = _called(name)
    if len(fitting) > 1:
        raise OptionError(f"{text} could be {' or '.join(model.name for model in fitting)}; give the whole name")
    return fitting[0].path if fitting else None


def remove(text: str) -> list[Stored]:
    """Remove the models that are called so, of all types where none is named; OptionError where there is none."""
    name = Name.parse(text)
    gone = _called(name)
    if not gone:
        raise OptionError(f"{text} is not on this machine; localdiff list shows what is")
    for model in gone:
        Path(f"{model.path}{_RECORD}").unlink(missing_ok=True)  # first: what has no record is not there
        for file in model.files:
            (folder(model.repository) / file).unlink(missing_ok=True)
    return gone


def _called(name: Name) -> list[Stored]:
    same = [model for model in stored() if model.repository.lower() == name.repository.lower()]
    return [model for model in same if name.type in (None, type_of(model.files[0]))]


def located(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names: itself where it exists, else that of a model on this machine."""
    where = Path(path)
    if where.exists() or not isinstance(path, str) or path.endswith(".gguf"):
        return where
    return find(path) or where
