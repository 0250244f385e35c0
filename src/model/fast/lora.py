"""Linear layers of one input together with their LoRA adapters: y = x W^T + s (x A^T) B^T (Hu et al., arXiv 2106.09685).

peft computes the second term separately, scales it and adds it: three passes over outputs as wide as the layer, and two over gradients
as wide as its input. Here the matrix product adds the second term in place. Layers of the same input (Q, K and V; gate and up) read it
once for all their adapters, and sum its gradient in place.

Legend: N tokens, I inputs, O outputs, R rank, or the sum of the ranks of all layers.
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
    """Replaces `forward` of peft's layers in place. Parameters, their names and the results stay. Layers with dropout keep peft's."""
    for layer in model.modules():
        if is_fusable(layer):
            layer.forward = partial(_single_linear, layer)


def is_fusable(layer: nn.Module) -> bool:
    return isinstance(layer, Linear) and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)


def _single_linear(layer: nn.Module, x: Tensor) -> Tensor:
    return lora_linears(x, layer)[0]


def lora_linears(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The output of each layer for the input `x`; one fused step if every layer has an adapter without dropout."""
    if not all(map(is_fusable, layers)):
        return tuple(layer(x) for layer in layers)
    device, weight = x.device.type, layers[0].base_layer.weight
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has no autocast
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    parts = ((one.base_layer.weight, one.base_layer.bias, one.lora_A[ADAPTER].weight, one.lora_B[ADAPTER].weight) for one in layers)
    flat_parts = (None if part is None else part.to(dtype) for part in chain(*parts))
    return _FusedLoRA.apply(x.to(dtype), [layer.scaling[ADAPTER] for layer in layers], *flat_parts)


class _FusedLoRA(torch.autograd.Function):
    """`parts` holds for each layer its weight OI, its bias O or None, and the matrices A (RI) and B (OR) of its adapter."""

    @staticmethod
    def forward(ctx, x: Tensor, scales: list[float], *parts: Any) -> tuple[Tensor, ...]:
        weights, biases, lora_As, lora_Bs = (parts[n::4] for n in range(4))
        ctx.scales, ctx.ranks = scales, [len(a_RI) for a_RI in lora_As]
        x_NI = x.flatten(0, -2)
        xa_NR = x_NI @ _concatenate(lora_As).T
        outputs = []
        for w_OI, bias_O, b_OR, scale, layer_xa_NR in zip(weights, biases, lora_Bs, scales, xa_NR.split(ctx.ranks, 1), strict=True):
            outputs.append(F.linear(x_NI, w_OI, bias_O).addmm_(layer_xa_NR, b_OR.T, alpha=scale).view(*x.shape[:-1], len(w_OI)))
        ctx.save_for_backward(x, xa_NR, *weights, *lora_As, *lora_Bs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, xa_NR, *parts = ctx.saved_tensors
        weights, lora_As, lora_Bs = (parts[n * len(dys) : (n + 1) * len(dys)] for n in range(3))
        dxas, dlora_Bs, dx_NI = [], [], None
        for dy, w_OI, b_OR, scale, layer_xa_NR in zip(dys, weights, lora_Bs, ctx.scales, xa_NR.split(ctx.ranks, 1), strict=True):
            dy_NO = dy.flatten(0, -2)
            # On a CPU these two products are 1.5 to 8 times as fast with the narrow operand in row-major order.
            dxas.append((dy_NO @ b_OR.T.contiguous().T).mul_(scale))
            dlora_Bs.append((layer_xa_NR.T @ dy_NO).mul_(scale).T)
            if ctx.needs_input_grad[0]:
                dx_NI = dy_NO @ w_OI if dx_NI is None else dx_NI.addmm_(dy_NO, w_OI)
        dxa_NR = _concatenate(dxas, 1)
        dlora_As = (dxa_NR.T @ x.flatten(0, -2)).split(ctx.ranks)
        dx = None if dx_NI is None else dx_NI.addmm_(dxa_NR, _concatenate(lora_As)).view_as(x)
        return dx, None, *chain(*((None, None, *adapter) for adapter in zip(dlora_As, dlora_Bs, strict=True)))


def _concatenate(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that copies nothing for a single tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
