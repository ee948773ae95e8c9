"""llama.cpp as a peer of compare.py and gpu.py: usage peer_llama.py MODEL.gguf THREADS ROWS repack|plain|gpu

Runs in any Python that has llama-cpp-python and numpy. The context is made for ROWS rows in one physical batch, which
bidirectional attention needs; everything else is llama.cpp's default. `plain` turns off the repacking of weights, which
is faster for some types; `gpu` puts all layers on the GPU.

forward  llama_decode of all rows with logits for all of them, attention not causal
step     one step of its diffusion example, restated: logits at every position, then for each masked one the likeliest
         token and its probability; the restatement is vectorised, the original samples position by position
answer   such steps one after the other, of an answer of which each settles as many tokens as the others
write    the same number of tokens as an autoregressive model writes them: the prompt in one batch, then one at a time,
         the likeliest, with llama.cpp's own cache
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llama_cpp as llama
import numpy as np
from peer import serve, timed, tokens


@llama.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    pass


class Peer:
    def __init__(self, path: str, threads: int, rows: int, how: str) -> None:
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        if how == "gpu" and not llama.llama_supports_gpu_offload():
            raise SystemExit(f"llama-cpp-python {llama.__version__} was built without a GPU")
        options.n_gpu_layers = 9999 if how == "gpu" else 0
        options.use_extra_bufts = how != "plain"
        self._model = llama.llama_model_load_from_file(path.encode(), options)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        shape = llama.llama_context_default_params()
        shape.n_ctx = shape.n_batch = shape.n_ubatch = shape.n_outputs_max = rows
        shape.n_threads = shape.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, shape)
        if not self._context or llama.llama_n_ubatch(self._context) < rows:
            raise SystemExit(f"llama.cpp cannot make a context for a batch of {rows} rows")
        llama.llama_set_causal_attn(self._context, False)
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(rows, 0, 1)

    def decode(self, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits [rows, vocab], a view that the next call overwrites."""
        self._clear()
        return self._run(tokens(self._vocab, rows), 0, rows)

    def _clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)

    def _run(self, ids: list[int], first: int, scored: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits of the last `scored` of these tokens, which stand from the position `first` on."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
            batch.logits[i] = i >= len(ids) - scored
            batch.seq_id[i][0] = 0
        status = llama.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode ended with {status}")
        llama.llama_synchronize(self._context)
        return np.ctypeslib.as_array(llama.llama_get_logits(self._context), (scored, self._vocab))

    def forward(self, rows: int) -> dict[str, Any]:
        return timed(lambda: self.decode(rows))

    def step(self, prompt: int, answer: int) -> dict[str, Any]:
        return timed(lambda: self._best(prompt + answer, slice(prompt, None, 2)))

    def _best(self, rows: int, masked: slice) -> tuple[Any, Any]:
        logits = self.decode(rows)[masked]
        token = logits.argmax(axis=1)
        largest = logits[np.arange(len(logits)), token]
        return token, 1 / np.exp(logits - largest[:, None]).sum(axis=1)

    def answer(self, prompt: int, answer: int, steps: int) -> dict[str, Any]:
        def work() -> None:
            for step in range(steps):
                self._best(prompt + answer, slice(prompt + answer * step // steps, None))

        return timed(work)

    def write(self, prompt: int, answer: int) -> dict[str, Any]:
        def work() -> None:
            llama.llama_set_causal_attn(self._context, True)
            self._clear()
            given = tokens(self._vocab, prompt)
            for at in range(answer):
                logits = self._run(given, at and prompt + at - 1, 1)
                given = [int(logits[0].argmax())]
            llama.llama_set_causal_attn(self._context, False)

        return timed(work)

    def logits(self, rows: int, to: str) -> dict[str, Any]:
        np.save(to, self.decode(rows))
        return {}


def main() -> None:
    path, threads, rows, how = sys.argv[1:]
    peer = Peer(path, int(threads), int(rows), how)
    info = {"version": llama.__version__, "system": llama.llama_print_system_info().decode()}
    operations = {"forward": peer.forward, "step": peer.step, "answer": peer.answer, "write": peer.write}
    serve({**operations, "logits": peer.logits}, info)


if __name__ == "__main__":
    main()
