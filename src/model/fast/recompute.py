"""Selective activation checkpointing: norms and the gated activation of the MLP are computed again in the backward pass.

Per token and layer of LLaMA-7B in bfloat16 (width H = 4,096, inner width I = 11,008) autograd keeps 20 H + 8 I bytes; `selective`
keeps 16 H + 6 I without another matrix product, `full` (transformers' own) keeps 2 H and computes the whole layer again.
"""

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from src.model.fast.elementwise import (
    add_residual,
    add_rmsnorm,
    is_on_gpu,
    rmsnorm,
    rmsnorm_backward,
    silu_product,
    silu_product_backward,
)
from src.model.fast.lora import AdapterSum, cast_adapters, is_deferrable, lora_sums
from src.runtime.errors import UserError


def patch_recompute(base: nn.Module, *, on_cpu: bool) -> None:
    """Replaces `forward` of norms and MLPs of a model of the LLaMA family in place; outputs stay, gradients stay up to rounding.

    Without `on_cpu` they keep `forward` on a CPU. On a GPU one kernel computes a norm or a gated activation again in less time than several
    kernels take to save their results. Raises `UserError` with `on_cpu` where the norms or the activation are not LLaMA's; without it, such
    modules stay as they are.
    """
    forward: Callable[[nn.Module, Tensor], Tensor]
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm"):
            supported, description, forward = hasattr(module, "variance_epsilon"), type(module).__name__, recomputed_rmsnorm
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            supported, forward = base.config.hidden_act == "silu", recomputed_mlp
            description = f"{type(module).__name__} with {base.config.hidden_act}"
        else:
            continue
        if supported:
            module.forward = partial(forward, module) if on_cpu else partial(_on_gpu, forward, module)
        elif on_cpu:
            _refuse(description)


def _on_gpu(forward: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    return forward(module, x) if is_on_gpu(x) else type(module).forward(module, x)


def _refuse(description: str) -> NoReturn:
    raise UserError(
        "trainer.activation_checkpointing=selective supports LLaMA's RMSNorm and SiLU only, and the model has "
        f"{description}; set trainer.activation_checkpointing=full or none"
    )


def recomputed_rmsnorm(norm: nn.Module, x_BTH: Tensor) -> Tensor:
    return add_and_norm(norm, x_BTH)[1]


def add_and_norm(norm: nn.Module, x_BTH: Tensor, delta_BTH: AdapterSum | None = None) -> tuple[Tensor, Tensor]:
    """(x, norm(x)), or with `delta_BTH` (x + delta, norm(x + delta)). In the backward pass one kernel adds both gradients of x."""
    delta_LH, *product = (None,) if delta_BTH is None else delta_BTH.flatten()
    results = _RecomputedRMSNorm.apply(x_BTH.flatten(0, -2), delta_LH, norm.weight, norm.variance_epsilon, *product)
    return results[0].view_as(x_BTH), results[1].view_as(x_BTH)


def recomputed_mlp(mlp: nn.Module, x_BTH: Tensor) -> Tensor:
    return _mlp(mlp, x_BTH, deferred=False).frozen


def add_mlp(mlp: nn.Module, residual_BTH: Tensor, x_BTH: Tensor) -> Tensor:
    """residual + mlp(x), for an MLP whose activation is SiLU."""
    y_BTH = _mlp(mlp, x_BTH, deferred=True)
    return _AddResidual.apply(residual_BTH.flatten(0, -2), *y_BTH.flatten()).view_as(residual_BTH)


def _mlp(mlp: nn.Module, x_BTH: Tensor, *, deferred: bool) -> AdapterSum:
    (gate_LI, *gate), (up_LI, *up) = (part.flatten() for part in lora_sums(x_BTH, mlp.gate_proj, mlp.up_proj, deferred=(True, True)))
    casts = cast_adapters(gate_LI, mlp.down_proj) if is_deferrable(gate_LI, mlp.down_proj) else None
    y_LI, slot_LR = _RecomputedGate.apply(gate_LI, up_LI, casts and casts[0], *gate, *up)
    y_BTI = y_LI.view(*x_BTH.shape[:-1], y_LI.shape[-1])
    return lora_sums(y_BTI, mlp.down_proj, deferred=(deferred,), casts=casts, slot_NR=slot_LR)[0]


class _AddResidual(torch.autograd.Function):
    """x + delta + xa b^T, whose third term has its gradients from `lora_sums`."""

    @staticmethod
    def forward(ctx, x_LH: Tensor, delta_LH: Tensor, xa_LR: Tensor | None, b_HR: Tensor | None) -> Tensor:
        return add_residual(x_LH, delta_LH, xa_LR, b_HR)

    @staticmethod
    def backward(ctx, dy_LH: Tensor) -> tuple[Tensor | None, ...]:
        return dy_LH, dy_LH, None, None


class _RecomputedRMSNorm(torch.autograd.Function):
    """LLaMA's RMSNorm with a frozen weight. Saves its input and one number per token instead of float32 copies of the input."""

    @staticmethod
    def forward(
        ctx, x_LH: Tensor, delta_LH: Tensor | None, weight_H: Tensor, epsilon: float, *product: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert not weight_H.requires_grad, "the norms must be frozen"
        if delta_LH is None:
            y_LH, scale_L1 = rmsnorm(x_LH, weight_H, epsilon)
        else:
            x_LH, y_LH, scale_L1 = add_rmsnorm(x_LH, delta_LH, weight_H, epsilon, *product)
        ctx.save_for_backward(x_LH, weight_H, scale_L1)
        ctx.set_materialize_grads(False)
        return x_LH, y_LH

    @staticmethod
    def backward(ctx, dx_LH: Tensor | None, dy_LH: Tensor) -> tuple[Tensor | None, ...]:
        dx_LH = rmsnorm_backward(dy_LH, *ctx.saved_tensors, dx_LH)
        return dx_LH, dx_LH if ctx.needs_input_grad[1] else None, None, None, None, None


class _RecomputedGate(torch.autograd.Function):
    """silu(gate) * up, without saving silu(gate), and with `a_RI` the `slot_NR` of `lora_sums` for the layer that reads the product."""

    @staticmethod
    def forward(ctx, gate_LI: Tensor, up_LI: Tensor, a_RI: Tensor | None = None, *products: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(gate_LI, up_LI, a_RI, *products)
        return silu_product(gate_LI, up_LI, *products), None if a_RI is None else gate_LI.new_empty((len(gate_LI), len(a_RI)))

    @staticmethod
    def backward(ctx, dy_LI: Tensor, dslot_LR: Tensor | None) -> tuple[Tensor | None, ...]:
        gate_LI, up_LI, a_RI, *products = ctx.saved_tensors
        dslot_LR = None if a_RI is None else dslot_LR
        return *silu_product_backward(dy_LI, gate_LI, up_LI, dslot_LR, a_RI, *products), *[None] * (1 + len(products))
