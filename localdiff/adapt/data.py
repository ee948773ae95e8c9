"""Text files -> packed token sequences for training.

All documents of all files are joined with the end token into one array, which is cut into sequences of `length` tokens;
nothing is padded. The array is kept in the output folder and memory-mapped, so that a later run does not tokenise
again. Which sequence comes when is a function of (seed, index) alone: resuming needs no reader state. Not here: noise,
batching on a device, downloads, reading of files (reading.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import atomic_file
from ..errors import OptionError, counted
from .batch import Batch
from .reading import read_documents

TOKENIZE_AT_ONCE = 256  # documents handed to the tokenizer in one call


def tokenize(documents: Iterator[str], tokenizer: Any, end_token: int) -> Iterator[list[int]]:
    """Yield the ids of each document with `end_token` after it; special tokens spelled in the text stay text."""
    tokenizer.encode_special_tokens = True
    try:
        chunk: list[str] = []
        for document in documents:
            chunk.append(document)
            if len(chunk) == TOKENIZE_AT_ONCE:
                yield from (item.ids + [end_token] for item in tokenizer.encode_batch(chunk, add_special_tokens=False))
                chunk.clear()
        yield from (item.ids + [end_token] for item in tokenizer.encode_batch(chunk, add_special_tokens=False))
    finally:
        tokenizer.encode_special_tokens = False


def fingerprint(paths: Sequence[Path], tokenizer: Any, end_token: int) -> str:
    """A name for "these bytes through this tokenizer"; equal names mean equal token arrays."""
    digests: dict[Path, bytes] = {}
    for path in paths:
        if not path.is_file():
            raise OptionError(f"--data {path}: no such file")
        if path not in digests:
            content = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
            digests[path] = content.digest()
    whole = hashlib.sha256(f"{end_token} {tokenizer.to_str()}".encode())
    for path in paths:
        whole.update(digests[path])
    return whole.hexdigest()[:24]


def load_tokens(paths: Sequence[Path], tokenizer: Any, end_token: int, folder: Path) -> tuple[np.ndarray, str]:
    """The joined tokens of all files, memory-mapped from `folder`, and their fingerprint."""
    name = fingerprint(paths, tokenizer, end_token)
    target = folder / f"{name}.npy"
    if not target.is_file():
        vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
        dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        once: dict[Path, np.ndarray] = {}
        for path in paths:
            if path not in once:
                rows = [np.array(ids, dtype) for ids in tokenize(read_documents(path), tokenizer, end_token)]
                if not rows:
                    raise OptionError(f"--data {path}: the file holds no text")
                once[path] = np.concatenate(rows)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as part, open(part, "wb") as file:
            np.save(file, np.concatenate([once[path] for path in paths]))
    return np.load(target, mmap_mode="r"), name


class PackedData:
    """Sequences of `length` tokens cut from one token array, in an order set by the seed.

    Every epoch cuts the array at a fresh offset and visits the sequences in a fresh order.
    """

    def __init__(self, tokens: np.ndarray, length: int, seed: int):
        if len(tokens) < length:
            raise OptionError(
                f"--data: {counted(len(tokens), 'token')} of text, too short for one sequence of {length}; "
                "give more text or a smaller --length"
            )
        self._tokens = tokens
        self._seed = seed
        self.length = length
        self.per_epoch = max(1, len(tokens) // length - 1)  # one sequence less, to leave room for the offset
        self._epoch = -1
        self._offset = 0
        self._order = np.zeros(0, np.int64)

    def batch(self, first: int, count: int) -> Batch:
        """Sequences first .. first + count - 1 of the endless stream."""
        return Batch(torch.from_numpy(np.stack([self._sequence(index) for index in range(first, first + count)])))

    def _sequence(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._offset = int(random.integers(len(self._tokens) - self.per_epoch * self.length + 1))
            self._order = random.permutation(self.per_epoch)
            self._epoch = epoch
        start = self._offset + int(self._order[position]) * self.length
        return self._tokens[start : start + self.length].astype(np.int64)


def held_out_sequences(tokens: np.ndarray, length: int, count: int) -> Batch:
    """`count` sequences (fewer where the text is short) spread evenly over the held-out tokens."""
    available = len(tokens) // length
    if available == 0:
        raise OptionError(
            f"--eval-data: {counted(len(tokens), 'token')} of text, too short for one sequence of {length}; "
            "give more text"
        )
    chosen = np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64))
    sequences = np.stack([tokens[row * length : (row + 1) * length] for row in chosen]).astype(np.int64)
    return Batch(torch.from_numpy(sequences))
