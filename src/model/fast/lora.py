"""Linear layers of one input together with their LoRA adapters: y = x W^T + s (x A^T) B^T (Hu et al., arXiv 2106.09685).

peft computes the second term separately, scales it and adds it: three passes over outputs as wide as the layer, and two over gradients
as wide as its input. Here the matrix product adds the second term in place. Layers of the same input (Q, K and V; gate and up) read it
once for all their adapters, and sum its gradient in place. On a GPU, the kernel that reads y may add the second term as well
(`AdapterSum`), which leaves no pass for it.

Legend: N tokens, I inputs, O outputs, R rank, or the sum of the ranks of all layers.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

from src.model.fast.elementwise import is_on_gpu

ADAPTER = "default"
# Forward and again backward, 4 R FLOPs per element at the 67 TFLOP/s (float32) of an H100's data sheet take less time up to R = 22 than
# the 4 bytes of a pass in bfloat16 at 3.0 TB/s. Not measured.
MAX_DEFERRED_RANK = 16


class AdapterSum(NamedTuple):
    """frozen + xa b^T: the output of a frozen layer and that of its adapter, which the reader has to add; without `xa_NR` nothing is
    left to add. The gradient with respect to `frozen` must be that with respect to the sum: `lora_sums` computes from it the gradients
    of the adapter."""

    frozen: Tensor
    xa_NR: Tensor | None = None
    b_OR: Tensor | None = None

    def flatten(self) -> "AdapterSum":
        """`frozen` as (N, O)."""
        return self._replace(frozen=self.frozen.flatten(0, -2))


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
    return tuple(part.frozen for part in lora_sums(x, *layers, deferred=(False,) * len(layers)))


def lora_sums(
    x: Tensor,
    *layers: nn.Module,
    deferred: tuple[bool, ...],
    casts: tuple[Tensor, Sequence[Tensor]] | None = None,
    slot_NR: Tensor | None = None,
) -> tuple[AdapterSum, ...]:
    """As `lora_linears`, but the products of the `deferred` adapters are left to the reader where `is_deferrable`.

    `casts`: the result of `cast_adapters`, if there is one. `slot_NR`, from the operation that made `x`, is not read: the gradients of `x`
    and of the slot, dx and dxa, stand for the gradient dx + dxa A of `x`, and that operation has to add.
    """
    if not all(map(is_fusable, layers)):
        return tuple(AdapterSum(layer(x)) for layer in layers)
    x = x.to(_precision(x, layers[0]))
    scales = [layer.scaling[ADAPTER] for layer in layers]
    a_RI, lora_Bs = casts or cast_adapters(x, *layers)
    ranks = [b_OR.shape[1] for b_OR in lora_Bs]
    with torch.no_grad():
        xa_NR = _scale(x.flatten(0, -2) @ a_RI.T, ranks, scales)
    left = [wanted and is_deferrable(x, layer) for wanted, layer in zip(deferred, layers, strict=True)]
    frozen = chain(*((one.base_layer.weight, one.base_layer.bias) for one in layers))
    frozen_parts = (None if part is None else part.to(x.dtype) for part in frozen)
    outputs = _FusedLoRA.apply(x, slot_NR, scales, left, xa_NR, a_RI, *lora_Bs, *frozen_parts, *chain(*map(_adapter, layers)))
    xas = xa_NR.split(ranks, 1)
    return tuple(AdapterSum(y, xa, b) if is_left else AdapterSum(y) for y, xa, b, is_left in zip(outputs, xas, lora_Bs, left, strict=True))


def is_deferrable(x: Tensor, layer: nn.Module) -> bool:
    """Whether the kernels of elementwise.py can add the products of the adapter of `layer`, if it has one, forward and backward."""
    return is_on_gpu(x) and is_fusable(layer) and layer.r[ADAPTER] <= MAX_DEFERRED_RANK


def cast_adapters(x: Tensor, *layers: nn.Module) -> tuple[Tensor, Sequence[Tensor]]:
    """All A (RI) stacked, and each B (OR), in the precision of the product with `x`: by one kernel on a GPU."""
    adapters, dtype = list(map(_adapter, layers)), _precision(x, layers[0])
    lora_As, lora_Bs = zip(*adapters, strict=True)
    with torch.no_grad():
        if lora_As[0].dtype == dtype:
            return lora_As[0] if len(layers) == 1 else torch.cat(lora_As), lora_Bs
        ranks = list(map(len, lora_As))
        a_RI = torch.empty((sum(ranks), lora_As[0].shape[1]), dtype=dtype, device=x.device)
        casts = [torch.empty(b_OR.shape, dtype=dtype, device=x.device) for b_OR in lora_Bs]
        torch._foreach_copy_([*a_RI.split(ranks), *casts], [*lora_As, *lora_Bs])
    return a_RI, casts


def _adapter(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _precision(x: Tensor, layer: nn.Module) -> torch.dtype:
    """Of matrix products with `x`: that of autocast, which the meta device lacks, or of the weights."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else layer.base_layer.weight.dtype


