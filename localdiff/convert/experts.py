"""Mixtures of experts: the rows of router and experts, and their keys. As in llama.cpp's files the experts of a layer
are one tensor per projection. The router stays float32: its small differences decide which experts run."""

from __future__ import annotations

from .family import MAX_EXPERTS, Config, Description, Row

EXPERT_ROWS = (
    Row("layers.{i}.mlp.gate.weight", "blk.{i}.ffn_gate_inp.weight", ("experts", "dim"), exact=True, since="dense"),
    *(
        Row(
            f"layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight",
            f"blk.{{i}}.ffn_{part}_exps.weight",
            shape,
            since="dense",
        )
        for part, shape in (
            ("gate", ("expert_ffn", "dim")),
            ("up", ("expert_ffn", "dim")),
            ("down", ("dim", "expert_ffn")),
        )
    ),
)


def add_experts(description: Description, config: Config, width: str, normalised: bool) -> Description:
    """The description with its experts.

    width        the field that holds the width of an expert
    normalised   the weights of the chosen experts are made to sum to 1
    """
    name = "num_experts" if config.value("num_experts") is not None else "num_local_experts"
    experts = config.integer(name, most=MAX_EXPERTS)
    used = config.integer("num_experts_per_tok", most=experts)
    sizes = {"experts": experts, "expert_ffn": config.integer(width), "dense": 0}
    description.sizes.update(sizes)
    description.keys.update(
        {
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": sizes["expert_ffn"],
            "expert_weights_norm": normalised,
        }
    )
    return description
