"""The same files in llama.cpp, in a process of its own, wherever it knows the architecture.

It gives no logits for encoders, and refuses files with a masked-language-model head: there its last hidden rows go
through the head in the float64 reference. Budget: KL of 1e-4, which its half-precision tables of activations need.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from architectures import FAMILIES, VOCAB, make_model, metadata_of, tensors_of, write_gguf
from reference import Reference, kl_divergence
from test_architectures import engine_logits, tokens_of

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(os.environ.get("LOCALDIFF_PEER", ROOT / ".venv-peers" / "bin" / "python"))
BUDGET = 1e-4
# XLM-R XL: its pre-norm layout has no counterpart there. llada2: a name that its releases do not have.
KNOWN = [name for name in FAMILIES if name not in ("XLM-R XL", "LLaDA2 as llada2")]

pytestmark = pytest.mark.skipif(
    not PEER.is_file(),
    reason=f"no llama.cpp: {PEER} is missing (tools/dev peers makes it, LOCALDIFF_PEER names another)",
)


@pytest.mark.parametrize("name", KNOWN)
def test_logits_equal_llama_cpp(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    model = make_model(family)
    tensors, tokens = tensors_of(family, model), tokens_of(33, 5)
    metadata = {
        **metadata_of(family, model),
        f"{family.arch}.vocab_size": VOCAB,
        f"{family.arch}.attention.causal": False,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.token_type_count": 2,
    }
    ours = write_gguf(tmp_path / "ours.gguf", family.arch, metadata, tensors)
    head = ("mlm_", "output.") if family.is_encoder else ()
    body = {key: value for key, value in tensors.items() if not key.startswith(head)}
    theirs = write_gguf(tmp_path / "theirs.gguf", family.arch, metadata, body)
    np.save(tmp_path / "tokens.npy", tokens)
    out = tmp_path / "out.npy"
    what = "hidden" if family.is_encoder else "logits"
    command = [PEER, Path(__file__).with_name("llama_logits.py"), theirs, tmp_path / "tokens.npy", out, what]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = np.load(out)
    expected = Reference(ours).head(rows.astype(np.float64)) if family.is_encoder else rows
    divergence = kl_divergence(expected, engine_logits(ours, tokens))
    print(f"{name}: KL {divergence:.1e}")
    assert divergence <= BUDGET
