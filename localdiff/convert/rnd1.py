"""RND1: Qwen3-MoE under an architecture that is always a diffusion model. Its code normalises the weights of the
chosen experts where config.json does not say so."""

from __future__ import annotations

import dataclasses
from functools import partial

from . import qwen3moe

FAMILY = dataclasses.replace(
    qwen3moe.FAMILY,
    model_types={"rnd1": "rnd1"},
    arch="rnd1",
    describe=partial(qwen3moe.describe, normalised_where_absent=True),
)
