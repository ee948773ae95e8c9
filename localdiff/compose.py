"""From prompts to pages: given tokens, masks, the settings in force - everything a generation needs but the engine.

With logit_shift no row predicts position 0, so a canvas then begins with a given token: bos, or, where the model has
none and the text begins with a hole, a mask token that stays and is left out of the text. Not here: running anything.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .cache.table import make_cache
from .canvas import Canvas, Hole, Int32
from .constrain import AVOID, Asked, asked_for, constraint_for, hole_lengths
from .decode.controls import Controls
from .decode.decoder import Facts
from .decode.loop import Job, longer
from .decode.refusals import unfit_for_prefixes
from .decode.table import CONTROLS, DECODERS, decoder_name, make_decoder, settings_for
from .engine import Float32, Proposal, Request
from .errors import OptionError, counted
from .heal import Reach, heal
from .infill import LENGTHS, Part, choose_lengths
from .options import GenerateOptions
from .page import Gap, Page
from .profiles import for_holes
from .spec import DiffusionSpec
from .stops import StopStrings
from .text import Tokenizer
from .wishes import token_of

DEFAULT_NEW_TOKENS = 64

LengthLogits = Callable[[Int32], Float32]  # of a prompt, see engine.Session.lengths


@dataclass(frozen=True)
class Composer:
    """What pages are made of.

    vocab         number of the model's rows
    canvas_limit  the longest canvas in tokens
    background    gives Facts.background
    lengths       asks the length head; None where the model has none
    feedback      ModelInfo.feedback
    """

    tokenizer: Tokenizer
    spec: DiffusionSpec
    vocab: int
    canvas_limit: int
    background: Callable[[], Float32]
    lengths: LengthLogits | None = None
    feedback: bool = False

    def prompt(self, prompt: str | Sequence[int], options: GenerateOptions) -> list[Page]:
        """A canvas of the prompt - text, or ids that are taken as they are - and masks: as many as the length head says
        where the decoder goes by it, with a length beam in several lengths; else max_new_tokens, or as many as it
        begins with where it may grow. Per sample."""
        began, given = time.perf_counter(), self.given(prompt)
        room = self.canvas_limit - len(given)
        predicted = self._by_length_head(options, given)
        row = DECODERS.get(decoder_name(options, self.spec))
        begins = 0 if row is None else row.begins
        whole = bool(options.grow) or predicted or begins > 0
        usual = self.spec.canvas_length or DEFAULT_NEW_TOKENS
        count = options.max_new_tokens or max(1, room if whole else min(usual, room))
        if options.length_beam is None and not predicted and not (row and "resizes" in row.traits):
            options = replace(options, grow=options.grow or self.spec.canvas_length or None)
        if count > room:
            raise OptionError(
                f"the prompt and its answer would have {len(given)} + {count} tokens, but the canvas holds "
                f"{self.canvas_limit}; shorten the prompt or lower max_new_tokens"
            )
        continues = bool(given) and not self.tokenizer.is_special(given[-1]) and given != self._lead()
        stops, wished, pad = StopStrings(options.stop or ()), _wished(options), self.spec.pad_token
        asked, stop_tokens = asked_for(options), self._stop_tokens()
        if asked is not None and asked.kind != AVOID and not stop_tokens:
            raise OptionError(
                f"this model has no token that ends a text, so no text that matches {asked.what} could end; fill a "
                "hole instead, or name one with --diffusion stop=ID"
            )
        sizes = self._predicted(given, count, options) if predicted else self._sizes(len(given), count, begins, options)
        most = len(given) + (max(sizes.masks) + len(sizes.ending) if predicted else count)
        options, drafts = _seeded(options), []
        page = partial(
            Page, self.tokenizer, start=len(given), continues=continues, pad_token=pad, passes=sizes.passes,
            seconds=sizes.seconds, stops=stops, wished=wished, tail=len(sizes.ending),
        )  # fmt: skip
        for masks in sizes.masks:
            canvas = Canvas.of([given, Hole(masks), sizes.ending], self.spec.mask_token)
            jobs = self._jobs(canvas, options, len(given), stop_tokens, began, most)
            if asked is not None:
                swallows = self.tokenizer.space_prefix and not continues
                jobs = [self._constrained(job, asked, (len(given), len(canvas)), swallows) for job in jobs]
            drafts.append([page(job).until_stop() for job in jobs])
        return _side_by_side(drafts)

    def _by_length_head(self, options: GenerateOptions, given: list[int]) -> bool:
        """Whether the length head says how many tokens an answer has; OptionError where it should but is not there."""
        row = DECODERS.get(decoder_name(options, self.spec))
        if row is None or "length_beam" not in row.defaults or options.grow:
            return False
        predicted = self.lengths is not None and bool(given)
        if not predicted and (options.length_beam or 1) > 1:
            missing = "this model has none" if self.lengths is None else "the prompt is empty"
            raise OptionError(
                "length_beam tries the lengths that a length head finds likeliest for a prompt, but "
                f"{missing}; leave it out and give max_new_tokens"
            )
        return predicted

    def _predicted(self, given: list[int], count: int, options: GenerateOptions) -> _Sizes:
        """The likeliest numbers of answer tokens by the length head, likeliest first; what is more than `count` counts
        as that. Such a length is that of the whole answer, so the token that ends it is given (arXiv:2308.12219)."""
        assert self.lengths is not None
        room, started = self.canvas_limit - len(given), time.perf_counter()
        ending = self._stop_tokens()[:1] if room > 1 else ()
        logits = self.lengths(np.array(given, np.int32))
        found = np.argsort(-logits, kind="stable")[: options.length_beam or 1] + 1
        masks = dict.fromkeys(min(int(length), count, room - len(ending)) for length in found)
        return _Sizes(list(masks), ending, 1, time.perf_counter() - started)

    def _sizes(self, given: int, count: int, begins: int, options: GenerateOptions) -> _Sizes:
        """What the canvas of an answer of at most `count` tokens begins with; begins: DecoderRow.begins."""
        grow = options.grow or 0
        first = longer(given, grow, self.spec.block_length, given + count) - given if grow else begins or count
        return _Sizes([min(first, count)])

    def given(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that a canvas for `prompt` begins with."""
        given = self._opening(prompt) if isinstance(prompt, str) else token_ids(prompt, self.vocab).tolist()
        return given or self._lead()

    def infill(
        self,
        parts: Sequence[str | Hole],
        options: GenerateOptions,
        propose: Callable[[list[Request]], list[Proposal]],
    ) -> list[Page]:
        """A canvas of given texts and holes for each sample; with a length beam in several lengths.

        propose   one call of the engine, for holes of unknown length and those that begin or end inside a word
        """
        began = time.perf_counter()
        opening = "" if isinstance(parts[0], Hole) else self._before(parts, 0)
        given = self._opening(opening) or self._lead()
        start = 1 if given and (self.tokenizer.is_special(given[0]) or given == self._lead()) else 0
        pieces: list[Part] = [given]
        texts: list[str | None] = [None if isinstance(parts[0], Hole) else parts[0]]
        for index, part in enumerate(parts):
            if isinstance(part, Hole):
                pieces.append(part)
                texts.append(None)
            elif index:  # "" first: this is not the beginning of the text
                texts.append(part)
                pieces.append(self.tokenizer.encode_parts(["", self._before(parts, index)], add_bos=False))

        self._check_size(pieces)  # before holes of any length become arrays
        passes, started = 0, time.perf_counter()

        def ask(requests: list[Request]) -> list[Proposal]:
            nonlocal passes
            passes += 1
            return propose(requests)

        def look(asked: list[tuple[Canvas, range]]) -> list[Float32]:
            requests = [
                replace(self._first_look(canvas, rows, slot), logits=np.empty((len(rows), self.vocab), np.float32))
                for slot, (canvas, rows) in enumerate(asked)
            ]
            ask(requests)
            return [request.logits for request in requests if request.logits is not None]

        def likeliest(asked: list[tuple[Canvas, int, Int32]]) -> list[int]:
            requests = [
                self._first_look(canvas, range(at, at + 1), slot, allowed)
                for slot, (canvas, at, allowed) in enumerate(asked)
            ]
            return [int(answer.token[0]) for answer in ask(requests)]

        never = frozenset(self._unwanted(self._forbidden(filling=True), options).tolist())
        wanted = asked_for(options)
        reaches: Mapping[int, Reach] = {}
        if wanted is None:  # else the hole alone has to match
            pieces, reaches = heal(pieces, texts, start, self.tokenizer, never, self.spec.mask_token, likeliest)
        beam = options.length_beam or 1
        if beam > 1 and all(piece.length for piece in pieces if isinstance(piece, Hole)):
            raise OptionError("length_beam tries several lengths, but no hole has an open length; leave it out")
        hole = None if wanted is None else self._only_hole(parts, wanted)
        lengths: Sequence[int] = LENGTHS
        if wanted is not None and hole is not None and any(Hole() == piece for piece in pieces):
            room = self.canvas_limit - sum(len(piece) for piece in pieces if not isinstance(piece, Hole))
            unwanted = np.array(sorted(never), np.int32)
            possible = hole_lengths(wanted, self.tokenizer, self.vocab, unwanted, hole[1], max(1, room))
            lengths = [each for each in LENGTHS if each in possible] or possible[: len(LENGTHS)]
        chosen = choose_lengths(pieces, self.spec.mask_token, self.canvas_limit, look, beam, lengths)
        seconds = time.perf_counter() - started if passes else 0.0
        options = for_holes(_seeded(options), self.spec)
        wished, drafts = _wished(options), []
        for each in chosen:
            self._check_size(each)
            canvas = Canvas.of(each, self.spec.mask_token)
            jobs = self._jobs(canvas, options, len(canvas), (), began)
            places = tuple(_places(parts, each, reaches))
            if wanted is not None and hole is not None:
                gap = places[hole[0]]
                assert not isinstance(gap, str)
                jobs = [self._constrained(job, wanted, (gap.start, gap.end), hole[1]) for job in jobs]
            common = (start, False, None, places, passes, seconds)
            drafts.append([Page(self.tokenizer, job, *common, wished=wished) for job in jobs])
        return _side_by_side(drafts)

    def _only_hole(self, parts: Sequence[str | Hole], wanted: Asked) -> tuple[int, bool]:
        """Where the hole is whose text has to match, and whether a space at its beginning is taken away."""
        holes = [index for index, part in enumerate(parts) if isinstance(part, Hole)]
        if len(holes) > 1:
            raise OptionError(f"the text has {len(holes)} holes, but {wanted.what} is about one; leave one hole open")
        (index,) = holes
        return index, str(parts[index - 1]).endswith(" ") if index else self.tokenizer.space_prefix

    def _check_size(self, pieces: Sequence[Part]) -> None:
        """Raise OptionError unless the text fits the canvas; an open hole counts as one token."""
        size = sum(piece.length or 1 if isinstance(piece, Hole) else len(piece) for piece in pieces)
        if size > self.canvas_limit:
            raise OptionError(
                f"the text has {counted(size, 'token')}, holes included, but the canvas holds {self.canvas_limit}; "
                "shorten it"
            )

    def _before(self, parts: Sequence[str | Hole], index: int) -> str:
        """The text of a given part; a space before a hole is left to the hole's first word, see Page.pieces."""
        text = parts[index]
        assert isinstance(text, str)
        followed = index + 1 < len(parts) and isinstance(parts[index + 1], Hole)
        return text.removesuffix(" ") if followed else text

    def _opening(self, text: str) -> list[int]:
        bos = True if self.spec.logit_shift and self.tokenizer.bos is not None else None
        return self.tokenizer.encode(text, add_bos=bos)

    def _lead(self) -> list[int]:
        """What a canvas begins with where nothing is given before the first mask."""
        if not self.spec.logit_shift:
            return []
        return [self.spec.mask_token if self.tokenizer.bos is None else self.tokenizer.bos]

    def _stop_tokens(self) -> tuple[int, ...]:
        """The record's, else the tokenizer's ends of text and of turn."""
        ends = self.spec.stop_tokens or (self.tokenizer.eos, self.tokenizer.eot)
        return tuple(token for token in ends if token is not None and token != self.spec.mask_token)

    def _forbidden(self, filling: bool, resizing: bool = False) -> Int32:
        """Tokens that are never proposed: the mask, rows without a token, in holes whatever ends a text, and where the
        decoder cannot resize the canvas the tokens that ask for it."""
        tokens = {self.spec.mask_token, *range(self.tokenizer.vocab_size, self.vocab)}
        sizes = {token for token in (self.spec.expand_token, self.spec.delete_token) if token is not None}
        if filling:
            tokens.update(self._stop_tokens())
            tokens.update(() if self.spec.pad_token is None else (self.spec.pad_token,))
        tokens = tokens - sizes if resizing else tokens | (sizes - set(self._stop_tokens()))
        return np.array(sorted(tokens), np.int32)

    def _constrained(self, job: Job, asked: Asked, place: tuple[int, int], swallows: bool) -> Job:
        """The job whose text at `place` matches; swallows: a space at its beginning is taken away, see Page."""
        constraint = constraint_for(
            asked,
            self.tokenizer,
            self.vocab,
            job.forbidden,
            [token for token in job.stop_tokens if token not in job.forbidden],
            place,
            swallows,
            unfit_for_prefixes(job.settings),
        )
        return replace(job, constraint=constraint)

    def _first_look(self, canvas: Canvas, rows: range, slot: int, allowed: Int32 | None = None) -> Request:
        """The model's likeliest tokens, of `allowed`, for some positions of a canvas that is still empty."""
        forbidden = self._forbidden(filling=True) if allowed is None else _without(self.vocab, allowed)
        return Request(
            canvas.tokens,
            np.arange(rows.start, rows.stop, dtype=np.int32),
            slot=slot,
            attention=self.spec.attention,
            block_length=self.spec.block_length,
            prefix=int(canvas.maskable[0]),
            logit_shift=self.spec.logit_shift,
            forbidden=forbidden,
        )

    def _unwanted(self, forbidden: Int32, options: GenerateOptions) -> Int32:
        """The tokens that are never proposed when the caller's are added; OptionError where none is left."""
        allowed = np.ones(self.vocab, bool)
        if options.only is not None:
            allowed[:] = False
            allowed[[self._token("only", each) for each in options.only]] = True
        allowed[forbidden] = False
        allowed[[self._token("ban", each) for each in options.ban or ()]] = False
        biases = (options.logit_bias or {}).items()
        allowed[[self._token("logit_bias", each) for each, bias in biases if bias == -math.inf]] = False
        if not allowed.any():
            raise OptionError("ban, only and logit_bias leave no token to write; expected at least one")
        return np.flatnonzero(~allowed).astype(np.int32)

    def _token(self, name: str, wanted: str | int) -> int:
        return token_of(name, wanted, self.tokenizer, self.vocab)

    def _controls(self, options: GenerateOptions, answer: int, stop_tokens: tuple[int, ...], began: float) -> Controls:
        bias = {self._token("logit_bias", each): value for each, value in (options.logit_bias or {}).items()}
        bias = {token: bias[token] for token in sorted(bias) if bias[token] != -math.inf}
        ends = (self.spec.mask_token, self.spec.pad_token, *stop_tokens, *self.tokenizer.special_tokens)
        return Controls(
            guidance=options.guidance or 0.0,
            negative=None if options.negative_prompt is None else self._negative(options.negative_prompt, answer),
            answer=answer,
            unpenalised=np.array(sorted({token for token in ends if token is not None}), np.int32),
            bias_tokens=np.array(list(bias), np.int32),
            bias=np.array(list(bias.values()), np.float32),
            alternatives=options.alternatives or 0,
            until=math.inf if options.deadline is None else began + options.deadline,
        )

    def _negative(self, prompt: str | Sequence[int], answer: int) -> Int32:
        negative = np.array(self.given(prompt), np.int32)
        block = self.spec.block_length if self.spec.attention == "block_causal" else 1
        if (len(negative) - answer) % block:
            raise OptionError(
                f"the negative prompt has {counted(len(negative), 'token')} and the prompt {answer}, so the answer "
                f"would lie in other blocks of the model; make them differ by a multiple of {block} tokens, or leave "
                "it out"
            )
        return negative

    def _jobs(
        self,
        canvas: Canvas,
        options: GenerateOptions,
        answer: int,
        stop_tokens: tuple[int, ...],
        began: float,
        room: int = 0,
    ) -> list[Job]:
        """One job for each of the samples; their seeds follow each other.

        began   when the caller asked
        room    the longest that the canvas may become by growing
        """
        assert options.seed is not None
        first = int(options.seed)
        controls = self._controls(options, answer, stop_tokens, began)
        seeds = [(first + sample) % 2**64 for sample in range(options.samples or 1)]
        jobs = [self._job(canvas, options, answer, stop_tokens, controls, seed, room) for seed in seeds]
        most = jobs[0].most + controls.ahead
        if most > self.canvas_limit:
            raise OptionError(
                f"the negative prompt and the answer may have {most} tokens, but the canvas holds {self.canvas_limit}; "
                "shorten the negative prompt"
            )
        if jobs[0].places > self.canvas_limit:
            raise OptionError(
                f"the decoder {jobs[0].settings.decoder} verifies tokens in places behind the text, which make it "
                f"{jobs[0].places} long, but the canvas holds {self.canvas_limit}; lower max_new_tokens or block_length"
            )
        return jobs

    def _job(
        self,
        canvas: Canvas,
        options: GenerateOptions,
        answer: int,
        stop_tokens: tuple[int, ...],
        controls: Controls,
        seed: int,
        room: int,
    ) -> Job:
        grow = options.grow or 0
        later = min(longer(0, grow, self.spec.block_length, room), room - answer)  # masks of a stretch after the first
        settings = settings_for(options, self.spec, max(len(canvas.masked), later))
        traits = DECODERS[settings.decoder].traits
        forbidden = self._unwanted(self._forbidden(answer == len(canvas), "resizes" in traits), options)
        spec = self.spec
        facts = Facts(
            self.vocab,
            forbidden,
            room or self.canvas_limit,
            spec.expand_token,
            spec.delete_token,
            stop_tokens,
            next(iter(self.tokenizer.encode("\n", add_bos=False)[-1:]), None),
            self.background() if "background" in traits else None,
        )
        decoder = make_decoder(settings, seed, facts)
        decoder.check(canvas)
        return Job(
            canvas,
            decoder,
            make_cache(settings),
            settings,
            seed,
            spec.attention,
            spec.block_length,
            prefix=int(canvas.maskable[0]),
            logit_shift=spec.logit_shift,
            forbidden=forbidden,
            stop_tokens=stop_tokens,
            answer=answer,
            controls=replace(controls, repetition_penalty=settings.repetition_penalty),
            grow=grow,
            room=room,
            feedback=self.feedback and "noise" in traits,
        )


