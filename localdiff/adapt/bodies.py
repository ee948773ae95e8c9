"""The transformers classes that can be trained, as rows, and Scorer: one forward pass from tokens to a loss.

Scorer is the module that training, evaluation and sharding share. It runs the body with the attention mask that is
given, picks the rows that predict something, applies what stands before the output matrix (the dense layer and norm of
masked language models) to those rows alone, and ends in the fused cross-entropy. Not here: noise, masks, weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .fused import cross_entropy

Transform = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """A class of transformers.

    masked      a masked language model: bidirectional by itself, row i predicts token i
    transform   what stands between the body and the output matrix; None: nothing
    padded      position ids begin after the padding token's row, as in RoBERTa
    windowed    some layers see config.sliding_window positions to either side only, and take a mask of their own
    """

    masked: bool = False
    transform: Transform | None = None
    padded: bool = False
    windowed: bool = False


def _roberta_head(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    normed: Tensor = head.layer_norm(nn.functional.gelu(head.dense(hidden)))
    return normed


def _bert_head(model: Any, hidden: Tensor) -> Tensor:
    found: Tensor = model.cls.predictions.transform(hidden)
    return found


def _modernbert_head(model: Any, hidden: Tensor) -> Tensor:
    found: Tensor = model.head(hidden)
    return found


_ROBERTA = Family(True, _roberta_head, padded=True)
FAMILIES: dict[str, Family] = {
    "GPT2LMHeadModel": Family(),
    "LlamaForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(),
    "Qwen3ForCausalLM": Family(),
    "BertForMaskedLM": Family(True, _bert_head),
    "RobertaForMaskedLM": _ROBERTA,
    "XLMRobertaForMaskedLM": _ROBERTA,
    "XLMRobertaXLForMaskedLM": _ROBERTA,
    "ModernBertForMaskedLM": Family(True, _modernbert_head, windowed=True),
}


def family_of(model: Any) -> Family:
    return FAMILIES[type(model).__name__]


def first_position(model: Any) -> int:
    """The row of the position embedding that the first token uses."""
    return int(model.config.pad_token_id) + 1 if family_of(model).padded else 0


@dataclass(frozen=True)
class Inputs:
    """What one forward pass reads.

    tokens      int64 [n, length]
    attention   None: the model's own mask; bool [n, length]: False at padding (masked language models);
                [1 or n, 1, length, length] additive: 0 where row i sees position j, the dtype's minimum elsewhere;
                what a layer with a window does not see is closed besides
    rows        int64 [k], ascending targets: index into the flattened n * length rows, of the row that predicts each
    targets     int64 [k], the tokens to be predicted
    positions   int64 [length]; None: 0, 1, 2, ...
    """

    tokens: Tensor
    attention: Tensor | None
    rows: Tensor
    targets: Tensor
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Inputs:
        moved = (self.tokens, self.attention, self.rows, self.targets, self.positions)
        return Inputs(*(None if tensor is None else tensor.to(device) for tensor in moved))  # type: ignore[arg-type]


class Scorer(nn.Module):
    """The model under training with its loss. `length_head` is trained beside it where there is one."""

    def __init__(self, model: Any, length_head: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.length_head = length_head
        self._family = family_of(model)
        self._first = first_position(model)

    def hidden(self, tokens: Tensor, attention: Tensor | None, positions: Tensor | None) -> Tensor:
        """[n, length, dim]: what the body makes of the tokens."""
        count, length = tokens.shape
        if positions is None:
            positions = torch.arange(length, device=tokens.device)
        masks: Tensor | dict[str, Tensor] | None = attention
        if attention is not None and attention.dim() == 4:
            masks = whole = attention.expand(count, 1, -1, -1)
            if self._family.windowed:
                near = within_window(whole, positions, self.model.config.sliding_window)
                masks = {"full_attention": whole, "sliding_attention": near}
        more = {} if self._family.masked else {"use_cache": False}
        hidden: Tensor = self.model.base_model(
            input_ids=tokens,
            attention_mask=masks,
            position_ids=(positions + self._first).expand(count, length),
            **more,
        ).last_hidden_state
        return hidden

    def forward(
        self,
        inputs: Inputs,
        weights: Tensor,
        smoothing: Tensor | None = None,
        sources: tuple[Tensor, Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weighted loss, the cross-entropy of every target, and the loss of the length head.

        weights, smoothing   float32 [k], see fused.cross_entropy
        sources              tokens int64 [n, s], which of them are no padding, and the length classes int64 [n]
        dtype                of the product with the output matrix
        """
        hidden = self.hidden(inputs.tokens, inputs.attention, inputs.positions).flatten(0, 1)[inputs.rows]
        if self._family.transform is not None:
            hidden = self._family.transform(self.model, hidden)
        head = self.model.get_output_embeddings()
        loss, entropies = cross_entropy(hidden, head.weight, head.bias, inputs.targets, weights, smoothing, dtype)
        if sources is None or self.length_head is None:
            return loss, entropies, None
        return loss, entropies, self._length_loss(*sources)

    def _length_loss(self, tokens: Tensor, valid: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            attention = valid if self._family.masked else padding_mask(valid, torch.float32)
            features = self.hidden(tokens, attention, None)
        assert self.length_head is not None
        return nn.functional.cross_entropy(self.length_head(features.float(), valid).float(), classes)


def within_window(attention: Tensor, positions: Tensor, window: int) -> Tensor:
    """An additive mask [n, 1, length, length] closed too where positions, int64 [length], are over `window` apart."""
    far = (positions[:, None] - positions[None, :]).abs() > window
    return attention.masked_fill(far, torch.finfo(attention.dtype).min)


def padding_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [n, 1, length, length] that hides what is not `valid`, bool [n, length]."""
    length = valid.shape[1]
    closed = ~valid[:, None, None, :].expand(-1, 1, length, -1)
    return torch.zeros(closed.shape, dtype=dtype, device=valid.device).masked_fill_(closed, torch.finfo(dtype).min)
