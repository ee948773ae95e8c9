"""The length head of arXiv:2308.12219: it reads a prompt and says how many tokens the answer has.

One Transformer encoder layer (post-norm, ReLU, dropout 0.1) over the hidden states of the language model, which get no
gradient; the mean over the prompt's tokens; Linear, tanh, Linear to one class per length. Class c means c + 1 tokens
before the end token. It is kept beside the model as length_head.safetensors. Not here: its loss (bodies.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..convert.length_head import FILE
from ..errors import ModelFileError, OptionError
from .bodies import Scorer, family_of, padding_mask


class LengthHead(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(dim, heads, ffn, batch_first=True)
        self.classes = nn.Sequential(nn.Linear(dim, ffn), nn.Tanh(), nn.Linear(ffn, classes))

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """Logits [n, classes]; features [n, length, dim], valid bool [n, length] False at padding."""
        mixed = self.layer(features, src_key_padding_mask=~valid)
        kept = mixed.masked_fill(~valid[:, :, None], 0.0).sum(dim=1)
        logits: Tensor = self.classes(kept / valid.sum(dim=1, keepdim=True))
        return logits


def check_base(model: Any) -> None:
    """Raise OptionError for a model beside which the engine could not run a length head."""
    config = model.config
    dim, heads = config.hidden_size, config.num_attention_heads
    keys, head_dim = getattr(config, "num_key_value_heads", heads), getattr(config, "head_dim", None) or dim // heads
    if keys != heads or heads * head_dim != dim:
        raise OptionError(
            "--length-head needs a base with as many heads of keys as of queries, together as wide as the model, but "
            f"this one has {keys} of {heads} heads of {head_dim} at a width of {dim}; leave it out"
        )


def length_head_for(model: Any) -> LengthHead:
    """A fresh head with the sizes of `model`."""
    config = model.config
    ffn = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return LengthHead(config.hidden_size, config.num_attention_heads, int(ffn), int(config.max_position_embeddings))


def save_length_head(state: dict[str, Tensor], folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / FILE)


def load_length_head(model: Any, folder: Path) -> LengthHead:
    head = length_head_for(model)
    try:
        head.load_state_dict(load_file(folder / FILE))
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{folder / FILE}: not the length head of this model ({error})") from None
    return head


@torch.no_grad()
def likeliest_lengths(model: Any, head: LengthHead, prompt: list[int], limit: int, count: int = 1) -> list[int]:
    """The `count` likeliest numbers of answer tokens before the end token, likeliest first, each at most `limit`."""
    tokens = torch.tensor([prompt])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    attention = valid if family_of(model).masked else padding_mask(valid, torch.float32)
    features = Scorer(model).eval().hidden(tokens, attention, None)
    found = head.eval()(features, valid)[0].topk(count).indices + 1
    return [min(int(length), limit) for length in found]