@dataclass(frozen=True)
class _Sizes:
    """The masks of an answer's canvases, the tokens that follow them, and what it took to choose their numbers."""

    masks: list[int]
    ending: tuple[int, ...] = ()
    passes: int = 0
    seconds: float = 0.0


def _seeded(options: GenerateOptions) -> GenerateOptions:
    """The options with a seed, a new one where the caller gave none."""
    return replace(options, seed=secrets.randbits(32)) if options.seed is None else options


def _side_by_side(drafts: Sequence[Sequence[Page]]) -> list[Page]:
    """By length and sample -> the pages of the samples, each with those of the other lengths."""
    return [replace(first, drafts=tuple(others)) for first, *others in zip(*drafts, strict=True)]


def _without(vocab: int, tokens: Int32) -> Int32:
    """All tokens but these."""
    others = np.ones(vocab, bool)
    others[tokens] = False
    return np.flatnonzero(others).astype(np.int32)


def _wished(options: GenerateOptions) -> dict[str, Any]:
    """The controls that were given, in the form that JSON has: a banned token's bias is False."""
    given = {name: getattr(options, name) for name in CONTROLS if getattr(options, name) is not None}
    if options.logit_bias is not None:
        biases = options.logit_bias.items()
        given["logit_bias"] = {str(token): bias if math.isfinite(bias) else False for token, bias in biases}
    return given


def token_ids(tokens: Sequence[int], vocab: int) -> Int32:
    """Token ids as an array; OptionError for anything else than ids below `vocab`."""
    ids = np.asarray(tokens)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise OptionError(f"the tokens are an array of {ids.dtype}, shape {list(ids.shape)}, expected a list of ids")
    wrong = ids[(ids < 0) | (ids >= vocab)] if ids.size else ids
    if wrong.size:
        raise OptionError(f"token id {int(wrong[0])} is outside the vocabulary, expected 0 to {vocab - 1}")
    return ids.astype(np.int32)


def _places(parts: Sequence[str | Hole], pieces: Sequence[Part], reaches: Mapping[int, Reach]) -> Iterator[str | Gap]:
    """The given texts and the holes; `pieces` begins with given tokens even where `parts` do not."""
    first = len(pieces) - len(parts)
    sizes = [piece.length or 0 if isinstance(piece, Hole) else len(piece) for piece in pieces]
    for index, part in enumerate(parts, first):
        if isinstance(part, str):
            yield part
            continue
        reach, start = reaches.get(index, Reach()), sum(sizes[:index])
        end = start + sizes[index] + reach.after
        yield Gap(start - reach.before, end, reach.before_text, reach.after_text)
