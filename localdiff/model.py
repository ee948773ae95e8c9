"""Model = engine model + tokenizer + chat template + DiffusionSpec: what users hold.

compose.py makes pages of prompts, a DenoiseStream (generation.py) runs them in a session that the model lends. A Model
may be used from several threads; each running generation has a session of its own. The tokenizer is built when it is
first needed, so that logits work for files without one. Not here: opening files (loading.py), the loop, decoders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .arithmetic import Arithmetic, decide, fingerprint
from .cache.saved import Identity, SavedPrompt, check_attention, keepable, load_prompt, prompt_request
from .cache.state import State, reach
from .canvas import Hole
from .compose import Composer, LengthLogits, token_ids
from .engine import EngineModel, Float32, Int32, Proposal, Request, Session
from .errors import ModelFileError, OptionError, counted
from .generation import DenoiseStream, Generation, Setup
from .infill import check_parts, parse_infill
from .options import GenerateOptions, merge
from .page import Page
from .profiles import TUNED, profile_of, with_preset
from .sessions import SessionPool
from .spec import ATTENTION_KINDS, DiffusionSpec

if TYPE_CHECKING:
    from .decode.loop import Job
    from .text import ChatTemplate, Tokenizer

BACKGROUND_ROWS = 32

Propose = Callable[[list[Request]], list[Proposal]]  # one call of the engine
Prompt = str | Sequence[int]  # text, or raw token ids which are taken as they are


class Model:
    """A loaded model.

    spec            the diffusion record in force, None for an ordinary model (then only logits work)
    notices         sentences a user should see: what the record was guessed from
    path, metadata  of the file; adapters: the files beside it and their scales
    info            shape and kernel row (engine.ModelInfo)
    check_job       raises OptionError for a way of decoding that the engine cannot do; None = it does them all
    """

    def __init__(
        self,
        engine: EngineModel,
        metadata: Mapping[str, Any],
        spec: DiffusionSpec | None,
        path: Path,
        threads: int | None = None,
        notices: tuple[str, ...] = (),
        math: str = "auto",
        adapters: Sequence[tuple[Path, float]] = (),
        check_job: Callable[[Job], None] | None = None,
    ) -> None:
        self.info = engine.info
        self.spec = spec
        self.notices = notices
        self.path = path
        self.metadata = metadata
        if spec is not None:
            spec.check_vocabulary(self.info.vocab)
            if spec.canvas_max > self.info.context_length:
                raise OptionError(
                    f"canvas_max is {spec.canvas_max}, but the context of the model has {self.info.context_length} "
                    "positions; give --diffusion canvas=N with a smaller N"
                )
        self._engine = engine
        self._threads = threads
        self._wanted_math = math
        self._files = [(path, 1.0), *adapters]
        self._check_job = check_job
        self._pool = SessionPool(engine, threads)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.info.arch}, {self.info.parameters:,} parameters, on {self.device}>"

    @property
    def name(self) -> str:
        return str(self.metadata.get("general.name") or self.path.stem)

    @property
    def device(self) -> str:
        return self._engine.device

    @property
    def threads(self) -> int | None:
        """What was asked for; None = all that the process may use."""
        return self._threads

    @property
    def canvas_limit(self) -> int:
        """The longest canvas, prompt included."""
        return (self.spec.canvas_max if self.spec else 0) or self.info.context_length

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """How quantised weights are multiplied, and why; "auto" is decided when it is first needed."""
        return decide(self._wanted_math, self._files, self._engine, self.spec, lambda: self.tokenizer, self._threads)

    @cached_property
    def background(self) -> Float32:
        """float32 [vocab], how probable the model holds each token where it knows nothing; one pass, the first time.

        The mean over the rows of a canvas of BACKGROUND_ROWS masks, behind bos where the model has one.
        """
        assert self.spec is not None
        begin = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        count = min(BACKGROUND_ROWS, self.canvas_limit - len(begin))
        rows = self.logits([*begin, *[self.spec.mask_token] * count]).astype(np.float64)
        weights = np.exp(rows - rows.max(axis=1, keepdims=True))
        background: Float32 = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0).astype(np.float32)
        return background

    # ---- text ----

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from .text import Tokenizer

        return Tokenizer.from_gguf(self.metadata)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template of the file, None where it has none."""
        from .text import ChatTemplate

        return ChatTemplate.from_gguf(self.metadata, self.tokenizer)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text`, with bos where the file asks for it; control tokens never come from the text."""
        return self.tokenizer.encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; control tokens are left out."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def chat_tokens(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The prompt for a conversation ({"role", "content"} each, oldest first), for generate and stream.

        tools   functions that may be called, for chat templates that know them
        """
        if self.chat_template is None:
            raise OptionError(f"{self.name} has no chat template; give a prompt instead of messages (--no-chat)")
        return self.chat_template.render(messages, tools=tools).tokens

    # ---- work ----

    def logits(
        self, tokens: Sequence[int], attention: str | None = None, block_length: int | None = None, prefix: int = 0
    ) -> Float32:
        """One forward pass; the raw rows [length, vocab], no shift applied.

        attention     one of spec.ATTENTION_KINDS; None = as the record says, full without a record
        block_length  for block_causal; None = the record's
        prefix        for prefix_causal: positions that see only what stands before them
        """
        if len(tokens) == 0:
            raise OptionError("there are no tokens, expected at least one")
        kind = attention or (self.spec.attention if self.spec else "full")
        if kind not in ATTENTION_KINDS:
            raise OptionError(f"attention is '{kind}', expected one of {', '.join(ATTENTION_KINDS)}")
        length = block_length or (self.spec.block_length if self.spec else 0)
        if kind == "block_causal" and length < 1:
            raise OptionError(f"block_length is {length}, expected at least 1 for block_causal attention")
        ids = token_ids(tokens, self.info.vocab)
        if len(ids) > self.info.context_length:
            raise OptionError(f"there are {len(ids)} tokens, but the context has {self.info.context_length} positions")
        request = Request(ids, np.arange(len(ids), dtype=np.int32), attention=kind, block_length=length, prefix=prefix)
        return self.forward([request])[0]

    def forward(self, requests: list[Request]) -> list[Float32]:
        """One forward pass over several canvases; the raw logits [n, vocab] of the positions that each asks for."""
        with self._sessions().lend(len(requests), max(len(request.tokens) for request in requests)) as session:
            return session.logits(requests)

    @overload
    def generate(
        self, prompt: Prompt, options: GenerateOptions | None = None, *, samples: None = None, **named: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Prompt, options: GenerateOptions | None = None, *, samples: int, **named: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], options: GenerateOptions | None = None, **named: Any
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Prompt | list[str] | list[list[int]], options: GenerateOptions | None = None, **named: Any
    ) -> Generation | list[Generation]:
        """Continue a prompt, or every prompt of a list in one batch: one call of the engine per step for all.

        prompt   text, or raw token ids; a list of texts or of id lists is a batch
        options  GenerateOptions; `named` are its fields, which win
        returns  a Generation; a list of them for a batch or where samples is given, the samples of the
                 first prompt first; each is what its prompt alone would give with its seed
        raises   TypeError for an unknown option, OptionError, EngineError, Cancelled
        """
        wanted = merge(options, named)
        results = _results(self.stream(prompt, wanted))
        return results if _is_batch(prompt) or wanted.samples is not None else results[0]

    def stream(
        self, prompt: Prompt | list[str] | list[list[int]], options: GenerateOptions | None = None, **named: Any
    ) -> DenoiseStream:
        """The same as generate, as an iterator of DenoiseEvents; .result (.results for several) comes at the end."""
        return self._run(self.compose(prompt, merge(options, named)))

    def chat(self, messages: Sequence[Mapping[str, Any]], options: GenerateOptions | None = None, **named: Any) -> Any:
        """The assistant's answer to a conversation; a list of answers where samples is given."""
        wanted = self.chat_options(messages, merge(options, named))
        return self.generate(self.chat_tokens(messages), wanted)

    def chat_options(self, messages: Sequence[Mapping[str, Any]], options: GenerateOptions) -> GenerateOptions:
        """The options for a conversation: a negative prompt that is a text takes the place of its last message."""
        if not isinstance(options.negative_prompt, str):
            return options
        instead = [*messages[:-1], {"role": "user", "content": options.negative_prompt}]
        return replace(options, negative_prompt=tuple(self.chat_tokens(instead)))

    @overload
    def infill(
        self,
        text: str | Sequence[str | Hole],
        options: GenerateOptions | None = None,
        *,
        samples: None = None,
        **named: Any,
    ) -> Generation: ...
    @overload
    def infill(
        self, text: str | Sequence[str | Hole], options: GenerateOptions | None = None, *, samples: int, **named: Any
    ) -> list[Generation]: ...
    def infill(
        self, text: str | Sequence[str | Hole], options: GenerateOptions | None = None, **named: Any
    ) -> Generation | list[Generation]:
        """Fill the holes of a text: "Once [[8]] time [[]]." or strings and Holes. Given text stays word for word; a
        list of texts where samples is given."""
        wanted = merge(options, named)
        results = _results(self.stream_infill(text, wanted))
        return results[0] if wanted.samples is None else results

    def stream_infill(
        self, text: str | Sequence[str | Hole], options: GenerateOptions | None = None, **named: Any
    ) -> DenoiseStream:
        """The same as infill, as an iterator of DenoiseEvents."""
        return self._run(self.compose_infill(text, merge(options, named), self.propose))

    def save_prompt(self, prompt: Prompt, path: str | os.PathLike[str]) -> int:
        """Write what the engine computes of a prompt to a file, so that another process need not: see load_prompt.

        prompt   as for generate; chat_tokens(...) for a conversation
        returns  how many of its tokens the file holds: all, or with block-causal attention those in whole blocks
        raises   OptionError where the attention of the model leaves nothing to keep, or no block is full
        """
        spec, given = self._keeping(), np.array(self._composer().given(prompt), np.int32)
        tokens = given[: keepable(spec, len(given))]
        if not len(tokens):
            raise OptionError(
                f"the prompt has {counted(len(given), 'token')}, less than a block of {spec.block_length}: nothing can "
                "be saved"
            )
        saved = self._pool.prompt
        if saved is not None and np.array_equal(saved.tokens[: len(tokens)], tokens):
            saved.save(Path(path))
            return len(saved.tokens)
        request = prompt_request(spec.attention, spec.block_length, tokens)
        with self._sessions().lend_kept(1, len(tokens)) as (session, states):
            state = states.pop(0, State.empty(0)).resumed(tokens, reach(request))
            missing = np.flatnonzero(~state.known).astype(np.int32)
            if len(missing):
                session.propose([replace(request, compute=missing)])
            states[0] = state.computed(missing, tokens, reach(request), 0)
            saved = SavedPrompt(self._identity(), tokens, session.state(len(tokens)))
        saved.save(Path(path))
        return len(tokens)

    def load_prompt(self, path: str | os.PathLike[str]) -> int:
        """Begin with a prompt that save_prompt wrote: where a canvas starts with its tokens, they are not computed.

        returns  the number of tokens
        raises   ModelFileError where the file is damaged, or of another model, arithmetic or kernel row
        """
        self._keeping()
        saved = load_prompt(Path(path), self._identity(), self.info.vocab)
        if len(saved.tokens) > self.canvas_limit:
            raise ModelFileError(
                f"{path}: the saved prompt has {len(saved.tokens)} tokens, but the canvas holds {self.canvas_limit}"
            )
        self._pool.close()  # sessions that are made from now on hold it
        self._pool.prompt = saved
        return len(saved.tokens)

    def use_threads(self, threads: int | None) -> None:
        """From now on compute with so many threads, None = all that the process may use."""
        prompt = self._pool.prompt
        self._pool.close()
        self._threads, self._pool = threads, SessionPool(self._engine, threads)
        self._pool.prompt = prompt

    def cancel(self) -> None:
        """Make everything that runs on this model raise Cancelled soon. From any thread."""
        self._pool.cancel()

    def close(self) -> None:
        """Give the memory back; the model cannot be used any more."""
        self._pool.close()
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for those that run generations themselves, such as the server ----

    def length_logits(self, tokens: Int32) -> Float32:
        """float32 [info.lengths]: what the length head says of a prompt int32 [length], logits of class c for an answer
        of c + 1 tokens; EngineError where the model has none."""
        with self._sessions().lend(1, len(tokens)) as session:
            return session.lengths(tokens)

    def compose(
        self,
        prompt: Prompt | list[str] | list[list[int]],
        options: GenerateOptions,
        lengths: LengthLogits | None = None,
    ) -> list[Page]:
        """The canvases of stream(prompt, options), before any denoise step; `lengths` in place of length_logits."""
        composer, wanted = self._composer(), self._with_preset(options)
        if lengths is not None and composer.lengths is not None:
            composer = replace(composer, lengths=lengths)
        if not isinstance(prompt, str | Sequence | np.ndarray):
            raise OptionError(f"the prompt is a {type(prompt).__name__}, expected text, token ids or a list of either")
        if len(prompt) == 0 and not isinstance(prompt, str):
            raise OptionError('the list of prompts is empty, expected at least one; "" is a prompt without text')
        prompts: Sequence[Any] = prompt if _is_batch(prompt) else [prompt]
        return self._checked([page for each in prompts for page in composer.prompt(each, wanted)])

    def compose_infill(
        self, text: str | Sequence[str | Hole], options: GenerateOptions, propose: Propose
    ) -> list[Page]:
        """The canvases of stream_infill(text, options); `propose` is asked about open lengths and partial words."""
        for name in ("max_new_tokens", "grow"):
            if getattr(options, name) is not None:
                raise OptionError(f"infill has no {name}: the holes say how many tokens are made")
        if options.stop is not None:
            raise OptionError("infill has no stop: a hole ends where the given text goes on; leave it out")
        if options.negative_prompt is not None:
            raise OptionError("infill has no negative_prompt: guidance leads away from the text with its words masked")
        parts = parse_infill(text) if isinstance(text, str) else [part for part in text if part != ""]
        check_parts(parts)
        return self._checked(self._composer().infill(parts, self._with_preset(options), propose))

    def finish(self, pages: list[Page]) -> list[Generation]:
        """Denoise composed canvases to their end, in one batch; each has the options it was composed with."""
        stream = self._run(pages)
        for _ in stream:
            pass
        return stream.results

    def propose(self, requests: list[Request]) -> list[Proposal]:
        """One forward pass in a session of its own."""
        with self._sessions().lend(len(requests), max(len(request.tokens) for request in requests)) as session:
            return session.propose(requests)

    def session(self, slots: int, length: int) -> Session:
        """A session of the caller's own, with the arithmetic in force; EngineError where memory cannot be had."""
        return self._engine.session(slots=slots, slot_length=length, threads=self._threads, math=self.arithmetic.math)

    def session_bytes(self, slots: int, length: int) -> int:
        """The memory that such a session takes."""
        return self._engine.plan(slots=slots, slot_length=length, threads=self._threads)

    @property
    def setup(self) -> Setup:
        """What is reported of generations on this model."""
        return Setup(self.name, self.device, self.info.isa)

    # ---- the way to the engine ----

    def _keeping(self) -> DiffusionSpec:
        """The record of a model whose prompts can be kept; OptionError for others."""
        self._composer()
        assert self.spec is not None
        check_attention(self.spec)
        return self.spec

    def _identity(self) -> Identity:
        assert self.spec is not None
        files, spec = fingerprint(self._files), self.spec
        return Identity(files, spec.attention, spec.block_length, self.arithmetic.math, self.info.isa)

    def _sessions(self) -> SessionPool:
        self._pool.math = self.arithmetic.math
        return self._pool

    def _with_preset(self, options: GenerateOptions) -> GenerateOptions:
        """The options with the values of their preset; the threads of a tuned model count where none were asked for."""
        if options.preset is None or self.spec is None:
            return options
        if options.preset == TUNED and self._threads is None and (threads := profile_of(self._files).threads):
            self.use_threads(threads)
        return with_preset(options, self.spec, self._files)

    def _checked(self, pages: list[Page]) -> list[Page]:
        """The pages. Raises OptionError for settings that the engine cannot do."""
        if self._check_job is not None:
            for page in pages:
                self._check_job(page.job)
        return pages

    def _run(self, pages: list[Page]) -> DenoiseStream:
        return DenoiseStream(pages, self._sessions(), self.setup)

    def _composer(self) -> Composer:
        if self.spec is None:
            raise OptionError(
                f"{self.path.name} has no diffusion record; if it is a diffusion model give --diffusion "
                "mask=ID,shift=0|1 or a preset such as --diffusion diffullama, if not localdiff adapt makes one of it"
            )
        lengths = self.length_logits if self.info.lengths else None
        return Composer(
            self.tokenizer,
            self.spec,
            self.info.vocab,
            self.canvas_limit,
            lambda: self.background,
            lengths,
            self.info.feedback,
        )


def _results(stream: DenoiseStream) -> list[Generation]:
    for _ in stream:
        pass
    return stream.results


def _is_batch(prompt: Sequence[object]) -> bool:
    """Whether `prompt` is a list of prompts rather than a text or a list of ids."""
    return not isinstance(prompt, str) and any(isinstance(each, Sequence) for each in prompt)
