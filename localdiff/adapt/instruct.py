"""Prompts and answers -> training sequences in which only the answer is learnt.

A line of a .jsonl file is {"prompt", "answer"}, {"question", "answer"}, {"instruction", "output"} or {"messages"},
whose last message is the assistant's. The prompt is encoded by the runtime's own code, so that training sees the tokens
that `run` will send. The layout is

    prompt [separator] answer end pad pad ...

and an example that does not fit is left out and counted. Padding after an answer is either scored, so that a diffusion
model learns to end its canvas with it, or neither seen nor scored (Method.pads). Not here: noise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..convert.vocabulary import load_tokenizer, vocabulary_metadata
from ..errors import OptionError
from ..text import ChatTemplate, Tokenizer
from .base import Base
from .batch import Batch
from .reading import read_lines

# names of the two fields, in the order in which they are looked for
FIELDS = (("prompt", "answer"), ("question", "answer"), ("instruction", "output"), ("source", "target"))
RENDER_AT_ONCE = 32  # conversations handed to the process that renders templates


@dataclass(frozen=True)
class Layout:
    """How examples are written.

    chat        by the base's chat template; else prompt, `separator` and answer follow each other
    separator   id, None for none
    end, pad    ids
    begin       the runtime puts bos before a plain prompt (it does where the rows are shifted)
    length      tokens per sequence
    """

    chat: bool
    separator: int | None
    end: int
    pad: int
    begin: bool
    length: int


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    answer: list[int]  # without the end token


def runtime_tokenizer(base: Base) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer and chat template that the converted model will have."""
    with tempfile.TemporaryDirectory() as folder:
        base.save_tokenizer(Path(folder))
        files = load_tokenizer(Path(folder))
        metadata, _ = vocabulary_metadata(files, base.model.config.to_dict(), base.vocabulary)
    tokenizer = Tokenizer.from_gguf(metadata)
    return tokenizer, ChatTemplate.from_gguf(metadata, tokenizer)


def read_examples(path: Path) -> Iterator[list[dict[str, str]]]:
    """Each example of a file as messages, the last one the assistant's."""
    for number, line in read_lines(path, (".jsonl",)):
        if not line.strip():
            continue
        try:
            yield _messages(json.loads(line))
        except (ValueError, TypeError) as error:
            what = f" ({error})" if isinstance(error, OptionError) else ""
            raise OptionError(
                f"--data {path}: line {number} is no prompt and answer{what}; expected a JSON object with the texts "
                '"prompt" and "answer", or "messages" that end with one of the role assistant'
            ) from None


def _messages(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in fields:
        messages = [{"role": str(each["role"]), "content": str(each["content"])} for each in fields["messages"]]
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise TypeError
        return messages
    for prompt, answer in FIELDS:
        if isinstance(fields.get(prompt), str) and isinstance(fields.get(answer), str):
            extra = fields.get("input")  # of the layout of Alpaca
            question = f"{fields[prompt]}\n{extra}" if isinstance(extra, str) and extra else fields[prompt]
            return [{"role": "user", "content": question}, {"role": "assistant", "content": fields[answer]}]
    raise TypeError


def encode_examples(
    conversations: Sequence[Sequence[Mapping[str, str]]], layout: Layout, tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> Iterator[Example]:  # fmt: skip
    """Token ids of prompts and answers; special tokens spelled in them stay text."""
    for first in range(0, len(conversations), RENDER_AT_ONCE):
        some = conversations[first : first + RENDER_AT_ONCE]
        if layout.chat:
            assert template is not None
            prompts = [rendered.tokens for rendered in template.render_all([each[:-1] for each in some])]
        else:
            begin = True if layout.begin and tokenizer.bos is not None else None
            texts = ["\n".join(message["content"] for message in each[:-1]) for each in some]
            prompts = [tokenizer.encode(text, add_bos=begin) for text in texts]
            if layout.separator is not None:
                prompts = [[*prompt, layout.separator] for prompt in prompts]
        for prompt, each in zip(prompts, some, strict=True):
            # "" first: the answer is not the beginning of a text
            yield Example(prompt, tokenizer.encode_parts(["", each[-1]["content"]], add_bos=False))


class InstructData:
    """Examples in an order set by the seed; every epoch has a fresh one.

    pads_scored   padding counts as part of the answer
    left_out      examples that did not fit
    """

    def __init__(self, examples: Sequence[Example], layout: Layout, seed: int, pads_scored: bool) -> None:
        self.length = layout.length
        rows = [_row(example, layout) for example in examples]
        fitting = [row for row in rows if row is not None]
        self.left_out = len(rows) - len(fitting)
        if not fitting:
            raise OptionError(
                f"--data: none of {len(rows)} examples fits into {layout.length} tokens; give a larger --length"
            )
        self.tokens = np.stack([tokens for tokens, _, _ in fitting])
        self._prompts = np.array([prompt for _, prompt, _ in fitting])
        self._ends = np.array([end for _, _, end in fitting])
        self._pads_scored = pads_scored
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    @property
    def per_epoch(self) -> int:
        return len(self.tokens)

    def batch(self, first: int, count: int) -> Batch:
        return self.rows([self._place(index) for index in range(first, first + count)])

    def rows(self, places: Sequence[int]) -> Batch:
        """The examples at these places of the file."""
        chosen = np.asarray(places)
        columns = np.arange(self.length)[None]
        given = torch.from_numpy(columns < self._prompts[chosen, None])
        valid = None if self._pads_scored else torch.from_numpy(columns < self._ends[chosen, None])
        return Batch(torch.from_numpy(self.tokens[chosen]), given, valid)

    def _place(self, index: int) -> int:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._order = random.permutation(self.per_epoch)
            self._epoch = epoch
        return int(self._order[position])


def _row(example: Example, layout: Layout) -> tuple[np.ndarray, int, int] | None:
    """Tokens int64 [length], tokens of the prompt, tokens up to the end token; None where they do not fit."""
    ids = [*example.prompt, *example.answer, layout.end]
    if len(ids) > layout.length:
        return None
    row = np.full(layout.length, layout.pad, np.int64)
    row[: len(ids)] = ids
    return row, len(example.prompt), len(ids)
