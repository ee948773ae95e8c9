"""Batch: the token sequences of one forward pass, and which of their tokens are given or padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """
    tokens   int64 [n, length]
    given    bool [n, length], True where a token is never hidden nor scored (prompts); None: nowhere
    valid    bool [n, length], False at padding that is neither seen nor scored; None: everything counts
    """

    tokens: Tensor
    given: Tensor | None = None
    valid: Tensor | None = None

    def sources(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a length head reads and shall say: the given tokens int64 [n, s], which of them are no padding, and
        the class of the number of the others, the end token included: that number - 2, at least 0, so that class 0
        means one token before the end token (arXiv:2308.12219)."""
        assert self.given is not None
        present = torch.ones_like(self.given) if self.valid is None else self.valid
        source = self.given & present
        longest = max(1, int(source.sum(dim=1).max()))
        classes = ((~self.given & present).sum(dim=1) - 2).clamp(min=0)
        return self.tokens[:, :longest], source[:, :longest], classes
