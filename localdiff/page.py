"""Page: how the canvas of a job reads as text, while it settles and when it is done.

Text is cut at the first stop token or stop string. While positions are masked, only what stands before the first of
them is settled: later tokens never change either, but the text around them is not known yet. Not here: time, events,
the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import COMMITTED, GIVEN, MASKED, Canvas, Int32
from .decode.decoder import NO_POSITIONS
from .decode.loop import Job, first_stop
from .details import Alternative, Marks, TokenDetail
from .stops import StopStrings

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
class Gap:
    """Where a hole is: the positions [start, end) of the first canvas.

    before, after   given characters at its edges: of tokens that are partly given and partly the hole's
    """

    start: int
    end: int
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Page:
    """The reading of one canvas.

    start       where the text begins: at the answer, or at the first token where holes are filled
    continues   the text at `start` stands after other text
    pad_token   stripped from the end of an answer, None where the model has none
    parts       where holes are filled: the given texts, word for word, and the holes
    passes, seconds   spent before the first denoise step, to choose the lengths and the edges of holes
    stops       texts that end an answer
    wished      the controls (decode/controls.py) that the caller gave, for people
    drafts      the same text in other lengths: the one whose tokens are surest when they are written counts
    tail        given tokens at the end of the canvas that are no text
    """

    tokenizer: Tokenizer
    job: Job
    start: int
    continues: bool
    pad_token: int | None
    parts: tuple[str | Gap, ...] = ()
    passes: int = 0
    seconds: float = 0.0
    stops: StopStrings = field(default_factory=StopStrings)
    wished: Mapping[str, Any] = field(default_factory=dict)
    drafts: tuple[Page, ...] = ()
    tail: int = 0

    def settled_end(self, canvas: Canvas) -> int:
        """Where the text that is known so far ends."""
        end, masked = self._text_end(canvas), canvas.masked
        return min(end, int(masked[0])) if len(masked) else end

    def _text_end(self, canvas: Canvas) -> int:
        """Where the text ends as far as it is written, masks counted in."""
        return min(first_stop(canvas, self.job.answer, self.job.stop_tokens), len(canvas) - self.tail)

    def settled_text(self, canvas: Canvas, settled: int, ended: bool) -> str:
        """The text that will not change any more; tokens before the position `settled` stay as they are.

        The final text begins with it: pads, halves of characters and what may become a stop string wait at its end
        until something follows them.
        """
        end = min(self.settled_end(canvas), settled)
        if self.parts:
            text = "".join(text for _, text in self._pieces(canvas, end, whole=False))
        else:
            while end > self.start and canvas.tokens[end - 1] == self.pad_token:
                end -= 1
            text = self._decode(canvas.tokens[self.start : max(self.start, end)], self.continues)
        return self.stops.cut(text) if ended else self.stops.sure(text.rstrip("\ufffd"))

    def stopped(self, canvas: Canvas, settled: int) -> bool:
        """Whether the text holds a stop string that stays: committed tokens before the position `settled` do."""
        if not self.stops.strings:
            return False
        end = max(self.start, min(self.settled_end(canvas), settled))
        return self.stops.find(self._decode(canvas.tokens[self.start : end], self.continues)) >= 0

    def until_stop(self) -> Page:
        """The page of a job that ends at the stop strings."""
        return replace(self, job=replace(self.job, ended=self.stopped))

    def made(self, canvas: Canvas) -> list[int]:
        """The tokens made so far, without the stop token or string and without pads at the end of an answer."""
        return [int(canvas.tokens[position]) for position in self._made_at(canvas)]

    def _made_at(self, canvas: Canvas) -> list[int]:
        """Where the tokens stand that made() gives. One that begins before a stop string counts as made."""
        end = self.settled_end(canvas)
        positions: list[int] = np.flatnonzero(canvas.state[:end] == COMMITTED).tolist()
        while positions and not self.parts and canvas.tokens[positions[-1]] == self.pad_token:
            positions.pop()
        if not self.stops.strings:
            return positions
        end = self.start + len(self.cells(canvas, NO_POSITIONS))
        return [position for position in positions if position < end]

    def pieces(self, canvas: Canvas) -> list[tuple[bool, str]]:
        """The text as (whether it was made, text): one piece for an answer, else the given parts and the holes."""
        if not self.parts:
            return [(True, self.stops.cut(self._decode(self.made(canvas), self.continues)))]
        return self._pieces(canvas, self.settled_end(canvas), whole=True)

    def _pieces(self, canvas: Canvas, end: int, whole: bool) -> list[tuple[bool, str]]:
        """The given parts and the holes as far as they stand before `end`; unless whole, nothing after a cut hole."""
        pieces: list[tuple[bool, str]] = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append((False, part))
                continue
            first, last = np.searchsorted(canvas.origin, (part.start, part.end)).tolist()
            continues = part.start > self.start or self.continues
            text = self._decode(canvas.tokens[first : min(last, end)], continues)
            opening = part.before if continues or not self.tokenizer.space_prefix else part.before.removeprefix(" ")
            text = text.removeprefix(opening).removesuffix(part.after if last <= end else "")
            # in most vocabularies the space before a word belongs to its token, so one too many may be there
            spaced = bool(pieces) and pieces[-1][1].endswith(" ")
            pieces.append((True, text.removeprefix(" ") if spaced else text))
            if last > end and not whole:
                break
        return pieces

    def cells(self, canvas: Canvas, fresh: Int32) -> list[tuple[str, str]]:
        """(kind, text) of each position from `start` to the end of the text, kinds as in Span. It ends at the first
        stop token, or at a stop string before which nothing is masked."""
        kinds = {GIVEN: "given", MASKED: "masked", COMMITTED: "settled"}
        just_written = set(fresh.tolist())
        cells: list[tuple[str, str]] = []
        stream: TextStream | None = None  # of the run of known tokens that is being read
        for position in range(self.start, self._text_end(canvas)):
            kind = "fresh" if position in just_written else kinds[int(canvas.state[position])]
            if kind == "masked":
                cells = _finished(cells, stream)
                stream, text = None, ""
            else:
                stream = stream or self._stream(position)
                text = stream.push([int(canvas.tokens[position])])
            cells.append((kind, text))
        return self._until_stop(_finished(cells, stream))

    def _until_stop(self, cells: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """`cells` up to the first stop string, where nothing before it is masked."""
        known = list(takewhile(lambda cell: cell[0] != "masked", cells))
        cut = self.stops.find("".join(text for _, text in known))
        begins = accumulate((len(text) for _, text in known), initial=0)
        kept = [(kind, text[: cut - at]) for (kind, text), at in zip(known, begins, strict=False) if at < cut]
        return cells if cut < 0 else kept

    def spans(self, canvas: Canvas, fresh: Int32) -> list[Span]:
        """The text from `start` to its end as runs of equal state; `fresh` was written just now."""
        runs = [(kind, list(run)) for kind, run in groupby(self.cells(canvas, fresh), key=itemgetter(0))]
        return [Span(kind, "".join(text for _, text in run), len(run)) for kind, run in runs]

    def details(self, canvas: Canvas, fresh: Int32, marks: Marks) -> list[TokenDetail]:
        """The tokens from `start` to the end of the text one by one; their texts are those of cells()."""
        cells = enumerate(self.cells(canvas, fresh), self.start)
        return [self._detail(canvas, marks, position, *cell) for position, cell in cells]

    def made_details(self, canvas: Canvas, marks: Marks) -> list[TokenDetail]:
        """The details of the tokens that made() gives; the texts of an answer's add up to it."""
        made = set(self._made_at(canvas))
        return [each for each in self.details(canvas, NO_POSITIONS, marks) if each.position in made]

    def _detail(self, canvas: Canvas, marks: Marks, at: int, kind: str, text: str) -> TokenDetail:
        probability, entropy = float(marks.probability[at]), float(marks.entropy[at])
        likely = zip(marks.alternative_token[at].tolist(), marks.alternative_probability[at].tolist(), strict=True)
        return TokenDetail(
            at,
            int(canvas.tokens[at]),
            text,
            kind,
            int(marks.step[at]) or None,
            None if math.isnan(probability) else probability,
            None if math.isnan(entropy) else entropy,
            tuple(Alternative(token, self._decode([token], True), share) for token, share in likely if token >= 0),
        )

    def _stream(self, position: int) -> TextStream:
        """Reads tokens from `position` on."""
        from .text import TextStream

        return TextStream(self.tokenizer, continues=position > self.start or self.continues)

    def _decode(self, tokens: Sequence[int] | Int32, continues: bool) -> str:
        return self.tokenizer.decode([int(token) for token in tokens], continues=continues)


def _finished(cells: list[tuple[str, str]], stream: TextStream | None) -> list[tuple[str, str]]:
    """`cells` with the bytes that the stream still holds back at the end of the last one."""
    if stream is None:
        return cells
    kind, text = cells[-1]
    return [*cells[:-1], (kind, text + stream.finish())]
