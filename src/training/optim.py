"""Optimizer and schedule: one learning rate per part, 0 = frozen."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from src.config.train import OptimConfig
from src.model.vlm import VLM


def optimizer(model: VLM, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors (norms, biases, tokens) do not."""
    groups = []
    for part, module in model.parts().items():
        trainable = [p for p in module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trainable if p.ndim >= 2], [p for p in trainable if p.ndim < 2]
        for params, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": getattr(config.lr, part), "weight_decay": decay, "part": part})
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), fused=on_gpu, foreach=not on_gpu)


def lr_factor(step: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at optimizer step `step` (0-based): linear warm-up, then cosine to a tenth, or constant."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, config.length - config.warmup))
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


def lr_schedule(of: torch.optim.Optimizer, config: OptimConfig) -> LambdaLR:
    return LambdaLR(of, lambda step: lr_factor(step, config))
