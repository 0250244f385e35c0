"""Element-wise parts of a LLaMA layer, forward and backward: one kernel each on a GPU, by torch.compile.

PyTorch alone launches a kernel for every operation, and each reads and writes all of its operands: 20 passes over memory for a norm and
its gradient, where one kernel each needs five. On a GPU each function is an operation of its own whose kernel inductor compiles at the
first call, for all shapes. Elsewhere, and where the compiler fails, it is the same function as it stands.

Legend: B sequences, T tokens, L = B x T, H width, I inner width of the MLP, A heads, E head width, F = E / 2.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of tensors and numbers, as an operation `openmedq::<name>` on a GPU. No result may share memory with an argument."""
    operation = torch.library.custom_op(f"openmedq::{function.__name__}", mutates_args=())(function)
    operation.register_fake(function)
    operation.register_kernel("cuda")(compile_or_keep(function))

    @functools.wraps(function)
    def call(*arguments):
        return operation(*arguments) if not arguments[0].is_cpu else function(*arguments)

    return call


def compile_or_keep(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call, or unchanged, with a warning, where the compiler does not work."""
    compiled: Callable[..., Any] | None = None

    def run(*arguments):
        nonlocal compiled
        if compiled is None:
            compiled = torch.compile(function, dynamic=True)
        try:
            return compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:  # also of a missing or broken Triton
            compiled = function
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"{function.__name__} is not compiled and takes more passes over memory: {reason}", stacklevel=2)
            return function(*arguments)

    return run


@one_kernel
def rmsnorm(x_BTH: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """LLaMA's RMSNorm, and 1 / root mean square of each token, in float32."""
    x32_BTH = x_BTH.float()
    scale_BT1 = torch.rsqrt(x32_BTH.square().mean(-1, keepdim=True) + epsilon)
    return weight_H * (x32_BTH * scale_BT1).to(x_BTH.dtype), scale_BT1


@one_kernel
def rmsnorm_backward(dy_BTH: Tensor, x_BTH: Tensor, weight_H: Tensor, scale_BT1: Tensor) -> Tensor:
    x32_BTH, dnorm_BTH = x_BTH.float(), (dy_BTH * weight_H).float()
    projection_BT1 = (dnorm_BTH * x32_BTH).mean(-1, keepdim=True).mul_(scale_BT1.square())
    return dnorm_BTH.addcmul_(x32_BTH, projection_BT1, value=-1).mul_(scale_BT1).to(x_BTH.dtype)


@one_kernel
def silu_product(gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
    """silu(gate) * up"""
    return F.silu(gate_BTI).mul_(up_BTI)


@one_kernel
def silu_product_backward(dy_BTI: Tensor, gate_BTI: Tensor, up_BTI: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(dy_BTI * up_BTI, gate_BTI), F.silu(gate_BTI).mul_(dy_BTI)


@one_kernel
def rotary(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) that pairs the two halves of a head, as transformers stores LLaMA."""
    half = x_LAE.shape[-1] // 2
    (left_LAF, right_LAF), sin_L1F = x_LAE.split(half, -1), sin_LE[:, None, :half]
    y_LAE = x_LAE * cos_LE[:, None]
    y_LAE[..., :half].addcmul_(right_LAF, sin_L1F, value=-1)
    y_LAE[..., half:].addcmul_(left_LAF, sin_L1F)
    return y_LAE
