"""Which activations of the language model are computed again in the backward pass instead of kept.

Per token and layer of LLaMA-7B in bfloat16 (width H = 4,096, inner width I = 11,008) autograd keeps 20 H + 8 I bytes; `selective`
keeps 16 H + 6 I at no matrix product more, `full` keeps 2 H and repeats the whole layer.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.model.fast.lora import lora_linears
from src.runtime.errors import UserError


def set_activation_checkpointing(base: nn.Module, how: str) -> None:
    """Changes a transformers model of the LLaMA family in place; its outputs stay what they were, its gradients too (of `selective`, to
    rounding).

    Raises `UserError` for `selective` where norms or activation are not LLaMA's.
    """
    if how == "full":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if how == "selective":
        for module in base.modules():
            if type(module).__name__.endswith("RMSNorm"):
                _require(hasattr(module, "variance_epsilon"), type(module).__name__)
                module.forward = partial(recomputed_rmsnorm, module)
            elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
                _require(base.config.hidden_act == "silu", f"{type(module).__name__} with {base.config.hidden_act}")
                module.forward = partial(recomputed_gate, module)


def _require(known: bool, found: str) -> None:
    if not known:
        raise UserError(
            f"trainer.activation_checkpointing=selective knows LLaMA's RMSNorm and SiLU, and the model has {found}; set trainer.activation_checkpointing=full or none"
        )


def recomputed_rmsnorm(norm: nn.Module, x_BTH: Tensor) -> Tensor:
    return _RecomputedRMSNorm.apply(x_BTH, norm.weight, norm.variance_epsilon)


def recomputed_gate(mlp: nn.Module, x_BTH: Tensor) -> Tensor:
    return mlp.down_proj(_RecomputedGate.apply(*lora_linears(x_BTH, mlp.gate_proj, mlp.up_proj)))


class _RecomputedRMSNorm(torch.autograd.Function):
    """LLaMA's RMSNorm under a frozen weight: keeps its input and one number per token, not the float32 copies of the input."""

    @staticmethod
    def forward(ctx, x_BTH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        assert not weight_H.requires_grad, "the norms must be frozen"
        wide_BTH = x_BTH.float()
        scale_BT1 = torch.rsqrt(wide_BTH.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x_BTH, weight_H, scale_BT1)
        return weight_H * (wide_BTH * scale_BT1).to(x_BTH.dtype)

    @staticmethod
    def backward(ctx, dy_BTH: Tensor) -> tuple[Tensor, None, None]:
        x_BTH, weight_H, scale_BT1 = ctx.saved_tensors
        wide_BTH, dnormal_BTH = x_BTH.float(), (dy_BTH * weight_H).float()
        along_BT1 = (dnormal_BTH * wide_BTH).mean(-1, keepdim=True).mul_(scale_BT1.square())
        return dnormal_BTH.addcmul_(wide_BTH, along_BT1, value=-1).mul_(scale_BT1).to(x_BTH.dtype), None, None


class _RecomputedGate(torch.autograd.Function):
    """silu(gate) * up; the activation of the gate is not kept."""

    @staticmethod
    def forward(ctx, gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTI, up_BTI)
        return F.silu(gate_BTI).mul_(up_BTI)

    @staticmethod
    def backward(ctx, dy_BTI: Tensor) -> tuple[Tensor, Tensor]:
        gate_BTI, up_BTI = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy_BTI * up_BTI, gate_BTI), F.silu(gate_BTI).mul_(dy_BTI)
