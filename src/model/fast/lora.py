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
    frozen = chain(*((one.base_layer.weight, one.base_layer.bias) for one in layers))
    adapters = chain(*((one.lora_A[ADAPTER].weight, one.lora_B[ADAPTER].weight) for one in layers))
    frozen_parts = (None if part is None else part.to(dtype) for part in frozen)
    return _FusedLoRA.apply(x.to(dtype), [layer.scaling[ADAPTER] for layer in layers], *frozen_parts, *adapters)


class _FusedLoRA(torch.autograd.Function):
    """`parts` holds the weight OI and the bias O, or None, of each layer, and then the matrices A (RI) and B (OR) of each adapter.

    The adapters of all layers are cast to the precision of `x` together, and their gradients back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scales: list[float], *parts: Any) -> tuple[Tensor, ...]:
        layers = len(scales)
        weights, biases, adapters = parts[: 2 * layers : 2], parts[1 : 2 * layers : 2], parts[2 * layers :]
        ctx.scales, ctx.ranks, ctx.adapter_dtype = scales, [len(a_RI) for a_RI in adapters[::2]], adapters[0].dtype
        casts = _cast(adapters, x.dtype)
        a_RI, lora_Bs = _concatenate(casts[::2]), casts[1::2]
        x_NI = x.flatten(0, -2)
        xa_NR = _scale(x_NI @ a_RI.T, ctx.ranks, scales)
        outputs = []
        for w_OI, bias_O, b_OR, layer_xa_NR in zip(weights, biases, lora_Bs, xa_NR.split(ctx.ranks, 1), strict=True):
            outputs.append(F.linear(x_NI, w_OI, bias_O).addmm_(layer_xa_NR, b_OR.T).view(*x.shape[:-1], len(w_OI)))
        ctx.save_for_backward(x, xa_NR, a_RI, *weights, *lora_Bs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, xa_NR, a_RI, *parts = ctx.saved_tensors
        dxas, dlora_Bs, dx_NI = [], [], None
        for dy, w_OI, b_OR, layer_xa_NR in zip(dys, parts[: len(dys)], parts[len(dys) :], xa_NR.split(ctx.ranks, 1), strict=True):
            dy_NO = dy.flatten(0, -2)
            # On a CPU these two products are 1.5 to 8 times as fast with the narrow operand in row-major order.
            dxas.append(dy_NO @ (b_OR.T.contiguous().T if b_OR.is_cpu else b_OR))
            dlora_Bs.append(layer_xa_NR.T @ dy_NO)
            if ctx.needs_input_grad[0]:
                dx_NI = dy_NO @ w_OI if dx_NI is None else dx_NI.addmm_(dy_NO, w_OI)
        dxa_NR = _scale(_concatenate(dxas, 1), ctx.ranks, ctx.scales)
        gradients = _cast([*(dxa_NR.T @ x.flatten(0, -2)).split(ctx.ranks), *dlora_Bs], ctx.adapter_dtype)
        adapters = chain(*((da_RI, db_RO.T) for da_RI, db_RO in zip(gradients[: len(dys)], gradients[len(dys) :], strict=True)))
        dx = None if dx_NI is None else dx_NI.addmm_(dxa_NR, a_RI).view_as(x)
        return dx, None, *[None] * (2 * len(dys)), *adapters


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Contiguous tensors in another precision, all by one kernel on a GPU."""
    if tensors[0].dtype == dtype:
        return tensors
    casts = [torch.empty(tensor.shape, dtype=dtype, device=tensor.device) for tensor in tensors]
    torch._foreach_copy_(casts, list(tensors))
    return casts


def _scale(x_NR: Tensor, ranks: list[int], scales: list[float]) -> Tensor:
    """Multiplies the columns of each layer by its scale, in place: by one kernel where all scales are equal."""
    parts = (x_NR,) if len(set(scales)) == 1 else x_NR.split(ranks, 1)
    for part, scale in zip(parts, scales, strict=False):
        part.mul_(scale)
    return x_NR


def _concatenate(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that copies nothing for a single tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
