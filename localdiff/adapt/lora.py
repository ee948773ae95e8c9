"""LoRA beside every linear layer of the body, through peft, with the token embedding trained in full.

The adapters are put into the model in place, so its class, its names and its tied head stay; what they add is merged
into the weights when the result is written. peft is imported on first use. Not here: adapters of finished models
(convert --lora, run --lora).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LocaldiffError

_NAME = "default"  # peft's name of the one adapter
_BASE = ".base_layer"


def attach(model: Any, rank: int, alpha: float, dropout: float) -> None:
    """Freeze the weights of `model` but for the token embedding (and the head, where it is tied to it), and put
    adapters of `rank`, scaled by alpha / rank, beside all linear layers of the body."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D
    except ImportError as error:
        raise LocaldiffError(
            f"--lora needs the package '{error.name}', which is not installed; run: pip install 'localdiff[train]'"
        ) from None
    body = model.base_model
    named = {id(module): name for name, module in model.named_modules()}
    targets = [named[id(module)] for module in body.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    transposed = any(isinstance(module, Conv1D) for module in body.modules())
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", fan_in_fan_out=transposed
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    model.get_input_embeddings().weight.requires_grad_(True)


def trained(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of `weights` those that are trained, each once."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: weights[name].contiguous() for name in names}


def load_trained(model: Any, weights: dict[str, Tensor]) -> None:
    """Give the trained weights of an adapted model back."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)


def merged(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model without adapters: W + scaling * B A in place of each W that has them, computed in
    float32. Names are those of the plain model."""
    from peft.tuners.lora import LoraLayer

    result = {name.replace(_BASE, ""): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        added = weights[f"{name}.lora_B.{_NAME}.weight"].float() @ weights[f"{name}.lora_A.{_NAME}.weight"].float()
        added = (added.T if getattr(module, "fan_in_fan_out", False) else added) * module.scaling[_NAME]
        plain = result[f"{name}.weight"]
        result[f"{name}.weight"] = (plain.float() + added).to(plain.dtype)
    return result
