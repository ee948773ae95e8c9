"""Text read while training goes on, through `datasets`: for more of it than one wants to tokenise first.

A source is a file (.txt, .jsonl, .parquet) or `hub:NAME` or `hub:NAME:CONFIG`, a data set of the Hugging Face hub with
a column "text". Each of several processes takes every so-many-th document. Documents are joined with the end token and
cut into sequences; a window of sequences is filled and shuffled at a time. The state - where the window began in the
source, the tokens left over from before it, the place in the window - continues exactly where a run stopped, after
the documents of one window are read again. An exhausted source begins anew. Not here: noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import LocaldiffError, OptionError
from .batch import Batch
from .data import tokenize
from .reading import read_documents

HUB = "hub:"


class StreamedData:
    """Sequences of `length` tokens of one process.

    window          sequences that are shuffled among themselves
    rank, world     this process among all
    """

    def __init__(
        self, sources: Sequence[str], tokenizer: Any, end_token: int, length: int, window: int, seed: int,
        rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.length = length
        self._documents = open_sources(sources, rank, world)
        self._tokenizer = tokenizer
        self._end = end_token
        self._window = window
        self._seed = seed
        self._rank = rank
        self._filled = np.zeros((0, length), np.int64)
        self._left = np.zeros(0, np.int64)  # tokens not yet in a window
        self._number = -1  # of the window
        self._place = 0
        self._rounds = 0  # through the source
        self._begun: dict[str, Any] = {}
        self._reading: Iterator[np.ndarray] | None = None

    def batch(self, first: int, count: int) -> Batch:
        """The next `count` sequences; which they are does not depend on `first`."""
        found = []
        for _ in range(count):
            if self._place == len(self._filled):
                self._fill()
            found.append(self._filled[self._place])
            self._place += 1
        return Batch(torch.from_numpy(np.stack(found)))

    def state(self) -> dict[str, Any]:
        return {**self._begun, "place": self._place} if self._begun else {}

    def restore(self, state: dict[str, Any]) -> None:
        if not state:
            return
        self._documents.load_state_dict(state["source"])
        self._left = np.asarray(state["left"], np.int64)
        self._number, self._rounds = state["number"] - 1, state["rounds"]
        self._fill()
        self._place = state["place"]

    def _fill(self) -> None:
        self._begun = {
            "source": self._documents.state_dict(),
            "left": self._left.tolist(),
            "number": self._number + 1,
            "rounds": self._rounds,
        }
        wanted = self._window * self.length
        parts, have, empty = [self._left], len(self._left), 0
        while have < wanted:
            if self._reading is None:
                self._reading = self._read()
            document = next(self._reading, None)
            if document is None:
                self._reading = None
                self._rounds += 1
                empty += 1
                if empty > 1:
                    raise OptionError("--data: the sources hold no text for this process")
                continue
            empty = 0
            parts.append(document)
            have += len(document)
        tokens = np.concatenate(parts)
        self._number += 1
        self._left = tokens[wanted:]
        random = np.random.Generator(np.random.Philox(key=[self._seed, self._number * 4096 + self._rank]))
        self._filled = tokens[:wanted].reshape(self._window, self.length)[random.permutation(self._window)]
        self._place = 0

    def _read(self) -> Iterator[np.ndarray]:
        """The tokens of the documents that follow, up to the end of the source."""
        for example in self._documents:
            text = example["text"].strip() if isinstance(example["text"], str) else ""
            if text:
                for ids in tokenize(iter([text]), self._tokenizer, self._end):
                    yield np.array(ids, np.int64)


def open_sources(sources: Sequence[str], rank: int, world: int) -> Any:
    """One `datasets.IterableDataset` over all sources, one after the other, with this process's documents."""
    try:
        import datasets
        from datasets.distributed import split_dataset_by_node
    except ImportError as error:
        raise LocaldiffError(
            f"--stream needs the package '{error.name}', which is not installed; run: pip install 'localdiff[train]'"
        ) from None
    datasets.disable_progress_bars()
    found = [_open(datasets, source).select_columns(["text"]) for source in sources]
    whole = found[0] if len(found) == 1 else datasets.concatenate_datasets(found)
    return split_dataset_by_node(whole, rank, world) if world > 1 else whole


def _documents(path: str) -> Iterator[dict[str, str]]:
    for text in read_documents(Path(path)):
        yield {"text": text}


def _open(datasets: Any, source: str) -> Any:
    if source.startswith(HUB):
        name, _, config = source[len(HUB) :].partition(":")
        try:
            return datasets.load_dataset(name, config or None, split="train", streaming=True)
        except Exception as error:  # datasets raises many kinds
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise OptionError(f"--data {source}: the data set cannot be opened ({first})") from None
    if not Path(source).is_file():
        raise OptionError(f"--data {source}: no such file")
    if Path(source).suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=source, split="train", streaming=True)
    return datasets.IterableDataset.from_generator(_documents, gen_kwargs={"path": source})
