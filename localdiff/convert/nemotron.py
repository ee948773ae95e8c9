"""Nemotron-Labs-Diffusion: Ministral 3 with its body called `encoder` and its head `diffusion_head`."""

from __future__ import annotations

import dataclasses

from . import ministral3

FAMILY = dataclasses.replace(
    ministral3.FAMILY,
    model_types={"nemotron_labs_diffusion": "nemotron-labs"},
    prefixes=("encoder.",),
    heads=("diffusion_head.weight", "lm_head.weight"),
)
