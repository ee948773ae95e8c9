"""MinerU-Diffusion: the text part, which is SDAR. Its vision tower and the projector are left out of the file, so it
writes text from text; images are not read."""

from __future__ import annotations

import dataclasses

from . import qwen3

FAMILY = dataclasses.replace(
    qwen3.FAMILY,
    model_types={"mineru_diffusion": "mineru"},
    prefixes=("language_model.", "model."),
    section="text_config",
    dropped=(*qwen3.FAMILY.dropped, r"vision_model\..*", r"vision_abstractor\..*"),
)
