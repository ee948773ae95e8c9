"""A model and its sessions whose forward pass is llama.cpp's; everything around it is the engine's own.

A session keeps nothing between steps: every canvas is computed whole, by itself, so that its text does not depend on
its neighbours. What needs the engine's own forward pass - states, caches, tokens in another order than they are read,
attention in blocks, adapters, kernel rows - is refused by name. Texts are the engine's up to rounding: llama.cpp keeps
keys and values in half precision.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..decode.table import DECODERS
from ..engine import EngineModel, File, Float32, Int32, ModelInfo, Proposal, Request, Session, Timings, propose_logits
from ..errors import EngineError, OptionError
from .process import Flag, Process

if TYPE_CHECKING:
    from ..decode.loop import Job

# Of the engine's architectures those whose logits llama.cpp gives; encoders have none there.
ARCHITECTURES = (
    "gpt2", "llama", "llada", "llada-moe", "bailingmoe2", "dream", "qwen2", "qwen3", "qwen3moe", "rnd1", "mistral3",
    "pangu-embedded",
)  # fmt: skip
ATTENTION = {"full": False, "causal": True}  # -> what llama.cpp's switch is set to
_KV_BYTES = 2  # of a key or value: half precision


def check_loading(isa: str | None, math: str, adapters: bool) -> None:
    """Raise OptionError for what only the engine's own forward pass can do."""
    for name, given, what in (
        ("isa", isa is not None, "a kernel row"),
        ("math", math != "auto", "the arithmetic"),
        ("lora", adapters, "adapters"),
    ):
        if given:
            raise OptionError(
                f"{name}: {what} of localdiff's own engine cannot be had with device llamacpp; leave it out"
            )


def check_job(job: Job) -> None:
    """Raise OptionError for a way of decoding that needs other attention, another order or states that are kept."""
    settings = job.settings
    if job.attention not in ATTENTION:
        raise _refused(f"{job.attention} attention")
    if settings.cache != "exact":
        raise OptionError(
            f"cache: {settings.cache} keeps states between steps, which device llamacpp does not; give --cache exact"
        )
    if "reorders" in DECODERS[settings.decoder].traits:
        raise _refused(f"the decoder {settings.decoder}, which stores tokens in another order than they are read")
    if settings.verify_threshold is not None:
        raise _refused(f"the decoder {settings.decoder}, which verifies tokens by rows that do not see them")


class LlamaModel(EngineModel):
    """A model in a process of llama.cpp; the file is validated by the engine first, without packing weights."""

    def __init__(self, file: File):
        super().__init__(file, plan=True)
        self.device = "llamacpp"
        self._nbytes = sum(tensor.nbytes for tensor in file.tensors)
        arch = self.info.arch
        if arch not in ARCHITECTURES:
            raise OptionError(
                f"device is 'llamacpp', which gives no logits for the architecture {arch}; it does for "
                f"{', '.join(ARCHITECTURES)}; leave the device out"
            )
        self.process = Process(file.path)
        if self.process.vocab != self.info.vocab:
            self.process.close()
            raise EngineError(
                f"llama.cpp finds {self.process.vocab} tokens in {file.path.name}, expected {self.info.vocab}; leave "
                "out --device llamacpp"
            )

    def _read_info(self) -> ModelInfo:
        """weight_bytes: of the file; isa: that the kernels are llama.cpp's."""
        return replace(super()._read_info(), isa="llama.cpp", weight_bytes=self._nbytes)

    def session(
        self,
        slots: int = 1,
        slot_length: int | None = None,
        rows: int | None = None,
        threads: int | None = None,
        math: str = "exact",
    ) -> Session:
        length = min(slot_length or self.info.context_length, self.info.context_length)
        self.process.room(length, threads)
        return LlamaSession(self, length, threads)

    def plan(
        self, slots: int = 1, slot_length: int | None = None, rows: int | None = None, threads: int | None = None
    ) -> int:
        """Bytes of keys, values and logits; what llama.cpp computes in comes on top."""
        info, length = self.info, slot_length or self.info.context_length
        return length * (2 * info.layers * info.kv_heads * info.head_dim * _KV_BYTES + info.vocab * 4)

    def close(self) -> None:
        self.process.close()
        super().close()


