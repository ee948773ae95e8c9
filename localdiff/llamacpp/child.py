"""The process that drives llama.cpp: usage child.py; runs in any Python that has llama-cpp-python, without localdiff.

Messages come in at stdin and go out at what was stdout, each as two lengths (u32 and u64, little-endian), an object of
JSON and bytes. The first one out says what was found. Then one answer for each of
    {"do": "load", "path"}                                                  {"vocab"}
    {"do": "room", "length", "threads"}                                     {}: there is room for so many tokens
    {"do": "logits", "id", "threads", "causal", "rows"} + int32 tokens      {"id"} + float32 [rows, vocab]
and none for {"do": "cancel", "id"}, which ends that call or the next of that number. An answer of {"error"} says what
failed. All tokens are one physical batch, which attention to both sides needs. When stdin ends, the process does.
"""

from __future__ import annotations

import array
import collections
import ctypes
import json
import os
import queue
import signal
import struct
import sys
import threading
from typing import Any, BinaryIO

LENGTHS = struct.Struct("<IQ")
_LOADED_LINES = 5  # of llama.cpp's log that a failure is explained with


class Failed(Exception):
    """What could not be done, as a sentence."""


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message, None at the end."""
    head = stream.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    text, size = LENGTHS.unpack(head)
    message = json.loads(stream.read(text))
    return message, stream.read(size) if size else b""


def send(stream: BinaryIO, message: dict[str, Any], *data: Any) -> None:
    text = json.dumps(message).encode()
    stream.write(LENGTHS.pack(len(text), sum(memoryview(each).nbytes for each in data)) + text)
    for each in data:
        stream.write(each)
    stream.flush()


class Runner:
    """One model and one context, which is made anew when longer canvases come."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self._log: collections.deque[str] = collections.deque(maxlen=_LOADED_LINES)
        self._keep = [llama.llama_log_callback(self._logged), llama.ggml_abort_callback(self._aborts)]
        llama.llama_log_set(self._keep[0], ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._room = 0
        self._running = 0
        self.cancelled = 0  # every call of this number or a lower one

    def load(self, path: str) -> dict[str, Any]:
        options = self._llama.llama_model_default_params()
        options.n_gpu_layers = 0x7FFFFFFF  # all, where there is a GPU
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            raise Failed(f"llama.cpp cannot load the file ({self._said()})")
        self._vocab = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model))
        return {"vocab": self._vocab}

    def room(self, length: int, threads: int | None) -> dict[str, Any]:
        """Room for canvases of `length` tokens; threads: None = all that the process may use."""
        threads = threads or _processors()
        if length <= self._room:
            self._llama.llama_set_n_threads(self._context, threads, threads)
            return {}
        if self._context:
            self._llama.llama_free(self._context)
            self._llama.llama_batch_free(self._batch)
            self._context, self._room = None, 0
        shape = self._llama.llama_context_default_params()
        shape.n_ctx = shape.n_batch = shape.n_ubatch = length
        shape.n_threads = shape.n_threads_batch = threads
        if hasattr(shape, "n_outputs_max"):
            shape.n_outputs_max = length
        shape.abort_callback = self._keep[1]
        self._context = self._llama.llama_init_from_model(self._model, shape)
        if not self._context or self._llama.llama_n_ubatch(self._context) < length:
            raise Failed(f"llama.cpp has no room for a canvas of {length} tokens ({self._said()})")
        self._batch = self._llama.llama_batch_init(length, 0, 1)
        self._room = length
        return {}

    def logits(self, number: int, threads: int | None, causal: bool, rows: list[int], tokens: bytes) -> list[Any]:
        """The rows' logits, each an array of ctypes that the next call overwrites."""
        ids = array.array("i", tokens)
        self.room(len(ids), threads)
        llama, batch = self._llama, self._batch
        batch.n_tokens = len(ids)
        wanted = set(rows)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, i in wanted
            batch.seq_id[i][0] = 0
        memory = llama.llama_get_memory(self._context)
        if memory:
            llama.llama_memory_clear(memory, False)
        llama.llama_set_causal_attn(self._context, causal)
        self._running = number
        status = llama.llama_decode(self._context, batch)
        if number <= self.cancelled:
            raise Failed("cancelled")
        if status:
            raise Failed(f"llama.cpp's forward pass ended with {status} ({self._said()})")
        llama.llama_synchronize(self._context)
        line = ctypes.c_float * self._vocab
        places = [llama.llama_get_logits_ith(self._context, row) for row in rows]
        return [line.from_address(ctypes.addressof(place.contents)) for place in places]

    def _aborts(self, data: Any) -> bool:
        return self._running <= self.cancelled

    def _logged(self, level: int, text: bytes, data: Any) -> None:
        if level >= 3:  # warnings and errors
            self._log.append(text.decode("utf-8", "replace").strip())

    def _said(self) -> str:
        return next((line for line in reversed(self._log) if line), "it does not say why")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(runner: Runner, source: BinaryIO, answers: BinaryIO) -> None:
    waiting: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def read() -> None:
        while (received := receive(source)) is not None:
            if received[0]["do"] == "cancel":
                runner.cancelled = received[0]["id"]
            else:
                waiting.put(received)
        os._exit(0)  # in the midst of a forward pass too: nobody is there any more

    threading.Thread(target=read, daemon=True).start()
    while True:
        message, data = waiting.get()
        lines: list[Any] = []
        answer: dict[str, Any] = {"id": message["id"]} if "id" in message else {}
        try:
            if message["do"] == "load":
                answer = runner.load(message["path"])
            elif message["do"] == "room":
                answer = runner.room(message["length"], message["threads"])
            else:
                how = message["threads"], message["causal"], message["rows"]
                lines = runner.logits(message["id"], *how, data)
        except Failed as failed:
            answer["error"] = str(failed)
        send(answers, answer, *lines)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed goes to stderr
    try:
        import llama_cpp as llama
    except Exception as error:  # a library of another machine raises anything
        send(answers, {"error": f"llama-cpp-python cannot be imported by {sys.executable} ({error})"})
        return
    runner = Runner(llama)
    found = {"version": llama.__version__, "gpu": bool(llama.llama_supports_gpu_offload())}
    send(answers, found)
    serve(runner, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
