"""localdiff eval: how good a model is, measured on our own engine; no torch.

    from localdiff.evaluate import evaluate
    result = evaluate("model.gguf", task="nll", data=("held-out.txt",))

tasks.py      one row per task: what it reads, what is done with it, the published settings
options.py    every setting, checked           reading.py    texts and data sets -> items
noise.py      what is masked, with which weight  scorer.py   likelihoods: exact, bounds, bounds of block models
likelihood.py choosing.py filling.py answering.py writing.py   the five things that are done with items
metrics.py    ROUGE, numbers in answers, entropy  execution.py  running generated code, only where asked
ledger.py     finished items on disk, to resume  run.py      evaluate(): ties them together
lm_eval.py    the adapter for the lm-eval harness
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import EvalOptions

if TYPE_CHECKING:
    from .run import EvalResult, evaluate

__all__ = ["EvalOptions", "EvalResult", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in ("EvalResult", "evaluate"):
        from . import run

        return getattr(run, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
