"""Terms of model FLOPs utilisation (MFU): the FLOPs of a training step, the peak rate of the device, and a clock."""

import time
from typing import Any

import torch

from src.model.vlm import VLM


def flops_per_token(model: Any, supervised: float) -> float:
    """FLOPs of the language model per token: 4 per frozen weight and 6 per adapter weight. The encoder is not counted.

    `supervised` is the share of tokens with a label; the output head counts only for these.
    """
    language = model.language if isinstance(model, VLM) else model
    head = max((p for p in language.parameters() if not p.requires_grad), key=torch.Tensor.numel).numel()
    adapters = sum(p.numel() for name, p in language.named_parameters() if "lora_" in name)
    layers = sum(p.numel() for name, p in language.named_parameters() if "layers" in name and "lora_" not in name and "vision" not in name)
    return 4 * layers + 4 * head * supervised + 6 * adapters


def peak_tflops(device: str, size: int) -> float:
    """Best TFLOP/s of twenty products of two bfloat16 matrices of `size` x `size`."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        start = synchronised_time()
        a @ b
        best = min(best, synchronised_time() - start)
    return 2 * size**3 / best / 1e12


def synchronised_time() -> float:
    """The clock after all GPU work has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
