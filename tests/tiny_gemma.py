"""A tiny random DiffusionGemma made by transformers, whose class is the independent reference: its folder, and what it
says of a prompt and a canvas.

Nothing is left at a value that hides a mistake: norms, router and layer scales are random, the prompt's scales differ
from the canvas's, layers have heads of two lengths, and the window is shorter than the prompts of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny import VOCAB, tiny_tokenizer

CANVAS, WINDOW = 8, 6
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_experts": 8,
    "top_k_experts": 3,
    "moe_intermediate_size": 32,
    "max_position_embeddings": 128,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclass(frozen=True)
class TinyGemma:
    model: Any
    folder: Path

    def cache(self, prompt: np.ndarray) -> Any:
        """The state of a prompt."""
        import torch

        with torch.no_grad():
            return self.model.model.encoder(input_ids=torch.tensor(prompt[None]).long()).past_key_values

    def logits(self, prompt: np.ndarray, canvas: np.ndarray, told: np.ndarray | None = None) -> np.ndarray:
        """Of every position of the canvas, [canvas, vocab]; told: the tempered logits of the step before."""
        import torch

        with torch.no_grad():
            answer = self.model(
                past_key_values=self.cache(prompt),
                decoder_input_ids=torch.tensor(canvas[None]).long(),
                self_conditioning_logits=None if told is None else torch.tensor(told[None]),
            )
        logits: np.ndarray = answer.logits[0].numpy()
        return logits


def make_gemma(folder: Path, **text: Any) -> TinyGemma:
    """The model and its folder with a tokenizer. `text` changes its configuration."""
    import torch
    from transformers import Gemma4VisionConfig
    from transformers.models.diffusion_gemma import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
    )

    torch.manual_seed(7)
    torch.set_num_threads(1)
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**TEXT | text),
        vision_config=Gemma4VisionConfig(**VISION, num_key_value_heads=2, head_dim=8),
        canvas_length=CANVAS,
        image_token_id=VOCAB - 1,
        boi_token_id=VOCAB - 2,
        eoi_token_id=VOCAB - 3,
    )
    config._attn_implementation = "eager"
    config._experts_implementation = config.text_config._experts_implementation = "eager"
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                tensor.uniform_(0.2, 0.6)  # scores are not scaled; sharper ones would enlarge every rounding
            elif name.endswith(("norm.weight", "norm_1.weight", "norm_2.weight", "router.scale", "per_expert_scale")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("layer_scalar"):
                tensor.uniform_(0.6, 1.2)
            elif tensor.ndim > 1 and "vision" not in name:
                tensor.normal_(0, tensor.shape[-1] ** -0.5)
        model.lm_head.weight.normal_(0, 0.5)  # tied: the embeddings too, and logits that the cap bends
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return TinyGemma(model, folder)
