"""What the converter must know about a model family, as data: tensor names, shapes, and the metadata keys.

A family file holds a table of rows and one function from config.json to sizes and keys; matching.py and driver.py do
the rest. Source names are those of plain HF checkpoints without wrapper prefixes (matching.py), target names
llama.cpp's, and so are the layouts: what its converter permutes, stacks or cuts is permuted, stacked or cut here.
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


MAX_REAL = 3.4e38  # what a GGUF file holds as float32
MAX_LAYERS = 1024  # far beyond any model; keeps a damaged config.json from listing millions of missing tensors
MAX_EXPERTS = 4096


@dataclass(frozen=True)
class Row:
    """One tensor: `{i}` stands for the layer, in names of sizes too, where layers differ; a tensor that has no values
    there is absent. `{e}` stands for the expert, 0 to sizes["experts"] - 1: the tensors of
    all experts become one, with the expert as its slowest axis."""

    source: str
    target: str
    shape: tuple[str, ...]  # in the checkpoint, as names of Sizes
    change: Change | None = None
    optional: bool = False  # carried where present
    result: tuple[str, ...] = ()  # the shape that `change` makes, where it is another
    also: tuple[str, ...] = ()  # other names under which checkpoints hold the same tensor
    exact: bool = False  # float32, whatever type is asked for
    since: str = ""  # name of a size: the first layer that has the tensor
    until: str = ""  # name of a size: the first layer that has it no more


@dataclass(frozen=True)
class Description:
    """A model as its config.json describes it."""

    sizes: Sizes  # includes "layers"
    keys: dict[str, Any]  # GGUF metadata without the "{arch}." prefix
    tied: bool  # the head is the token embedding
    extra: dict[str, FloatArray] = field(default_factory=dict)  # target name -> tensor that no checkpoint holds
    facts: dict[str, Any] = field(default_factory=dict)  # GGUF metadata under its full names
    preset: str | None = None  # in place of the one that Family names


@dataclass(frozen=True)
class Family:
    model_types: Mapping[str, str | None]  # of config.json -> row of presets.TABLE; None = no diffusion model by itself
    arch: str  # general.architecture
    embedding: tuple[str, ...]  # source names of the token embedding, [vocab, dim]
    rows: tuple[Row, ...]
    layer_rows: tuple[Row, ...]
    dropped: tuple[str, ...]  # regular expressions of source names that hold no weights
    describe: Callable[[Config, Mapping[str, tuple[int, ...]]], Description]  # config and source shapes
    architectures: Mapping[str, str | None] = field(default_factory=dict)  # the same by class, which wins
    heads: tuple[str, ...] = ("lm_head.weight",)  # source names of the output matrix, [vocab, dim]
    prefixes: tuple[str, ...] = ()  # cut off source names like those of wrappers
    section: str = ""  # of config.json: where the fields of the text model are


def transpose(tensor: FloatArray, sizes: Sizes) -> FloatArray:
    return np.ascontiguousarray(tensor.T)


def linear(source: str, target: str, out: str, into: str) -> tuple[Row, Row]:
    """A matrix [out, into] and its bias."""
    return Row(f"{source}.weight", f"{target}.weight", (out, into)), Row(f"{source}.bias", f"{target}.bias", (out,))


def layer_norm(source: str, target: str) -> tuple[Row, Row]:
    """Weight and bias, which the oldest checkpoints call gamma and beta."""
    return (
        Row(f"{source}.weight", f"{target}.weight", ("dim",), also=(f"{source}.gamma",)),
        Row(f"{source}.bias", f"{target}.bias", ("dim",), also=(f"{source}.beta",)),
    )


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
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 < found <= MAX_REAL:
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected a number above 0")
        return float(found)

    def flag(self, name: str, absent: bool) -> bool:
        return bool(self.value(name, absent))

    def ids(self, name: str) -> tuple[int, ...]:
        """A field that holds a token id or a list of them; () where it is absent, and -1 stands for none."""
        found = self.value(name, [])
        listed = found if isinstance(found, list) else [found]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in listed):
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected a token id or a list of them")
        return tuple(value for value in listed if value >= 0)

    def expect(self, name: str, allowed: tuple[Any, ...], absent: Any) -> None:
        """Refuse a checkpoint whose field asks for something this family's GGUF files cannot say."""
        found = self.value(name, absent)
        if found not in allowed:
            known = ", ".join(str(value) for value in allowed)
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, which is not supported; supported: {known}")

    def section(self, name: str) -> Config | None:
        """A nested object; None where it is absent or false."""
        found = self.value(name)
        if found is None or found is False:
            return None
        if not isinstance(found, dict):
            raise ModelFileError(f"{self._origin}: {name} is {found!r}, expected an object")
        return Config(found, f"{self._origin}: {name}")

    def refuse(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._origin}: {what}")
