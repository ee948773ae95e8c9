"""The training methods as rows: what each one is, which settings have a meaning for it, and what it defaults to.

Formulas are in objective.py under the same names. Imports nothing heavy: options.py and the command line read the rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One training method.

    diffusion   the result is a diffusion model with a mask token and a record
    weights     how the loss of one masked token may be weighted, the default first; empty: no choice
    shift       row i - 1 predicts token i unless told otherwise; on masked language models it never does
    bases       kinds of base it can start from: causal, masked
    settings    options that have a meaning for this method alone or for few
    anneal      steps until attention is bidirectional unless told otherwise, at most half of all
    pads        padding of prompts and answers is scored, so that the model learns to end an answer with it; otherwise
                padding is neither scored nor seen
    decoder     recorded as the default of generation; None: the runtime's own
    """

    diffusion: bool = True
    weights: tuple[str, ...] = ()
    shift: bool = False
    bases: tuple[str, ...] = ("causal",)
    settings: frozenset[str] = frozenset()
    anneal: int = 1
    pads: bool = True
    decoder: str | None = None


TABLE: dict[str, Method] = {
    # arXiv:2410.17891
    "diffugpt": Method(shift=True, settings=frozenset({"shift", "anneal_steps", "times", "spans"}), anneal=10000),
    # arXiv:2406.07524, arXiv:2502.09992
    "mdlm": Method(
        weights=("1/t", "uniform"),
        bases=("causal", "masked"),
        settings=frozenset({"weight", "normalise", "shift", "anneal_steps", "times", "spans"}),
    ),
    # arXiv:2302.05737, arXiv:2308.12219
    "rdm": Method(
        weights=("linear", "constant"),
        shift=True,
        bases=("masked", "causal"),
        settings=frozenset(
            {"weight", "shift", "anneal_steps", "timesteps", "mask_ratio", "label_smoothing", "length_head"}
        ),
        pads=False,
        decoder="rdm",
    ),
    # arXiv:2503.09573
    "bd3lm": Method(
        weights=("1/t", "uniform"),
        bases=("causal", "masked"),
        settings=frozenset({"weight", "normalise", "shift", "block_length", "times"}),
    ),
    "ar": Method(diffusion=False, shift=True, pads=False),
}
NORMALISERS = ("token", "sequence", "batch")
ALL_WEIGHTS = tuple(dict.fromkeys(weight for method in TABLE.values() for weight in method.weights))
SPECIAL_SETTINGS = tuple(sorted({name for method in TABLE.values() for name in method.settings}))
BLOCK_LENGTH = 32
TIMESTEPS = 50
