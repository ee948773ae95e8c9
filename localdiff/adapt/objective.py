"""Training objectives: what a batch becomes (noise), which tokens are scored, and what each weighs.

diffugpt   one time t per sequence; (1/t) CE over the masked positions, divided by their number in the batch
           (arXiv:2410.17891, and the authors' code for the divisor)
mdlm       one t per sequence; (1/t) CE or CE, divided by the maskable tokens of the batch or of the sequence, or by
           the number of sequences (arXiv:2406.07524, equation 10, with alpha = 1 - t)
rdm        two coupled steps t of T per sequence; (T - t + 1) CE or T CE, divided by the maskable tokens of the
           sequence, averaged over both halves (arXiv:2302.05737, arXiv:2308.12219)
bd3lm      mdlm with one t per block of B tokens; a block sees itself and the clean blocks before it
           (arXiv:2503.09573, equation 8)
ar         next-token cross-entropy under the causal mask

Not here: the forward pass (bodies.py), optimiser, data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import methods, noise
from .batch import Batch
from .bodies import Inputs, Scorer, padding_mask


@dataclass(frozen=True)
class Objective:
    """A method with its settings resolved.

    weight           one of the method's weights, "" where it has none
    normalise        what mdlm and bd3lm divide by, one of methods.NORMALISERS
    shift            row i - 1 predicts token i
    masked_base      the base is a masked language model, whose attention is bidirectional by itself
    block            tokens per block of bd3lm
    timesteps        T of rdm; mask_ratio a fixed share of masked tokens in place of a drawn one
    label_smoothing  of rdm: that share of the loss is the mean over the vocabulary, weighted T
    stratified       the times of a batch are spread evenly (noise.draw_times)
    spans            share of the sequences of diffugpt and mdlm that hide one run of tokens (noise.draw_spans)
    """

    method: str
    mask_token: int | None
    weight: str = ""
    normalise: str = "token"
    shift: bool = True
    masked_base: bool = False
    block: int = 0
    timesteps: int = methods.TIMESTEPS
    mask_ratio: float | None = None
    label_smoothing: float = 0.0
    stratified: bool = False
    spans: float = 0.0

    @property
    def row(self) -> methods.Method:
        return methods.TABLE[self.method]


@dataclass(frozen=True)
class Noised:
    """A batch after the noise. All [n, length]; n is twice the batch for rdm.

    tokens      int64, what the model sees
    original    int64, what it shall predict
    scored      bool, where it is asked; never position 0 under shift, which no row predicts
    weights     float32, of the cross-entropy of each token, divisors included
    smoothing   float32, of the mean over the vocabulary; None: no label smoothing
    valid       bool, False where padding is not to be seen; None: everything is seen
    """

    tokens: Tensor
    original: Tensor
    scored: Tensor
    weights: Tensor
    smoothing: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """What one forward pass yields: the loss to differentiate, the plain mean to watch, the tokens it scored."""

    loss: Tensor  # scalar
    plain: Tensor  # scalar, unweighted mean cross-entropy of the scored tokens
    scored: int
    rows: int  # that went through the body, row_length of them attending to each other
    row_length: int
    length_loss: Tensor | None = None  # of the length head


def maskable_of(batch: Batch, shift: bool) -> Tensor:
    """bool [n, length]: what noise may hide and the loss may score."""
    maskable = torch.ones_like(batch.tokens, dtype=torch.bool)
    if batch.given is not None:
        maskable &= ~batch.given
    if batch.valid is not None:
        maskable &= batch.valid
    if shift:
        maskable[:, 0] = False
    return maskable


def _hidden(times: Tensor, maskable: Tensor, objective: Objective, generator: torch.Generator) -> Tensor:
    """bool [n, length], what the noise of diffugpt and mdlm hides. times: float32 [n]."""
    hidden = noise.draw_masked(times, maskable, generator)
    if not objective.spans:
        return hidden
    chosen = torch.rand(len(times), generator=generator) < objective.spans
    return torch.where(chosen[:, None], noise.draw_spans(times, maskable, generator), hidden)


def _diffugpt(batch: Batch, objective: Objective, generator: torch.Generator) -> Noised:
    assert objective.mask_token is not None
    tokens = batch.tokens
    times = noise.draw_times(len(tokens), generator, objective.stratified)
    # every position may be hidden, the first included; it is the loss that leaves the first out under shift
    hidden = _hidden(times, maskable_of(batch, shift=False), objective, generator)
    noised = torch.where(hidden, objective.mask_token, tokens)
    scored = noised == objective.mask_token  # a genuine token equal to the mask counts, as in the authors' code
    if objective.shift:
        scored[:, 0] = False
    count = scored.sum().clamp(min=1)  # a batch without a masked token has loss 0
    return Noised(noised, tokens, scored, (1 / times / count)[:, None].expand_as(scored), valid=batch.valid)


def _masked_diffusion(batch: Batch, objective: Objective, generator: torch.Generator) -> Noised:
    """mdlm and bd3lm."""
    assert objective.mask_token is not None
    tokens, maskable = batch.tokens, maskable_of(batch, objective.shift)
    if objective.block:
        blocks = torch.arange(tokens.shape[1]) // objective.block
        times = noise.draw_times((len(tokens), int(blocks[-1]) + 1), generator, objective.stratified)[:, blocks]
        scored = noise.draw_masked(times, maskable, generator)
    else:
        drawn = noise.draw_times(len(tokens), generator, objective.stratified)
        scored, times = _hidden(drawn, maskable, objective, generator), drawn[:, None].expand(tokens.shape)
    weights = 1 / times if objective.weight == "1/t" else torch.ones_like(times)
    if objective.normalise == "token":
        weights = weights / maskable.sum().clamp(min=1)
    elif objective.normalise == "sequence":
        weights = weights / (maskable.sum(dim=1, keepdim=True).clamp(min=1) * len(tokens))
    else:
        weights = weights / len(tokens)
    noised = torch.where(scored, objective.mask_token, tokens)
    return Noised(noised, tokens, scored, weights, valid=batch.valid)


def _reparameterised(batch: Batch, objective: Objective, generator: torch.Generator) -> Noised:
    assert objective.mask_token is not None
    tokens, maskable, total = batch.tokens, maskable_of(batch, objective.shift), objective.timesteps
    first, second = noise.draw_steps(len(tokens), total, objective.mask_ratio, generator)
    outer, inner = noise.draw_coupled(first, second, total, maskable, generator)
    scored, steps = torch.cat([outer, inner]), torch.cat([first, second])
    twice = tokens.repeat(2, 1)
    divisor = maskable.sum(dim=1).clamp(min=1).repeat(2) * len(twice)
    factor = total - steps + 1 if objective.weight == "linear" else torch.full_like(steps, total)
    share = objective.label_smoothing
    weights = ((1 - share) * factor / divisor)[:, None].expand_as(scored)
    smoothing = (share * total / divisor)[:, None].expand_as(scored) if share else None
    valid = None if batch.valid is None else batch.valid.repeat(2, 1)
    return Noised(torch.where(scored, objective.mask_token, twice), twice, scored, weights, smoothing, valid)


def _autoregressive(batch: Batch, objective: Objective, generator: torch.Generator) -> Noised:
    scored = maskable_of(batch, shift=True)
    count = scored.sum().clamp(min=1)
    return Noised(batch.tokens, batch.tokens, scored, (1 / count).expand(scored.shape))


NOISES: dict[str, Callable[[Batch, Objective, torch.Generator], Noised]] = {
    "diffugpt": _diffugpt,
    "mdlm": _masked_diffusion,
    "rdm": _reparameterised,
    "bd3lm": _masked_diffusion,
    "ar": _autoregressive,
}


def lay_out(
    noised: Noised, objective: Objective, opened: float, generator: torch.Generator, dtype: torch.dtype
) -> Inputs:
    """What the model reads for a noised batch, and which of its rows predict the scored tokens.

    opened   share of future positions that are visible (noise.open_fraction)
    dtype    of additive masks

    Under block attention the noised sequence is followed by the clean one. There, with shift, the first token of a
    block is predicted by the clean last row of the block before, which is what a runtime has when it starts a block.
    """
    tokens, length = noised.tokens, noised.tokens.shape[1]
    sequence, place = noised.scored.nonzero(as_tuple=True)
    source = place - 1 if objective.shift else place
    targets = noised.original[noised.scored]
    attention: Tensor | None
    if objective.block:
        if objective.shift:
            source = torch.where(place % objective.block == 0, length + source, source)
        both = torch.cat([tokens, noised.original], dim=1)
        attention = noise.block_mask(length, objective.block, dtype)
        positions = torch.arange(length).repeat(2)
        return Inputs(both, attention, sequence * 2 * length + source, targets, positions)
    if not objective.row.diffusion:
        attention = None
    elif objective.masked_base:
        attention = noised.valid
    else:
        attention = noise.annealed_mask(length, opened, generator, dtype)
        if noised.valid is not None:
            attention = torch.minimum(attention, padding_mask(noised.valid, dtype))
    return Inputs(tokens, attention, sequence * length + source, targets)


def losses(
    scorer: Scorer,
    batch: Batch,
    objective: Objective,
    opened: float,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Losses:
    """Noise a batch and score it once."""
    noised = NOISES[objective.method](batch, objective, generator)
    inputs = lay_out(noised, objective, opened, generator, dtype)
    weights = noised.weights[noised.scored]
    smoothing = None if noised.smoothing is None else noised.smoothing[noised.scored]
    sources = batch.sources() if scorer.length_head is not None else None
    if device is not None:
        inputs, weights = inputs.to(device), weights.to(device)
        smoothing = None if smoothing is None else smoothing.to(device)
        sources = None if sources is None else tuple(tensor.to(device) for tensor in sources)  # type: ignore[assignment]
    loss, entropies, length_loss = scorer(inputs, weights, smoothing, sources, dtype)
    plain = entropies.sum() / max(1, len(entropies))
    return Losses(loss, plain, len(entropies), inputs.tokens.numel(), inputs.tokens.shape[1], length_loss)
