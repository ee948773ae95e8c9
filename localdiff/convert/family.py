"""What the converter must know about a model family, as data: tensor names, shapes, and the metadata keys.

A family file holds a table of rows and one function from config.json to sizes and keys; the driver does the rest.
Source names are those of plain HF checkpoints without wrapper prefixes (checkpoint.py), target names llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError

FloatArray = npt.NDArray[np.float32]
Sizes = dict[str, int]  # the extents that shapes in the tables refer to by name
Change = Callable[[FloatArray, Sizes], FloatArray]


MAX_LAYERS = 1024  # far beyond any model; keeps a damaged config.json from listing millions of missing tensors


@dataclass(frozen=True)
class Row:
    """One tensor: `{i}` stands for the layer."""

    source: str
    target: str
    shape: tuple[str, ...]  # in the checkpoint, as names of Sizes
    change: Change | None = None
    optional: bool = False  # carried where present


@dataclass(frozen=True)
class Description:
    """A model as its config.json describes it."""

    sizes: Sizes  # includes "layers"
    keys: dict[str, Any]  # GGUF metadata without the "{arch}." prefix
    tied: bool  # the head is the token embedding
    extra: dict[str, FloatArray] = field(default_factory=dict)  # target name -> tensor that no checkpoint holds


@dataclass(frozen=True)
class Family:
    model_type: str  # of config.json
    arch: str  # general.architecture
    embedding: tuple[str, ...]  # source names of the token embedding, [vocab, dim]
    rows: tuple[Row, ...]
    layer_rows: tuple[Row, ...]
    dropped: tuple[str, ...]  # regular expressions of source names that hold no weights
    describe: Callable[[Config, Mapping[str, tuple[int, ...]]], Description]  # config and source shapes


def transpose(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return np.ascontiguousarray(tensor.T)


class Config:
    """config.json with sentences for what is absent or not what a family can honour."""

    def __init__(self, fields: Mapping[str, Any], origin: str) -> None:
        self._fields = fields
        self._origin = origin

    def value(self, name: str, absent: Any = None) -> Any:
        """The field, or `absent` where it is missing or null."""
        found = self._fields.get(name)
        return absent if found is None else found

    def integer(self, name: str, absent: int | None = None, most: int = 1 << 30) -> int:
        found = self.value(name, absent)
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= most:
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected a whole number from 1 to {most}")
        return found

    def real(self, name: str, absent: float | None = None) -> float:
        found = self.value(name, absent)
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 < found < float("inf"):
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected a number above 0")
        return float(found)

    def flag(self, name: str, absent: bool) -> bool:
        return bool(self.value(name, absent))

    def expect(self, name: str, allowed: tuple[Any, ...], absent: Any) -> None:
        """Refuse a checkpoint whose field asks for something this family's GGUF files cannot say."""
        found = self.value(name, absent)
        if found not in allowed:
            known = ", ".join(str(value) for value in allowed)
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, which is not supported; supported: {known}")

    def section(self, name: str) -> Config | None:
        """A nested object, None where absent."""
        found = self.value(name)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected an object")
        return Config(found, f"{self._origin}: {name}")

    def refuse(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._origin}: {what}")
