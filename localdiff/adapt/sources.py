"""Which data a run reads: packed text, streamed text, or prompts and answers, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import OptionError
from . import methods
from .base import Base
from .batch import Batch
from .data import PackedData, fingerprint, held_out_sequences, load_tokens
from .instruct import InstructData, Layout, encode_examples, read_examples, runtime_tokenizer
from .options import AdaptOptions
from .processes import Processes
from .stream import StreamedData
from .trainer import Data


@dataclass(frozen=True)
class Source:
    """
    name          equal for equal training data
    description   for the user
    held_out      the held-out data, read when called
    stream        the data again where its place has to be kept
    """

    data: Data
    name: str
    description: str
    held_out: Callable[[], Batch]
    stream: StreamedData | None = None


def open_source(
    options: AdaptOptions, base: Base, length: int, shift: bool, output: Path, processes: Processes
) -> Source:
    if options.instruct:
        return _instruct(options, base, length, shift)
    tokens_folder = output / "tokens"

    def held_out() -> Batch:
        tokens, _ = _tokens(options.eval_data, base, tokens_folder, processes)
        return held_out_sequences(tokens, length, options.eval_sequences)

    if options.stream:
        stream = StreamedData(
            options.data, base.tokenizer, base.end_token, length, options.stream, options.seed,
            processes.rank, processes.world,
        )  # fmt: skip
        return Source(stream, " ".join(options.data), f"a stream of sequences of {length}", held_out, stream)
    tokens, name = _tokens(options.data, base, tokens_folder, processes)
    packed = PackedData(tokens, length, options.seed)
    return Source(packed, name, f"{len(tokens):,} tokens, {packed.per_epoch} sequences of {length}", held_out)


def _tokens(files: Sequence[str], base: Base, folder: Path, processes: Processes) -> tuple[np.ndarray, str]:
    """The first process tokenises, the others wait for the file."""
    paths = [Path(file) for file in files]
    if not processes.main:
        processes.wait()
    try:
        return load_tokens(paths, base.tokenizer, base.end_token, folder)
    finally:
        if processes.main:
            processes.wait()


def _instruct(options: AdaptOptions, base: Base, length: int, shift: bool) -> Source:
    tokenizer, template = runtime_tokenizer(base)
    if options.template == "chat" and template is None:
        raise OptionError("--template is chat, but the base has no chat template; use --template plain")
    chat = template is not None and options.template != "plain" and options.sep_token is None
    tokens = instruct_tokens(options, base)
    pad = tokens["pad_token"]
    assert pad is not None
    layout = Layout(chat, None if chat else tokens["sep_token"], base.end_token, pad, shift, length)

    def read(files: Sequence[str], seed: int) -> InstructData:
        conversations = [example for file in files for example in read_examples(Path(file))]
        examples = list(encode_examples(conversations, layout, tokenizer, template))
        return InstructData(examples, layout, seed, methods.TABLE[options.method].pads)

    data = read(options.data, options.seed)

    def held_out() -> Batch:
        found = read(options.eval_data, 0)
        count = min(options.eval_sequences, found.per_epoch)
        return found.rows(sorted({int(place) for place in np.linspace(0, found.per_epoch - 1, count)}))

    left_out = f" ({data.left_out} longer ones left out)" if data.left_out else ""
    name = fingerprint([Path(file) for file in options.data], base.tokenizer, base.end_token)
    return Source(data, name, f"{data.per_epoch} examples of {length} tokens{left_out}", held_out)


def instruct_tokens(options: AdaptOptions, base: Base) -> dict[str, int | None]:
    """The ids of the padding and of the separator of prompts and answers; nothing where the data are running text."""
    if not options.instruct:
        return {}
    found: dict[str, int | None] = {}
    for role, text in (("pad_token", options.pad_token), ("sep_token", options.sep_token)):
        token = base.token(role) if text is None else base.tokenizer.token_to_id(text)
        if text is not None and token is None:
            flag = "--" + role.replace("_", "-")
            raise OptionError(f"{flag} is '{text}', which is no token of the base; give one of its vocabulary")
        found[role] = token
    if options.sep_token is None and not base.family.masked:
        found["sep_token"] = None
    if found["pad_token"] is None:
        found["pad_token"] = base.end_token
    return found
