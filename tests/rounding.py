"""Bounds on the difference of two computations of one number whose kernels add in another order."""

import torch


def rounding(steps: int, magnitude: float | torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the difference of two computations in `dtype`.

    `steps` is the number of successive roundings on the way to the result; a sum of n terms counts n if it is accumulated in
    `dtype`. Each rounding is at most eps / 2 of the largest intermediate number, `magnitude`, in each of the two computations.
    """
    return steps * torch.finfo(dtype).eps * float(magnitude)


def forward_steps(config, *, length: int) -> int:
    """Roundings on the longest path through a LLaMA with `length` tokens: norms, projections, attention, MLP, head."""
    layer = 3 * config.hidden_size + 2 * length + 2 * config.hidden_size + config.hidden_size + config.intermediate_size
    return config.num_hidden_layers * layer + 2 * config.hidden_size


def gap(scores: torch.Tensor) -> float:
    """Smallest difference of the two best scores over all positions; greedy choices are exact if it exceeds the rounding."""
    best = scores.topk(2, dim=-1).values
    return (best[..., 0] - best[..., 1]).min().item()


def float32_norms(config) -> int:
    """Roundings on the longest path through a float64 LLaMA whose norms square, scale and multiply in float32."""
    return 3 * (2 * config.num_hidden_layers + 1)
