"""What model flops utilization is made of: the flops of a training step, the best that the device does, and a clock that waits for it."""

import time
from typing import Any

import torch

from src.model.vlm import VLM


def flops_per_token(model: Any, supervised: float) -> float:
    """4 per frozen parameter that a token meets (the head's only where it is supervised), 6 per adapter; the encoder is left out."""
    language = model.language if isinstance(model, VLM) else model
    head = max((p for p in language.parameters() if not p.requires_grad), key=torch.Tensor.numel).numel()
    adapters = sum(p.numel() for name, p in language.named_parameters() if "lora_" in name)
    inner = sum(p.numel() for name, p in language.named_parameters() if "layers" in name and "lora_" not in name and "vision" not in name)
    return 4 * inner + 4 * head * supervised + 6 * adapters


def ceiling(device: str, size: int) -> float:
    """TFLOP/s of the best of twenty products of square bfloat16 matrices."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        since = now()
        a @ b
        best = min(best, now() - since)
    return 2 * size**3 / best / 1e12


def now() -> float:
    """With the work of the GPU done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
