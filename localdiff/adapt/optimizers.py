"""How weights move: the optimisers of a run, and a running average of the weights.

A list of torch optimisers shares the parameters out: AdamW alone, or Muon for the matrices of the layers and AdamW for
embeddings, output matrix, norms and biases. The average is what is evaluated and published where it is asked for; the
weights that are trained stay their own. Not here: the rate of a step (trainer.py), saving (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .bodies import Scorer
from .options import AdaptOptions
from .processes import Processes, layers_of


def build_optimizers(scorer: Scorer, options: AdaptOptions, processes: Processes) -> list[torch.optim.Optimizer]:
    """AdamW without weight decay on norms and biases, which are the parameters of one dimension. Muon
    (arXiv:2502.16982) scales its orthogonal steps to the size of AdamW's, so that both have one learning rate."""
    parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if options.optimizer == "muon":
        processes.alone("--optimizer muon")
        inside = {id(parameter) for layer in layers_of(scorer.model) for parameter in layer.parameters()}
        matrices = [p for p in parameters if id(p) in inside and p.dim() == 2]
        parameters = [p for p in parameters if id(p) not in {id(matrix) for matrix in matrices}]
        optimizers.append(
            torch.optim.Muon(matrices, lr=options.lr, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (options.beta1, options.beta2)
    return [*optimizers, torch.optim.AdamW(groups, lr=options.lr, betas=betas, fused=True)]


class Average:
    """Exponential moving average of the trained weights of a module; `weights` in the order of its parameters.

    decay   of the average per step; smaller at first, (1 + step) / (10 + step), so that the start is forgotten
    """

    def __init__(self, module: torch.nn.Module, decay: float, processes: Processes) -> None:
        processes.alone("--ema")
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._decay = decay
        self.weights = [parameter.detach().clone() for parameter in self._trained]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (1-based)."""
        trained: list[Tensor] = [*self._trained]
        torch._foreach_lerp_(self.weights, trained, 1 - min(self._decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor]) -> None:
        for own, saved in zip(self.weights, weights, strict=True):
            own.copy_(saved)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the module has the average; afterwards its own weights again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._trained]
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor]) -> None:
        for parameter, values in zip(self._trained, weights, strict=True):
            parameter.copy_(values)
