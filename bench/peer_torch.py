"""torch as a peer of compare.py: usage peer_torch.py f32|bf16|int8 THREADS SHAPES LAYERS

The products of a model alone, as a stack of nn.Linear: SHAPES is JSON, [[n, k], ...] of one layer and of the head, with
random weights. Layers share weights in turn, but at least 512 MiB of them are distinct, so that caches help nobody.
int8 is torch's dynamic quantisation: int8 weights per output channel, activations per tensor.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from peer import serve, timed
from torch import nn

DISTINCT_BYTES = 512 << 20
BYTES = {"f32": 4, "bf16": 2, "int8": 1}


def make_layers(kind: str, shapes: list[list[int]], layers: int) -> list[nn.ModuleList]:
    size = sum(n * k for n, k in shapes) * BYTES[kind]
    return [nn.ModuleList(make(kind, n, k) for n, k in shapes) for _ in range(min(layers, -(-DISTINCT_BYTES // size)))]


def make(kind: str, n: int, k: int) -> nn.Module:
    linear = nn.Linear(k, n, bias=False).eval()
    if kind == "bf16":
        return linear.bfloat16()
    if kind == "f32":
        return linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        return quantize_dynamic(nn.Sequential(linear), {nn.Linear: per_channel_dynamic_qconfig})


def main() -> None:
    kind, threads, shapes_json, layer_count = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    if kind == "int8":
        torch.backends.quantized.engine = "onednn"
    shapes = json.loads(shapes_json)
    layers = make_layers(kind, shapes["layer"], int(layer_count))
    head = make(kind, *shapes["head"])
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32

    @torch.inference_mode()
    def forward(rows: int) -> dict[str, Any]:
        inputs = {k: torch.randn(rows, k, dtype=dtype) for _, k in [*shapes["layer"], shapes["head"]]}

        def work() -> None:
            for index in range(int(layer_count)):
                for linear, (_, k) in zip(layers[index % len(layers)], shapes["layer"], strict=True):
                    linear(inputs[k])
            head(inputs[shapes["head"][1]])

        return timed(work)

    serve({"forward": forward}, {"version": torch.__version__})


if __name__ == "__main__":
    main()
