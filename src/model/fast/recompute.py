"""Selective activation checkpointing: norms and the gated activation of the MLP are computed again in the backward pass.

Per token and layer of LLaMA-7B in bfloat16 (width H = 4,096, inner width I = 11,008) autograd keeps 20 H + 8 I bytes; `selective`
keeps 16 H + 6 I without another matrix product, `full` (transformers' own) keeps 2 H and computes the whole layer again.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.model.fast.lora import lora_linears
from src.runtime.errors import UserError


def patch_recompute(base: nn.Module) -> None:
    """Replaces `forward` of norms and MLPs of a model of the LLaMA family in place; outputs stay, gradients stay up to rounding.

    Raises `UserError` where the norms or the activation are not LLaMA's.
    """
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _require(hasattr(module, "variance_epsilon"), type(module).__name__)
            module.forward = partial(recomputed_rmsnorm, module)
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            _require(base.config.hidden_act == "silu", f"{type(module).__name__} with {base.config.hidden_act}")
            module.forward = partial(recomputed_mlp, module)


def _require(supported: bool, description: str) -> None:
    if not supported:
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
        x32_BTH = x_BTH.float()
        scale_BT1 = torch.rsqrt(x32_BTH.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x_BTH, weight_H, scale_BT1)
        return weight_H * (x32_BTH * scale_BT1).to(x_BTH.dtype)

    @staticmethod
    def backward(ctx, dy_BTH: Tensor) -> tuple[Tensor, None, None]:
        x_BTH, weight_H, scale_BT1 = ctx.saved_tensors
        x32_BTH, dnorm_BTH = x_BTH.float(), (dy_BTH * weight_H).float()
        projection_BT1 = (dnorm_BTH * x32_BTH).mean(-1, keepdim=True).mul_(scale_BT1.square())
        return dnorm_BTH.addcmul_(x32_BTH, projection_BT1, value=-1).mul_(scale_BT1).to(x_BTH.dtype), None, None


class _RecomputedGate(torch.autograd.Function):
    """silu(gate) * up, without saving silu(gate)."""

    @staticmethod
    def forward(ctx, gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTI, up_BTI)
        return F.silu(gate_BTI).mul_(up_BTI)

    @staticmethod
    def backward(ctx, dy_BTI: Tensor) -> tuple[Tensor, Tensor]:
        gate_BTI, up_BTI = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy_BTI * up_BTI, gate_BTI), F.silu(gate_BTI).mul_(dy_BTI)
