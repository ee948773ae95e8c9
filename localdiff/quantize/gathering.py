"""`gather_imatrix`: an importance matrix from texts, gathered in the states that a model meets while it denoises.

A diffusion model reads canvases of which any share is masked, not text that ends where it predicts. So a canvas of text
is noised as in training: t uniform in (0, 1], every token masked with probability t; then it goes through the model
with the attention of its record, and the head reads the rows that would be scored. causal=True gives what is gathered
for ordinary models instead: whole text, causal attention, every row. Not here: the file's layout (imatrix.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..adapt.reading import read_documents
from ..atomic import check_target
from ..engine import EngineModel, File, Int32, Request, Session
from ..errors import ModelFileError, OptionError
from ..presets import record_in_force
from ..spec import DiffusionSpec
from ..text import Tokenizer
from .imatrix import Sums, write_imatrix

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is done, canvases done, canvases at most
LENGTH, CHUNKS = 256, 256  # defaults


@dataclass(frozen=True)
class GatherReport:
    """What was written."""

    path: Path
    entries: int  # tensors with statistics
    chunks: int  # canvases that were run
    length: int  # tokens of each
    masked: int  # of all their tokens
    notices: tuple[str, ...]  # sentences a user should see


def gather_imatrix(
    model: Path,
    out: Path,
    *,
    data: Sequence[Path],
    causal: bool = False,
    length: int | None = None,
    chunks: int = CHUNKS,
    seed: int = 0,
    diffusion: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GatherReport:
    """Run the GGUF file `model` over texts and write the mean squares of what its matrices read, atomically.

    data       .txt or .jsonl files, alone or with .xz, .gz or .bz2; canvases are taken from them in turn
    causal     unmasked text under causal attention, as for ordinary models
    length     tokens of a canvas; None = LENGTH, or what the model can hold
    chunks     canvases at most
    seed       of the noise; the same seed, files and length give the same file, whatever the threads
    diffusion  a preset or `mask=ID,shift=0|1,...`: the record, or changes to it
    raises     ModelFileError, OptionError; `out` is then as it was before
    """
    model, out, data = Path(model), Path(out), [Path(each) for each in data]
    _check(model, out, data, chunks, seed)
    with ExitStack() as stack:
        file = stack.enter_context(File.open(model))
        metadata = file.metadata
        found = record_in_force(metadata, diffusion)
        if found.spec is None and not causal:
            raise OptionError(
                f"{model}: has no diffusion record, so its mask token is unknown; give --diffusion mask=ID,shift=0|1 "
                "or a preset, or --causal for an ordinary model"
            )
        tokenizer = Tokenizer.from_gguf(metadata)
        engine = stack.enter_context(EngineModel(file, threads=threads))
        spec = None if causal else found.spec
        if spec is not None:
            spec.check_vocabulary(engine.info.vocab)
        length = _length(length, (spec.canvas_max if spec else 0) or engine.info.context_length)
        session = stack.enter_context(engine.session(slot_length=length, threads=threads))
        session.observe()
        done, masked = 0, 0
        for tokens in canvases(data, tokenizer, length):
            if done == chunks:
                break
            request = Request(tokens, np.arange(length, dtype=np.int32), attention="causal")
            if spec is not None:
                request = noised(tokens, spec, seed, done, given=int(tokenizer.add_bos))
                masked += len(request.score)
            session.propose([request])
            done += 1
            if progress is not None:
                progress(f"canvas {done}", done, chunks)
        if done == 0:
            raise OptionError(
                f"--data: the text is too short for one canvas of {length} tokens; give more text or a smaller --length"
            )
        sums = _sums(model, session)
    notices = found.notices + ((f"the text was enough for {done} canvases of {chunks}",) if done < chunks else ())
    write_imatrix(out, str(metadata["general.architecture"]), sums, [path.name for path in data], done, length)
    return GatherReport(out, len(sums), done, length, masked, notices)


def noised(tokens: Int32, spec: DiffusionSpec, seed: int, index: int, given: int = 0) -> Request:
    """A canvas of text as the model meets it in training.

    tokens   int32 [length]
    index    of the canvas: with the seed the key of its noise
    given    how many tokens at the start are never masked
    """
    random = np.random.Generator(np.random.Philox(key=[seed, index]))
    t = 1 - random.random()  # in (0, 1]
    hit = random.random(len(tokens)) < t
    hit[:given] = False
    return Request(
        np.where(hit, np.int32(spec.mask_token), tokens),
        np.flatnonzero(hit).astype(np.int32),
        attention=spec.attention,
        block_length=spec.block_length,
        logit_shift=spec.logit_shift,
    )


def _check(model: Path, out: Path, data: Sequence[Path], chunks: int, seed: int) -> None:
    if not model.is_file():
        raise ModelFileError(f"{model}: no such file")
    if not data:
        raise OptionError("--data is missing, expected files with text such as the model is meant for")
    if chunks < 1:
        raise OptionError(f"chunks is {chunks}, expected at least 1")
    if not 0 <= seed < 2**64:
        raise OptionError(f"seed is {seed}, expected 0 to 2^64 - 1")
    check_target(out)
    for path in (model, *data):
        if path.is_file() and out.exists() and out.samefile(path):
            raise OptionError(f"{out}: is read, so it cannot be the result; choose another name")


def _length(length: int | None, limit: int) -> int:
    if length is None:
        return min(LENGTH, limit)
    if not 2 <= length <= limit:
        raise OptionError(f"length is {length}, expected 2 to {limit}, the longest canvas of the model")
    return length


def canvases(data: Sequence[Path], tokenizer: Tokenizer, length: int) -> Iterator[Int32]:
    """Canvases of the files in turn, until the last of them has none left."""
    return in_turn([_canvases_of(path, tokenizer, length) for path in data])


def in_turn(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """One of each stream, round after round, until the last of them has none left."""
    going = list(streams)
    while going:
        for stream in list(going):
            try:
                yield next(stream)
            except StopIteration:
                going.remove(stream)


def _canvases_of(path: Path, tokenizer: Tokenizer, length: int) -> Iterator[Int32]:
    """The documents of a file, an end token after each, cut into canvases; bos at the start where the model wants it.

    What is left at the end is too short for a canvas and left out.
    """
    start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    end = [tokenizer.eos] if tokenizer.eos is not None else []
    own = length - len(start)
    rest: list[int] = []
    for document in read_documents(path):
        rest += tokenizer.encode(document, add_bos=False) + end
        whole = len(rest) // own * own
        for at in range(0, whole, own):
            yield np.array(start + rest[at : at + own], np.int32)
        del rest[:whole]


def _sums(model: Path, session: Session) -> dict[str, Sums]:
    sums = {name: Sums(each.squares, each.rows) for name, each in session.observations().items()}
    for name, each in sums.items():
        if not np.isfinite(each.squares).all():
            raise ModelFileError(f"{model}: the inputs of {name} are not finite; its weights are damaged or overflow")
    return {name: each for name, each in sums.items() if each.rows.any()}
