"""Runs the code of a GPU without one, on fake tensors, which have a shape, a type and a device, but no numbers.

Passes run on the meta device, which our code treats as a GPU, because the backward pass of a fake tensor on `cuda` needs the hardware;
updates run on `cuda`, so that optimizers are fused as there.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors that are made in this context are fake."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.utils._foreach_utils._foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]))
        stack.enter_context(mock.patch.dict(os.environ, TRANSFORMERS_DISABLE_TORCH_CHECK="1"))  # it would read values
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def to_fake(module: nn.Module, *, device: str = "meta") -> nn.Module:
    """Replaces the parameters and buffers of a module by fake ones; shared parameters stay shared."""
    fakes: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in fakes:
                    fake = fake_like(tensor, device=device)
                    fakes[tensor] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                tensors[name] = None if tensor is None else fakes[tensor]  # type: ignore[assignment]
    return module


def fake_like(tensor: Tensor, *, device: str = "meta") -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


class Autocast(TorchFunctionMode):
    """`torch.autocast` to bfloat16 as on a GPU, which the meta device lacks; lists as in aten/src/ATen/autocast_mode.h.

    Parameters in float32 are cast once in the context, others at each use. `clear` begins anew, as the backward pass does.
    """

    LOWER: tuple[Any, ...] = (
        F.linear,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.mm,
        torch.bmm,
        torch.addmm,
        torch.conv2d,
        F.conv2d,
    )
    FLOAT32: tuple[Any, ...] = (
        F.layer_norm,
        F.softmax,
        torch.softmax,
        Tensor.softmax,
        F.cross_entropy,
        torch.pow,
        Tensor.pow,
        Tensor.__pow__,
        torch.rsqrt,
    )
    FLOAT32 += (Tensor.rsqrt, torch.exp, Tensor.exp, torch.sum, Tensor.sum)
    active = 0

    def __init__(self, *, enabled: bool):
        super().__init__()
        self.enabled = enabled
        self.cache: dict[Tensor, Tensor] = {}

    def clear(self) -> None:
        self.cache = {}

    def __enter__(self):
        Autocast.active += self.enabled
        return super().__enter__()

    def __exit__(self, *error):
        Autocast.active -= self.enabled
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.enabled and func in self.LOWER:
            args, kwargs = tree_map_only(Tensor, self._to_half, (args, kwargs))
        elif self.enabled and func in self.FLOAT32:
            args, kwargs = tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, (args, kwargs))
        return func(*args, **kwargs)

    def _to_half(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.bfloat16()
        if tensor not in self.cache:
            self.cache[tensor] = tensor.bfloat16()
        return self.cache[tensor]


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """The kernels that PyTorch chooses on a GPU: flash attention without a mask, memory-efficient attention with one."""
    if Autocast.active:
        query, key, value = (states.bfloat16() for states in (query, key, value))
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropout_p, is_causal, scale=scale)[0]