class LlamaSession(Session):
    """Canvases of one caller; nothing is kept of them."""

    def __init__(self, model: LlamaModel, length: int, threads: int | None):
        self._process = model.process
        self._vocab = model.info.vocab
        self._length = length
        self._threads = threads
        self._flag = Flag()
        self._closed = False
        self._forwards = self._rows = 0
        self._seconds = 0.0

    def propose(self, requests: Sequence[Request]) -> list[Proposal]:
        self._check([each for one in requests for each in (one, one.unconditional) if each is not None])
        known = []
        for request in requests:
            beside = request.unconditional
            known.append(
                replace(
                    request,
                    logits=self._forward(request),
                    value_drift=None,
                    unconditional=None if beside is None else replace(beside, logits=self._forward(beside)),
                )
            )
        return propose_logits(known, self._vocab)

    def logits(self, requests: Sequence[Request]) -> list[Float32]:
        self._check(requests)
        rows = [self._forward(request) for request in requests]
        for each in rows:
            if not np.isfinite(each).all():
                raise EngineError("the logits of llama.cpp are not finite; the model's weights are damaged")
        return rows

    def lengths(self, tokens: Int32, slot: int = 0) -> Float32:
        raise _refused("the length head")

    def cancel(self) -> None:
        self._flag.raised = True

    def timings(self) -> Timings:
        return Timings(self._threads or 0, self._forwards, self._rows, self._seconds, self._seconds, 0.0, 0.0, 0.0)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def state(self, length: int, slot: int = 0) -> bytes:
        raise _refused("saving a prompt")

    def restore(self, state: bytes, slot: int = 0) -> int:
        raise _refused("a saved prompt")

    def observe(self, on: bool = True) -> None:
        raise _refused("observing what linear layers read")

    def observations(self) -> dict[str, Any]:
        return {}

    def _check(self, requests: Sequence[Request]) -> None:
        """Raise EngineError for requests that cannot be computed here."""
        if self._closed:
            raise EngineError("the session is closed; open it again")
        for request in requests:
            tokens, score = np.asarray(request.tokens), np.asarray(request.score)
            if request.attention not in ATTENTION:
                raise _refused(f"{request.attention} attention")
            if request.compute is not None and len(request.compute) != len(tokens):
                raise _refused("computing some rows only")
            if request.positions is not None:
                raise _refused("tokens in another order than they are read")
            if request.hidden is not None:
                raise _refused("scoring tokens by rows that do not see them")
            if not 1 <= len(tokens) <= self._length:
                raise EngineError(f"the canvas has {len(tokens)} tokens, expected 1 to {self._length}")
            for name, values, limit in (("token", tokens, self._vocab), ("scored position", score, len(tokens))):
                if values.size and not 0 <= values.min() <= values.max() < limit:
                    raise EngineError(f"a {name} is {values.min()} or {values.max()}, expected 0 to {limit - 1}")

    def _forward(self, request: Request) -> Float32:
        """float32 [n, vocab]: the logits for the scored positions; also where the request asks for them."""
        began = time.perf_counter()
        source = np.maximum(np.asarray(request.score) - 1, 0) if request.logit_shift else np.asarray(request.score)
        rows, back = np.unique(source, return_inverse=True)  # positions 0 and 1 may have one row
        tokens = np.ascontiguousarray(request.tokens, np.int32)
        causal, threads = ATTENTION[request.attention], self._threads
        data = self._process.logits(tokens.tobytes(), rows.tolist(), causal, threads, self._flag)
        logits: Float32 = np.frombuffer(data, np.float32).reshape(len(rows), self._vocab)[back]
        if request.logits is not None:
            request.logits[:] = logits
        if request.value_drift is not None:
            request.value_drift[:] = 1.0  # nothing was held before
        self._forwards += 1
        self._rows += len(tokens)
        self._seconds += time.perf_counter() - began
        return logits


def _refused(what: str) -> OptionError:
    return OptionError(f"device llamacpp cannot do {what}; leave the device out")
