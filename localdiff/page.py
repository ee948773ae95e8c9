"""Page: how the canvas of a job reads as text, while it settles and when it is done.

Text is cut at the first stop token. While positions are masked, only what stands before the first of them is settled:
later tokens never change either, but the text around them is not known yet. Not here: time, events, the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from .canvas import COMMITTED, GIVEN, MASKED, Canvas, Int32
from .decode.loop import Job, first_stop

if TYPE_CHECKING:
    from .text import TextStream, Tokenizer


@dataclass(frozen=True)
class Span:
    """Neighbouring positions in the same state: "given", "settled", "fresh" (written in the last step) or "masked".

    text is empty where masked; tokens is the number of positions.
    """

    kind: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Page:
    """The reading of one canvas.

    start       where the text begins: at the answer, or at the first token where holes are filled
    continues   the text at `start` stands after other text
    pad_token   stripped from the end of an answer, None where the model has none
    parts       where holes are filled: the given texts, word for word, and the holes as first positions (start, end)
    passes, seconds   spent before the first denoise step, to choose the lengths of holes
    """

    tokenizer: Tokenizer
    job: Job
    start: int
    continues: bool
    pad_token: int | None
    parts: tuple[str | tuple[int, int], ...] = ()
    passes: int = 0
    seconds: float = 0.0

    def settled_end(self, canvas: Canvas) -> int:
        """Where the text that is known so far ends."""
        end = first_stop(canvas, self.job.answer, self.job.stop_tokens)
        masked = canvas.masked
        return min(end, int(masked[0])) if len(masked) else end

    def settled_text(self, canvas: Canvas, ended: bool) -> str:
        """The text that will not change any more; unless it has ended, that is the decoder's word.

        The final text begins with it: pads and halves of characters at its end wait until something follows them.
        """
        end = self.settled_end(canvas)
        end = end if ended else min(end, self.job.decoder.settled(canvas))
        if self.parts:
            text = "".join(text for _, text in self._pieces(canvas, end, whole=False))
        else:
            while end > self.start and canvas.tokens[end - 1] == self.pad_token:
                end -= 1
            text = self._decode(canvas.tokens[self.start : max(self.start, end)], self.continues)
        return text if ended else text.rstrip("\ufffd")

    def made(self, canvas: Canvas) -> list[int]:
        """The tokens made so far, without the stop token and without pads at the end of an answer."""
        end = self.settled_end(canvas)
        tokens: list[int] = canvas.tokens[:end][canvas.state[:end] == COMMITTED].tolist()
        while tokens and not self.parts and tokens[-1] == self.pad_token:
            tokens.pop()
        return tokens

    def pieces(self, canvas: Canvas) -> list[tuple[bool, str]]:
        """The text as (whether it was made, text): one piece for an answer, else the given parts and the holes."""
        if not self.parts:
            return [(True, self._decode(self.made(canvas), self.continues))]
        return self._pieces(canvas, self.settled_end(canvas), whole=True)

    def _pieces(self, canvas: Canvas, end: int, whole: bool) -> list[tuple[bool, str]]:
        """The given parts and the holes as far as they stand before `end`; unless whole, nothing after a cut hole."""
        pieces: list[tuple[bool, str]] = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append((False, part))
                continue
            first, last = np.searchsorted(canvas.origin, part).tolist()
            text = self._decode(canvas.tokens[first : min(last, end)], part[0] > self.start or self.continues)
            # in most vocabularies the space before a word belongs to its token, so one too many may be there
            spaced = bool(pieces) and pieces[-1][1].endswith(" ")
            pieces.append((True, text.removeprefix(" ") if spaced else text))
            if last > end and not whole:
                break
        return pieces

    def cells(self, canvas: Canvas, fresh: Int32) -> list[tuple[str, str]]:
        """(kind, text) of each position from `start` to the first stop token, kinds as in Span."""
        from .text import TextStream

        kinds = {GIVEN: "given", MASKED: "masked", COMMITTED: "settled"}
        just_written = set(fresh.tolist())
        cells: list[tuple[str, str]] = []
        stream: TextStream | None = None  # of the run of known tokens that is being read
        for position in range(self.start, first_stop(canvas, self.job.answer, self.job.stop_tokens)):
            kind = "fresh" if position in just_written else kinds[int(canvas.state[position])]
            if kind == "masked":
                cells = _finished(cells, stream)
                stream, text = None, ""
            else:
                stream = stream or TextStream(self.tokenizer, continues=position > self.start or self.continues)
                text = stream.push([int(canvas.tokens[position])])
            cells.append((kind, text))
        return _finished(cells, stream)

    def spans(self, canvas: Canvas, fresh: Int32) -> list[Span]:
        """The text from `start` to the first stop token as runs of equal state; `fresh` was written just now."""
        runs = [(kind, list(run)) for kind, run in groupby(self.cells(canvas, fresh), key=itemgetter(0))]
        return [Span(kind, "".join(text for _, text in run), len(run)) for kind, run in runs]

    def _decode(self, tokens: Sequence[int] | Int32, continues: bool) -> str:
        return self.tokenizer.decode([int(token) for token in tokens], continues=continues)


def _finished(cells: list[tuple[str, str]], stream: TextStream | None) -> list[tuple[str, str]]:
    """`cells` with the bytes that the stream still holds back at the end of the last one."""
    if stream is None:
        return cells
    kind, text = cells[-1]
    return [*cells[:-1], (kind, text + stream.finish())]
