"""Element-wise parts of a LLaMA layer, forward and backward: one kernel each on a GPU, by torch.compile.

PyTorch alone launches a kernel for every operation, and each reads and writes all of its operands: 20 passes over memory for a norm and
its gradient, where one kernel each needs five. On a GPU each function is an operation of its own whose kernel inductor compiles at its
first call, and once more, for any number of tokens, at the first other number. Elsewhere, and where the compiler fails, it is the same
function as it stands. docs/internals.md compares this choice with others.

Functions that read each number once also add the product of an adapter to what they read, so that no pass of its own is needed for it:
xa b^T, where xa is the input of the layer times A^T and the scale (src/model/fast/lora.py).

Legend: L tokens of all sequences, H width, I inner width of the MLP, A heads, E head width, O outputs of a layer, R rank.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

compiler_works = True  # until a kernel could not be compiled
meta_is_gpu = True  # whether tensors on the meta device stand for those of a GPU


@contextlib.contextmanager
def meta_counts_as(accelerator: str) -> Iterator[None]:
    """Tensors on the meta device stand for those of a CPU (`cpu`) or of a GPU (any other) in this context."""
    global meta_is_gpu
    previous, meta_is_gpu = meta_is_gpu, accelerator != "cpu"
    try:
        yield
    finally:
        meta_is_gpu = previous


def is_on_gpu(x: Tensor) -> bool:
    """Whether one kernel of this file computes a result again in less time than several kernels take to save it."""
    return x.is_cuda or (x.is_meta and meta_is_gpu)


def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of tensors and numbers, as an operation `openmedq::<name>` on a GPU. No result may share memory with an argument."""
    operation = torch.library.custom_op(f"openmedq::{function.__name__}", mutates_args=())(function)
    operation.register_fake(function)
    operation.register_kernel("cuda")(compile_or_keep(function))

    @functools.wraps(function)
    def call(*arguments):
        return operation(*arguments) if is_on_gpu(arguments[0]) else function(*arguments)

    return call


