"""What llama.cpp computes for one canvas: usage llama_logits.py MODEL.gguf TOKENS.npy OUT.npy logits|hidden

Runs in any Python that has llama-cpp-python and numpy, never in the tests' own process. Attention is not causal and all
rows are one physical batch. hidden: the last hidden rows of encoders, which it gives instead of logits.
"""

import ctypes
import sys
from typing import Any

import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    if level >= 3:
        sys.stderr.write(text.decode("utf-8", "replace"))


def main() -> None:
    path, tokens_path, out, what = sys.argv[1:]
    tokens = np.load(tokens_path)
    llama.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), options)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    shape = llama.llama_context_default_params()
    shape.n_ctx = shape.n_batch = shape.n_ubatch = len(tokens)
    shape.n_threads = shape.n_threads_batch = 2
    if hasattr(shape, "n_outputs_max"):
        shape.n_outputs_max = len(tokens)
    if what == "hidden":
        shape.embeddings = True
        shape.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
    context = llama.llama_init_from_model(model, shape)
    llama.llama_set_causal_attn(context, False)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    status = llama.llama_decode(context, batch)
    if status:
        raise SystemExit(f"llama_decode ended with {status}")
    if what == "hidden":
        rows, width = llama.llama_get_embeddings(context), llama.llama_model_n_embd(model)
    else:
        rows, width = llama.llama_get_logits(context), llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    np.save(out, np.ctypeslib.as_array(rows, (len(tokens), width)))


if __name__ == "__main__":
    main()
