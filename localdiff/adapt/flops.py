"""Work of a training step in floating-point operations, and the share of a device's peak that it amounts to (MFU).

Counted are the matrix products of forward and backward: 6 operations per weight and row of the layers' matrices (4
where the weight is frozen), 12 * layers * width * length per row for attention to `length` positions
(arXiv:2204.02311, appendix B), and 6 per weight of the head for the rows it is applied to. Activations that are
computed again do not count twice.
"""

from __future__ import annotations

from typing import Any

import torch

# dense bf16 peaks of single devices in TFLOP/s, as their makers state them
_PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


class Counter:
    """Counts the work of one model on one device."""

    def __init__(self, model: Any, device: torch.device, peak_tflops: float | None, dtype: torch.dtype) -> None:
        config = model.config
        head = model.get_output_embeddings().weight
        bodies = [part for part in model.base_model.modules() if not isinstance(part, torch.nn.Embedding)]
        matrices = [p for part in bodies for p in part.parameters(recurse=False) if p.dim() == 2]
        self._per_row = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
        self._attention = 12 * config.num_hidden_layers * config.hidden_size
        self._head = 6 * head.numel()
        self.peak = peak_tflops
        if peak_tflops is None and device.type == "cuda" and dtype is torch.bfloat16:
            name = torch.cuda.get_device_name(device)
            self.peak = next((peak for part, peak in _PEAKS.items() if part in name), None)

    def work(self, rows: int, length: int, scored: int) -> float:
        """Operations of one pass: `rows` through the body in sequences of `length`, `scored` through the head."""
        return float(rows * (self._per_row + self._attention * length) + scored * self._head)

    def rate(self, work: float, seconds: float) -> tuple[float, float | None]:
        """TFLOP/s, and the share of the peak where that is known."""
        tflops = work / seconds / 1e12
        return tflops, None if self.peak is None else tflops / self.peak
