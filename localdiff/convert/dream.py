"""Dream, Dream-Coder, DiffuCoder and DreamOn: Qwen2 under an architecture that is always a diffusion model."""

from __future__ import annotations

import dataclasses

from . import qwen2

FAMILY = dataclasses.replace(qwen2.FAMILY, model_types={"Dream": "dream", "fastdllm_dream": "dream"}, arch="dream")
