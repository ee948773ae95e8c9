"""Training objectives: noise, attention annealing and losses, one table row per method.

diffugpt   the step of DiffuGPT/DiffuLLaMA (arXiv:2410.17891): absorbing noise at one time t per sequence, attention
           opened at random while training proceeds, shifted cross-entropy on masked tokens weighted 1/t
ar         next-token cross-entropy under the causal mask

The head runs only on the rows that are scored. Random numbers come from the generator passed in. Not here: optimiser,
data, devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MIN_TIME = 0.001  # t is drawn from [0.001, 1)


@dataclass(frozen=True)
class Losses:
    """What one forward pass yields: the loss to differentiate, the plain mean to watch, the tokens it scored."""

    loss: Tensor  # scalar
    plain: Tensor  # scalar, unweighted mean cross-entropy of the scored tokens
    scored: int


@dataclass(frozen=True)
class Setting:
    """What an objective may depend on besides the batch."""

    mask_token: int | None
    open_fraction: float  # r of the annealing, 0 = causal, 1 = fully bidirectional
    generator: torch.Generator


def draw_times(batch: int, generator: torch.Generator) -> Tensor:
    """One time per sequence, float32 [batch], 0.001 + 0.999 u with u uniform on [0, 1)."""
    return MIN_TIME + (1 - MIN_TIME) * torch.rand(batch, generator=generator)


def add_noise(
    tokens: Tensor, times: Tensor, mask_token: int, generator: torch.Generator, given: Tensor | None = None
) -> Tensor:
    """Replace each token by the mask with the probability of its sequence.

    tokens   int64 [batch, length]
    times    float32 [batch], masking probability of each sequence
    given    bool [batch, length], True where a token is never replaced; None: nowhere
    """
    noised = torch.rand(tokens.shape, generator=generator) < times[:, None]
    if given is not None:
        noised &= ~given
    return torch.where(noised, mask_token, tokens)


def open_fraction(step: int, anneal_steps: int) -> float:
    """Share of future positions that are visible at a step (0-based): it grows linearly to 1."""
    return min(1.0, (step + 1) / anneal_steps)


def annealed_mask(length: int, fraction: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [1, 1, length, length]: 0 where row i may see position j, the dtype's minimum elsewhere.

    The lower triangle is always visible; above it each entry is open with probability `fraction`. One matrix serves
    all sequences, heads and layers of the call.
    """
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible |= torch.rand(length, length, generator=generator) < fraction
    mask = torch.zeros(length, length, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[None, None]


def scored_logits(model: Any, tokens: Tensor, attention: Tensor | None, rows: Tensor) -> Tensor:
    """Logits float32 [n, vocab] of the chosen rows; `rows` is bool [batch, length].

    attention   additive mask [1 or batch, 1, length, length]; None: the model's own causal mask
    """
    if attention is not None:
        attention = attention.expand(len(tokens), 1, -1, -1)
    hidden = model.base_model(input_ids=tokens, attention_mask=attention, use_cache=False).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden[rows])
    return logits.float()


def shifted_rows(targets: Tensor) -> Tensor:
    """Rows whose logits predict the chosen targets when row i - 1 predicts token i; position 0 has none."""
    rows = torch.zeros_like(targets)
    rows[:, :-1] = targets[:, 1:]
    return rows


def diffugpt_losses(logits: Tensor, tokens: Tensor, noised: Tensor, times: Tensor, mask_token: int) -> Losses:
    """sum (1/t) CE over the masked positions from 1 on, divided by their number in the batch.

    logits   float32 [n, vocab] of the rows `shifted_rows(noised == mask_token)`, in order
    A genuine token equal to the mask counts as masked, as in the original code.
    """
    scored = (noised == mask_token)[:, 1:]
    entropies = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][scored], reduction="none")
    weights = (1 / times)[:, None].expand_as(scored)[scored]
    count = max(1, int(scored.sum()))  # a batch without a masked token has loss 0
    return Losses((weights * entropies).sum() / count, entropies.sum().detach() / count, int(scored.sum()))


def diffugpt(model: Any, tokens: Tensor, setting: Setting, dtype: torch.dtype, given: Tensor | None = None) -> Losses:
    assert setting.mask_token is not None
    times = draw_times(len(tokens), setting.generator)
    noised = add_noise(tokens, times, setting.mask_token, setting.generator, given)
    attention = annealed_mask(tokens.shape[1], setting.open_fraction, setting.generator, dtype)
    logits = scored_logits(model, noised, attention, shifted_rows(noised == setting.mask_token))
    return diffugpt_losses(logits, tokens, noised, times, setting.mask_token)


def autoregressive(
    model: Any, tokens: Tensor, setting: Setting, dtype: torch.dtype, given: Tensor | None = None
) -> Losses:
    targets = torch.ones_like(tokens, dtype=torch.bool) if given is None else ~given
    logits = scored_logits(model, tokens, None, shifted_rows(targets))
    scored = targets[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][scored])
    return Losses(loss, loss.detach(), int(scored.sum()))


@dataclass(frozen=True)
class Method:
    """One training method. `diffusion` says whether the result is a diffusion model with a mask and a record."""

    losses: Callable[..., Losses]
    diffusion: bool


METHODS: dict[str, Method] = {
    "diffugpt": Method(diffugpt, diffusion=True),
    "ar": Method(autoregressive, diffusion=False),
}