def compile_or_keep(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call. After the first failure of the compiler, and one warning, all functions run as they stand."""
    # Tiles of rows and columns read the factors of an adapter's product once per tile; tiles of a flat array would for each element.
    compiled = functools.cache(functools.partial(torch.compile, options={"triton.prefer_nd_tiling": True}))  # imports the compiler

    def run(*arguments):
        global compiler_works
        if compiler_works:
            try:
                return compiled(function)(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of many types for a missing or broken Triton or C compiler; others are raised again below
                compiler_works = False
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(
                    f"torch.compile does not work here ({type(error).__name__}: {reason}); norms, rotary embeddings and activations take "
                    "more passes over memory, with the same results. Install the Triton that belongs to this version of torch, and a C "
                    "compiler",
                    stacklevel=2,
                )
        return function(*arguments)

    return run


def add_product(y_LO: Tensor, xa_LR: Tensor | None, b_OR: Tensor | None) -> Tensor:
    """y + xa b^T: the output of a frozen layer and that of its adapter; `y` without an adapter.

    While inductor compiles, the product is a sum over the rank of element-wise terms, which belongs to the kernel that reads `y`.
    """
    if xa_LR is None or b_OR is None:
        return y_LO
    if not torch.compiler.is_compiling():
        return torch.addmm(y_LO, xa_LR, b_OR.T)
    wide_LO = y_LO.to(torch.promote_types(y_LO.dtype, torch.float32))
    for xa_L, b_O in zip(xa_LR.unbind(1), b_OR.unbind(1), strict=True):
        wide_LO = wide_LO + xa_L[:, None].to(wide_LO.dtype) * b_O.to(wide_LO.dtype)
    return wide_LO.to(y_LO.dtype)


def _rmsnorm(x_LH: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    x32_LH = x_LH.to(torch.promote_types(x_LH.dtype, torch.float32))
    scale_L1 = torch.rsqrt(x32_LH.square().mean(-1, keepdim=True) + epsilon)
    return weight_H * (x32_LH * scale_L1).to(x_LH.dtype), scale_L1


@one_kernel
def rmsnorm(x_LH: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """LLaMA's RMSNorm, and 1 / root mean square of each token, in float32 or better."""
    return _rmsnorm(x_LH, weight_H, epsilon)


@one_kernel
def add_rmsnorm(
    x_LH: Tensor, delta_LH: Tensor, weight_H: Tensor, epsilon: float, xa_LR: Tensor | None = None, b_HR: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum x + delta + xa b^T, its RMSNorm, and 1 / root mean square."""
    sum_LH = x_LH + add_product(delta_LH, xa_LR, b_HR)
    return sum_LH, *_rmsnorm(sum_LH, weight_H, epsilon)


@one_kernel
def add_residual(x_LH: Tensor, delta_LH: Tensor, xa_LR: Tensor | None = None, b_HR: Tensor | None = None) -> Tensor:
    """x + delta + xa b^T"""
    return x_LH + add_product(delta_LH, xa_LR, b_HR)


@one_kernel
def rmsnorm_backward(dy_LH: Tensor, x_LH: Tensor, weight_H: Tensor, scale_L1: Tensor, dx_LH: Tensor | None) -> Tensor:
    """The gradient of x through its norm, added to that on the other way, `dx_LH`."""
    x32_LH, dnorm_LH = x_LH.to(scale_L1.dtype), (dy_LH * weight_H).to(scale_L1.dtype)
    projection_L1 = (dnorm_LH * x32_LH).mean(-1, keepdim=True).mul_(scale_L1.square())
    through_norm_LH = dnorm_LH.addcmul_(x32_LH, projection_L1, value=-1).mul_(scale_L1)
    return (through_norm_LH if dx_LH is None else through_norm_LH.add_(dx_LH)).to(x_LH.dtype)


@one_kernel
def silu_product(
    gate_LI: Tensor,
    up_LI: Tensor,
    gate_xa_LR: Tensor | None = None,
    gate_b_IR: Tensor | None = None,
    up_xa_LR: Tensor | None = None,
    up_b_IR: Tensor | None = None,
) -> Tensor:
    """silu(gate) * up, after the products of the adapters of both are added."""
    return F.silu(add_product(gate_LI, gate_xa_LR, gate_b_IR)).mul_(add_product(up_LI, up_xa_LR, up_b_IR))


@one_kernel
def silu_product_backward(
    dy_LI: Tensor,
    gate_LI: Tensor,
    up_LI: Tensor,
    dya_LR: Tensor | None = None,
    a_RI: Tensor | None = None,
    gate_xa_LR: Tensor | None = None,
    gate_b_IR: Tensor | None = None,
    up_xa_LR: Tensor | None = None,
    up_b_IR: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, where that of the product is dy + dya a."""
    dy_LI = add_product(dy_LI, dya_LR, None if a_RI is None else a_RI.T)
    gate_LI, up_LI = add_product(gate_LI, gate_xa_LR, gate_b_IR), add_product(up_LI, up_xa_LR, up_b_IR)
    return torch.ops.aten.silu_backward(dy_LI * up_LI, gate_LI), F.silu(gate_LI).mul_(dy_LI)


def _rotate(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor, sign: int) -> Tensor:
    half = x_LAE.shape[-1] // 2
    (left_LAF, right_LAF), sin_L1F = x_LAE.split(half, -1), sin_LE[:, None, :half]
    y_LAE = x_LAE * cos_LE[:, None]
    y_LAE[..., :half].addcmul_(right_LAF, sin_L1F, value=-sign)
    y_LAE[..., half:].addcmul_(left_LAF, sin_L1F, value=sign)
    return y_LAE


@one_kernel
def rotary(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) that pairs the two halves of a head, as transformers stores LLaMA."""
    return _rotate(x_LAE, cos_LE, sin_LE, 1)


@one_kernel
def rotary_backward(dy_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    return _rotate(dy_LAE, cos_LE, sin_LE, -1)
