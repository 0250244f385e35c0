"""Selective activation checkpointing: norms and the gated activation of the MLP are computed again in the backward pass.

Per token and layer of LLaMA-7B in bfloat16 (width H = 4,096, inner width I = 11,008) autograd keeps 20 H + 8 I bytes; `selective`
keeps 16 H + 6 I without another matrix product, `full` (transformers' own) keeps 2 H and computes the whole layer again.
"""

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from src.model.fast.elementwise import rmsnorm, rmsnorm_backward, silu_product, silu_product_backward
from src.model.fast.lora import lora_linears
from src.runtime.errors import UserError


def patch_recompute(base: nn.Module, *, on_cpu: bool) -> None:
    """Replaces `forward` of norms and MLPs of a model of the LLaMA family in place; outputs stay, gradients stay up to rounding.

    Without `on_cpu` they keep `forward` on a CPU. On a GPU one kernel computes a norm or a gated activation again in less time than several
    kernels take to save their results. Raises `UserError` with `on_cpu` where the norms or the activation are not LLaMA's; without it, such
    modules stay as they are.
    """
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
    return type(module).forward(module, x) if x.is_cpu else forward(module, x)


def _refuse(description: str) -> NoReturn:
    raise UserError(
        "trainer.activation_checkpointing=selective supports LLaMA's RMSNorm and SiLU only, and the model has "
        f"{description}; set trainer.activation_checkpointing=full or none"
    )


def recomputed_rmsnorm(norm: nn.Module, x_BTH: Tensor) -> Tensor:
    return _RecomputedRMSNorm.apply(x_BTH, norm.weight, norm.variance_epsilon)


def recomputed_mlp(mlp: nn.Module, x_BTH: Tensor) -> Tensor:
    return mlp.down_proj(_RecomputedGate.apply(*lora_linears(x_BTH, mlp.gate_proj, mlp.up_proj)))


class _RecomputedRMSNorm(torch.autograd.Function):
    """LLaMA's RMSNorm with a frozen weight. Saves its input and one number per token instead of float32 copies of the input."""

    @staticmethod
    def forward(ctx, x_BTH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        assert not weight_H.requires_grad, "the norms must be frozen"
        y_BTH, scale_BT1 = rmsnorm(x_BTH, weight_H, epsilon)
        ctx.save_for_backward(x_BTH, weight_H, scale_BT1)
        return y_BTH

    @staticmethod
    def backward(ctx, dy_BTH: Tensor) -> tuple[Tensor, None, None]:
        return rmsnorm_backward(dy_BTH, *ctx.saved_tensors), None, None


class _RecomputedGate(torch.autograd.Function):
    """silu(gate) * up, without saving silu(gate)."""

    @staticmethod
    def forward(ctx, gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTI, up_BTI)
        return silu_product(gate_BTI, up_BTI)

    @staticmethod
    def backward(ctx, dy_BTI: Tensor) -> tuple[Tensor, Tensor]:
        return silu_product_backward(dy_BTI, *ctx.saved_tensors)
