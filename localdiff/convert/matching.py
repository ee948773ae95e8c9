"""From the tensors of a checkpoint to those of the file, by the table of their family; nothing is read here.

Names are matched whole, after the prefixes of wrappers and of the family are cut off. Every tensor must have its row
and every row its tensor; what is missing, unused or of another shape is refused at once and all together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import ModelFileError
from .family import Change, Description, Family, FloatArray, Row, Sizes
from .tensors import TensorSource


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file. Each part is read when it is written; several are the slices of the first axis."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Callable[[], FloatArray], ...]
    exact: bool = False  # float32, whatever type is asked for


# Prefixes of wrappers: PEFT, distributed training, DiffuGPT and DiffuLLaMA, HF's task classes.
_WRAPPERS = ("base_model.", "module.", "denoise_model.", "transformer.", "model.")


def plain_name(family: Family, name: str) -> str:
    """A name without the prefixes of wrappers and of the family, cut off in any order."""
    prefixes = (*_WRAPPERS, *family.prefixes)
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name[len(prefix) :]
    return name


def plain_names(family: Family, tensors: Mapping[str, TensorSource], source: Path) -> dict[str, TensorSource]:
    """The tensors by their plain names, without those that hold no weights."""
    plain: dict[str, TensorSource] = {}
    for full, tensor in tensors.items():
        name = plain_name(family, full)
        if any(re.fullmatch(pattern, name) for pattern in family.dropped):
            continue
        if name in plain:
            raise ModelFileError(f"{source}: {plain[name].name} and {tensor.name} are the same tensor, expected one")
        plain[name] = tensor
    return plain


def match(
    family: Family, description: Description, tensors: Mapping[str, TensorSource], source: Path
) -> tuple[list[FileTensor], list[str]]:
    """The tensors of the file, token embedding first, and notices. `tensors` as plain_names() gives them.

    Raises ModelFileError with every tensor that is missing, unused or of another shape.
    """
    found = _Matching(f"those of architecture '{family.arch}'", dict(description.sizes), dict(tensors))
    found.embedding_and_head(family, description.tied)
    for row in family.rows:
        found.take(row)
    for layer in range(description.sizes["layers"]):
        for row in family.layer_rows:
            if found.sizes.get(row.since, 0) <= layer < found.sizes.get(row.until, layer + 1):
                found.take(row, layer)
    for name, array in description.extra.items():
        found.tensors.append(FileTensor(name, array.shape, (partial(_same, array),)))
    found.refuse_problems(source)
    return found.tensors, found.notices


def match_rows(
    what: str, rows: Sequence[Row], sizes: Sizes, tensors: Mapping[str, TensorSource], source: Path
) -> list[FileTensor]:
    """The tensors of the file by a table of rows alone; what: whose they are to be. Raises as match() does."""
    found = _Matching(what, sizes, dict(tensors))
    for row in rows:
        found.take(row)
    found.refuse_problems(source)
    return found.tensors


class _Matching:
    """What is matched so far, what is left, and what is wrong."""

    def __init__(self, what: str, sizes: Sizes, left: dict[str, TensorSource]) -> None:
        self.sizes = sizes
        self.tensors: list[FileTensor] = []
        self.notices: list[str] = []
        self._what = what
        self._left = left
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def take(self, row: Row, layer: int | None = None) -> None:
        if 0 in (self._extents(row.shape, layer) or ()):
            return
        experts = range(self.sizes["experts"]) if "{e}" in row.source else [None]
        taken = [self._one(row, layer, expert) for expert in experts]
        parts = [part for part in taken if part is not None]
        if len(parts) < len(taken):
            return
        shape = self._extents(row.result or row.shape, layer)
        if shape is None:
            return
        if "{e}" in row.source:
            shape = (len(parts), *shape)
        loads = tuple(_changing(part, row.change, self.sizes) for part in parts)
        self.tensors.append(FileTensor(row.target.format(i=layer), shape, loads, row.exact))

    def _one(self, row: Row, layer: int | None, expert: int | None) -> TensorSource | None:
        names = [name.format(i=layer, e=expert) for name in (row.source, *row.also)]
        same = [tensor for name in names if (tensor := self._left.pop(name, None)) is not None]
        if not same:
            if not row.optional:
                self._missing.append(names[0])
            return None
        expected = self._extents(row.shape, layer)
        for tensor in same:
            if expected is not None and tensor.shape != expected:
                self._wrong.append(f"{tensor.name}: shape {list(tensor.shape)}, expected {list(expected)}")
        _refuse_different(same, "tensor")
        return same[0]

    def _extents(self, names: tuple[str, ...], layer: int | None) -> tuple[int, ...] | None:
        """None where one is not known, because the embedding is missing."""
        names = tuple(name.format(i=layer) for name in names)
        return tuple(self.sizes[name] for name in names) if all(name in self.sizes for name in names) else None

    def embedding_and_head(self, family: Family, tied: bool) -> None:
        """Token embedding, and the head where it differs from it.

        Wrappers store the same tensor under several names or only under the head's; the values decide.
        """
        embeddings, heads = (
            [tensor for name in names if (tensor := self._left.pop(name, None)) is not None]
            for names in (family.embedding, family.heads)
        )
        _refuse_different(embeddings, "token embedding")
        _refuse_different(heads, "head")
        if not embeddings and tied:
            embeddings, heads = heads, []
        if not embeddings:
            self._missing.append(family.embedding[0])
        if not heads and not tied:
            self._missing.append(family.heads[0])
        if embeddings and heads and _equal(embeddings[0], heads[0]):
            heads = []
        elif embeddings and heads and tied:
            self.notices.append(
                f"{heads[0].name} differs from the embedding although the configuration ties them; both are kept"
            )
        named = [(tensor, "token_embd.weight") for tensor in embeddings[:1]]
        for tensor, target in named + [(tensor, "output.weight") for tensor in heads[:1]]:
            self.sizes.setdefault("vocab", tensor.shape[0])
            expected = (self.sizes["vocab"], self.sizes["dim"])
            if tensor.shape != expected:
                self._wrong.append(f"{tensor.name}: shape {list(tensor.shape)}, expected {list(expected)}")
            self.tensors.append(FileTensor(target, tensor.shape, (tensor.load,)))

    def refuse_problems(self, source: Path) -> None:
        left = [tensor.name for tensor in self._left.values()]
        problems = [
            f"{what} ({len(listed)}): {join.join(listed)}"
            for what, listed, join in (
                ("expected and missing", self._missing, ", "),
                ("present and unused", left, ", "),
                ("of another shape", self._wrong, "; "),
            )
            if listed
        ]
        if problems:
            lines = "\n  ".join(problems)
            raise ModelFileError(f"{source}: its tensors are not {self._what}\n  {lines}")


def _refuse_different(tensors: list[TensorSource], what: str) -> None:
    for other in tensors[1:]:
        if not _equal(tensors[0], other):
            raise ModelFileError(f"{tensors[0].name} and {other.name} differ, expected one {what}")


def _equal(a: TensorSource, b: TensorSource) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.load(), b.load()))


def _changing(tensor: TensorSource, change: Change | None, sizes: Sizes) -> Callable[[], FloatArray]:
    return tensor.load if change is None else lambda: change(tensor.load(), sizes)


def _same(array: FloatArray) -> FloatArray:
    return array