class _FusedLoRA(torch.autograd.Function):
    """`parts` holds B (OR) of each adapter in the precision of `x`, the weight OI and the bias O, or None, of each layer, and then the
    matrices A (RI) and B (OR) of each adapter, for their gradients alone.

    The adapters of all layers are cast to the precision of `x` together, and their gradients back.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, slot_NR: Tensor | None, scales: list[float], left: list[bool], xa_NR: Tensor, a_RI: Tensor, *parts: Any
    ) -> tuple[Tensor, ...]:
        layers = len(scales)
        lora_Bs, weights, biases = parts[:layers], parts[layers : 3 * layers : 2], parts[layers + 1 : 3 * layers : 2]
        ctx.scales, ctx.ranks, ctx.adapter_dtype = scales, [b_OR.shape[1] for b_OR in lora_Bs], parts[-1].dtype
        ctx.has_slot, x_NI = slot_NR is not None, x.flatten(0, -2)
        outputs = []
        for w_OI, bias_O, b_OR, layer_xa_NR, is_left in zip(weights, biases, lora_Bs, xa_NR.split(ctx.ranks, 1), left, strict=True):
            y_NO = F.linear(x_NI, w_OI, bias_O)
            outputs.append((y_NO if is_left else y_NO.addmm_(layer_xa_NR, b_OR.T)).view(*x.shape[:-1], len(w_OI)))
        ctx.save_for_backward(x, xa_NR, a_RI, *weights, *lora_Bs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, xa_NR, a_RI, *parts = ctx.saved_tensors
        x_NI, dxa_NR = x.flatten(0, -2), torch.empty_like(xa_NR)
        dlora_Bs, dx_NI = [], None
        columns = zip(xa_NR.split(ctx.ranks, 1), dxa_NR.split(ctx.ranks, 1), strict=True)
        for dy, w_OI, b_OR, (layer_xa_NR, layer_dxa_NR) in zip(dys, parts[: len(dys)], parts[len(dys) :], columns, strict=True):
            dy_NO = dy.flatten(0, -2)
            # On a CPU these two products are 1.5 to 8 times as fast with the narrow operand in row-major order.
            torch.mm(dy_NO, b_OR.T.contiguous().T if b_OR.is_cpu else b_OR, out=layer_dxa_NR)
            dlora_Bs.append((layer_xa_NR.T @ dy_NO).T if b_OR.is_cpu else dy_NO.T @ layer_xa_NR)
            if ctx.needs_input_grad[0]:
                dx_NI = dy_NO @ w_OI if dx_NI is None else dx_NI.addmm_(dy_NO, w_OI)
        _scale(dxa_NR, ctx.ranks, ctx.scales)
        gradients = _cast([*(dxa_NR.T @ x_NI).split(ctx.ranks), *dlora_Bs], ctx.adapter_dtype)
        adapters = chain(*zip(gradients[: len(dys)], gradients[len(dys) :], strict=True))
        if dx_NI is not None and not ctx.has_slot:
            dx_NI.addmm_(dxa_NR, a_RI)
        dx, dslot_NR = None if dx_NI is None else dx_NI.view_as(x), dxa_NR if ctx.has_slot else None
        return dx, dslot_NR, *[None] * (4 + 3 * len(dys)), *adapters


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
