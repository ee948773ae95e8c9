"""localdiff adapt: turn an autoregressive or masked language model into a diffusion model, or train an ordinary one.

    from localdiff.adapt import AdaptOptions, adapt
    adapt(AdaptOptions(base="gpt2-folder", output="out", data=("stories.txt",), mask_token="<mask>"))

options.py       every setting, checked            config_file.py   the same from TOML
methods.py       the methods, as rows              objective.py     their noise and losses
noise.py         times, masks, annealing, blocks   batch.py         token sequences, given tokens, padding
base.py          the checkpoint to start from      bodies.py        the classes it may be of, forward pass to loss
base_files.py    GGUF and llama2.c files           fused.py         cross-entropy of masked rows
lora.py          adapters through peft             length_head.py   answer lengths
sources.py       which data a run reads            data.py          text files -> packed token sequences
reading.py       text files -> documents           stream.py        text read while training
instruct.py      prompts and answers
trainer.py       the training loop                 processes.py     one process or many (FSDP2)
checkpoint.py    atomic checkpoints, exact resume  progress.py      bar, JSON log, loss curve
bound.py         held-out likelihood               flops.py         work done, share of the peak
run.py           adapt(): ties them together

torch, safetensors and transformers (extra [train]) are imported when adapt() runs, not with this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LocaldiffError
from .options import AdaptOptions

if TYPE_CHECKING:
    from .progress import Progress
    from .run import AdaptResult

__all__ = ["AdaptOptions", "adapt"]


def adapt(options: AdaptOptions, progress: Progress | None = None) -> AdaptResult:
    """Train as `options` say and write the result, an HF folder, to `options.output`.

    progress   told of every step; None: silent
    raises     OptionError, ModelFileError for bad input; KeyboardInterrupt after Ctrl-C, with a checkpoint written
    """
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise LocaldiffError(
            f"training needs the package '{error.name}', which is not installed; run: pip install 'localdiff[train]'"
        ) from None
    from .run import run

    return run(options, progress)
