"""Linear layers of one input and their adapters in one step: y = x W^T + s (x A^T) B^T (Hu et al., arXiv 2106.09685).

peft computes the second term apart, scales it and adds it: three passes over outputs as wide as the layer, and two over gradients
as wide as its input. Here both terms are summed where the matrix product leaves them, and layers that read the same input (queries,
keys and values; gate and up) read it once for all their adapters and sum its gradient in one place.

Legend: N tokens, I inputs, O outputs, R rank, or the ranks of all layers together.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

ADAPTER = "default"


def patch_peft(model: nn.Module) -> None:
    """Changes peft's layers in place; parameters, their names and what they compute stay. Dropout needs peft's own way."""
    for layer in model.modules():
        if is_fused(layer):
            layer.forward = partial(_single_linear, layer)


def is_fused(layer: nn.Module) -> bool:
    return isinstance(layer, Linear) and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)


def _single_linear(layer: nn.Module, x: Tensor) -> Tensor:
    return lora_linears(x, layer)[0]


def lora_linears(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each layer makes of `x`, in one step where all of them have adapters without dropout."""
    if not all(map(is_fused, layers)):
        return tuple(layer(x) for layer in layers)
    kind, weight = x.device.type, layers[0].base_layer.weight
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # the meta device has none
    dtype = torch.get_autocast_dtype(kind) if mixed else weight.dtype
    parts = ((one.base_layer.weight, one.base_layer.bias, one.lora_A[ADAPTER].weight, one.lora_B[ADAPTER].weight) for one in layers)
    flat = (None if part is None else part.to(dtype) for part in chain(*parts))
    return _FusedLoRA.apply(x.to(dtype), [layer.scaling[ADAPTER] for layer in layers], *flat)


class _FusedLoRA(torch.autograd.Function):
    """For each layer its weight OI, bias O or None, and the two sides of its adapter, RI and OR."""

    @staticmethod
    def forward(ctx, x: Tensor, scales: list[float], *parts: Any) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = (parts[n::4] for n in range(4))
        ctx.scales, ctx.ranks = scales, [len(down_RI) for down_RI in downs]
        x_NI = x.flatten(0, -2)
        low_NR = x_NI @ _concatenated(downs).T
        made = []
        for w_OI, bias_O, b_OR, scale, own_NR in zip(weights, biases, ups, scales, low_NR.split(ctx.ranks, 1), strict=True):
            made.append(F.linear(x_NI, w_OI, bias_O).addmm_(own_NR, b_OR.T, alpha=scale).view(*x.shape[:-1], len(w_OI)))
        ctx.save_for_backward(x, low_NR, *weights, *downs, *ups)
        return tuple(made)

    @staticmethod
    def backward(ctx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, low_NR, *parts = ctx.saved_tensors
        weights, downs, ups = (parts[n * len(dys) : (n + 1) * len(dys)] for n in range(3))
        dlow, dups, dx_NI = [], [], None
        for dy, w_OI, b_OR, scale, own_NR in zip(dys, weights, ups, ctx.scales, low_NR.split(ctx.ranks, 1), strict=True):
            dy_NO = dy.flatten(0, -2)
            # On a CPU these two products are 1.5 to 8 times as fast with the narrow side in memory row by row.
            dlow.append((dy_NO @ b_OR.T.contiguous().T).mul_(scale))
            dups.append((own_NR.T @ dy_NO).mul_(scale).T)
            if ctx.needs_input_grad[0]:
                dx_NI = dy_NO @ w_OI if dx_NI is None else dx_NI.addmm_(dy_NO, w_OI)
        dlow_NR = _concatenated(dlow, 1)
        ddowns = (dlow_NR.T @ x.flatten(0, -2)).split(ctx.ranks)
        dx = None if dx_NI is None else dx_NI.addmm_(dlow_NR, _concatenated(downs)).view_as(x)
        return dx, None, *chain(*((None, None, *both) for both in zip(ddowns, dups, strict=True)))


def _concatenated(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """A layer alone pays for no copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
