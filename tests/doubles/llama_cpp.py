"""A double of llama-cpp-python for the process of the backend: the functions that it calls, computed by the engine.

Logits are the engine's own, so that texts must be the same to the bit. What $LLAMA_DOUBLE names as a file decides how a
forward pass goes: "die" aborts the process, "wait" goes on until it is told to abort, "hang" for ever, "fail" gives a
status; without the file it is computed. The number of the process is written to that file with .pid behind it.
"""

import ctypes
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from localdiff.engine import EngineModel, File, Request

__version__ = "0.0-double"
MODE = Path(os.environ["LLAMA_DOUBLE"])
MODE.with_suffix(".pid").write_text(str(os.getpid()))


def llama_log_callback(function):
    return function


def ggml_abort_callback(function):
    return function


def llama_log_set(callback, data):
    llama_log_set.callback = callback


def llama_backend_init():
    print("printed at start, as libraries do")


def llama_supports_gpu_offload():
    return False


def llama_model_default_params():
    return SimpleNamespace(n_gpu_layers=0)


def llama_model_load_from_file(path, options):
    if os.fsdecode(path).endswith("unknown.gguf"):
        llama_log_set.callback(4, b"unknown model architecture\n", None)
        return None
    with File.open(os.fsdecode(path)) as file:
        return EngineModel(file)


def llama_model_get_vocab(model):
    return model


def llama_vocab_n_tokens(vocab):
    return vocab.info.vocab


def llama_context_default_params():
    return SimpleNamespace()


def llama_init_from_model(model, shape):
    assert shape.n_ctx == shape.n_batch == shape.n_ubatch
    session = model.session(slot_length=shape.n_ctx, threads=shape.n_threads)
    return SimpleNamespace(session=session, shape=shape, causal=True, logits={}, threads=shape.n_threads)


def llama_free(context):
    context.session.close()


def llama_n_ubatch(context):
    return context.shape.n_ubatch


def llama_set_n_threads(context, one, many):
    context.threads = many


def llama_batch_init(length, width, sequences):
    places = [[0] for _ in range(length)]
    return SimpleNamespace(
        n_tokens=0, token=[0] * length, pos=[0] * length, n_seq_id=[0] * length, logits=[0] * length, seq_id=places
    )


def llama_batch_free(batch):
    batch.token = None


def llama_get_memory(context):
    return None


def llama_set_causal_attn(context, causal):
    context.causal = causal


def llama_decode(context, batch):
    mode = MODE.read_text() if MODE.is_file() else ""
    if mode == "die":
        MODE.unlink()
        os.write(2, b"GGML_ASSERT(n_tokens <= n_ubatch) failed\n")
        os.abort()
    if mode == "fail":
        return -3
    while mode and not (mode == "wait" and context.shape.abort_callback(None)):
        time.sleep(0.01)
    if mode:
        return 2
    count = batch.n_tokens
    assert batch.pos[:count] == list(range(count))
    rows = np.array([i for i in range(count) if batch.logits[i]], np.int32)
    attention = "causal" if context.causal else "full"
    request = Request(np.array(batch.token[:count], np.int32), rows, attention=attention)
    context.logits = dict(zip(rows.tolist(), context.session.logits([request])[0], strict=True))
    return 0


def llama_synchronize(context):
    pass


def llama_get_logits_ith(context, row):
    return context.logits[row].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
