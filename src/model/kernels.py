"""The kernels that PyTorch launches on a GPU, recorded without one, and the time that they take at best.

`fake_gpu` runs code on fake tensors, which have a shape and a device, but no numbers. Passes run on the meta device, which our code treats
as a GPU, because the backward pass of a fake tensor on `cuda` needs the hardware; updates run on `cuda`, so that optimizers are fused as
there. `KernelRecorder` counts the operations below autograd, as PyTorch dispatches them:

- FLOPs of matrix products, convolutions and attention, by the formulas of torch.utils.flop_counter. Attention per sample of a packed
  batch counts the pairs (token, earlier token of the same sample), which `causal_pairs` states, because fake tensors have no lengths.
- Bytes: each operand is read once and each result is written once. A dimension that is broadcast costs nothing. An operation in place
  reads and writes its target; `copy_`, `fill_` and `zero_` only write it. Look-ups (`embedding`, `index_select`, `gather`) read as many
  elements as they write, and `scatter_add_` and `index_add_` touch as many as they add; the loss does not read the log-probabilities again.
- An operation whose results all share memory with its operands (a view), or whose result is empty memory, launches nothing.
- `_foreach_*` and `_fused_*` launch as many kernels as torch's multi_tensor_apply needs for the number and the sizes of the tensors.

A kernel takes max(FLOPs / peak, bytes / bandwidth) plus a launch. That is a lower bound for eager execution: kernels that reach less
than the peak, and launches that overlap with other kernels, are not modelled.
"""

import contextlib
import math
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).parents[2]
TORCH, STDLIB = f"{Path(torch.__file__).parent}/", f"{sysconfig.get_path('stdlib')}/"
WRITE_ONLY = ("copy_", "fill_", "zero_")
LOOK_UPS = ("embedding", "index_select", "gather", "index", "nll_loss_forward")
SCATTERS = ("scatter_add_", "index_add_")
# aten/src/ATen/native/cuda/MultiTensorApply.cuh: tensors of a launch by the number of lists, blocks of a launch, elements of a block.
TENSORS_PER_LAUNCH, BLOCKS_PER_LAUNCH, BLOCK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65_536


@dataclass(frozen=True)
class Accelerator:
    """Rates that kernels are assumed to reach at best."""

    name: str
    flops: float  # bfloat16 FLOP/s of matrix products
    bandwidth: float  # bytes/s
    launch: float  # seconds per kernel


# Assumed, not measured: 80% of the 989 TFLOP/s and 90% of the 3.35 or 4.8 TB/s of NVIDIA's data sheets; 4 us per eager launch.
H100 = Accelerator("H100", flops=790e12, bandwidth=3.0e12, launch=4e-6)
H200 = Accelerator("H200", flops=790e12, bandwidth=4.3e12, launch=4e-6)
ACCELERATORS = {gpu.name.lower(): gpu for gpu in (H100, H200)}


class Kernel(NamedTuple):
    """An operation, `launches` kernels, and the line of Python that launches it, or whose backward pass does."""

    op: str
    line: str
    flops: int
    bytes: int
    launches: int

    def seconds(self, gpu: Accelerator) -> float:
        return max(self.flops / gpu.flops, self.bytes / gpu.bandwidth) + self.launches * gpu.launch


@dataclass
class Prediction:
    """Totals of a recording on an accelerator. `matrix` and `other` are the seconds of kernels with and without FLOPs."""

    kernels: int
    bytes: int
    matrix: float
    other: float

    @staticmethod
    def of(recording: Counter[Kernel], gpu: Accelerator) -> "Prediction":
        matrix, other = (
            sum(count * kernel.seconds(gpu) for kernel, count in recording.items() if bool(kernel.flops) == has_flops)
            for has_flops in (True, False)
        )
        launches = sum(count * kernel.launches for kernel, count in recording.items())
        return Prediction(launches, sum(count * kernel.bytes for kernel, count in recording.items()), matrix, other)

    @property
    def seconds(self) -> float:
        return self.matrix + self.other


def most_expensive(recording: Counter[Kernel], gpu: Accelerator, *, count: int) -> list[tuple[str, str, int, float]]:
    """The (operation, line, launches, seconds) with most seconds, over all shapes."""
    totals: dict[tuple[str, str], list[float]] = {}
    for kernel, number in recording.items():
        total = totals.setdefault((kernel.op, kernel.line), [0, 0.0])
        total[0] += number * kernel.launches
        total[1] += number * kernel.seconds(gpu)
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])[:count]
    return [(op, line, int(launches), seconds) for (op, line), (launches, seconds) in ordered]


def extrapolate(two: Counter[Kernel], three: Counter[Kernel], layers: int) -> Counter[Kernel]:
    """The recording of a model of `layers` equal layers from those of two and three. First and last layer may differ from the others."""
    counts = {kernel: three[kernel] + (layers - 3) * (three[kernel] - two[kernel]) for kernel in two | three}
    return Counter({kernel: count for kernel, count in counts.items() if count})


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

    LOWER = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, torch.addmm, torch.conv2d, F.conv2d)
    FLOAT32 = (F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.cross_entropy, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt)
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


class KernelRecorder(TorchDispatchMode):
    """Records the kernels of what runs in its context, and the lines at which the host waits for the GPU (`waits`).

    Reading a number from the GPU gives 1. `causal_pairs`: of a packed batch, the sum of n (n + 1) / 2 over samples of n tokens.
    """

    def __init__(self, *, causal_pairs: int = 0):
        super().__init__()
        self.causal_pairs = causal_pairs
        self.kernels: Counter[Kernel] = Counter()
        self.waits: Counter[str] = Counter()
        self._lines: dict[int, str] = {}  # of each autograd node, by its sequence number

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":  # the device of a fake tensor
            return func(*args, **kwargs)
        op = func._schema.name.partition("::")[2]
        line = self._line()
        inputs = _tensors((args, kwargs))
        if op == "_local_scalar_dense" and _on_gpu(inputs):
            self.waits[line] += 1
            return 1
        out = func(*args, **kwargs)
        outputs = _tensors(out)
        if op == "lift_fresh" and _on_gpu(outputs):  # torch.tensor(..., device=...)
            self.waits[line] += 1
        if op in ("_to_copy", "copy_") and _waits(inputs, outputs, non_blocking=kwargs.get("non_blocking") or args[2:3] == (True,)):
            self.waits[line] += 1
        if _on_gpu(inputs + outputs) and _launches_kernels(func, op, inputs, outputs):
            flops, moved = self._flops(func, op, args, kwargs, out), _bytes(func, op, args, kwargs, out)
            self.kernels[Kernel(op, line, flops, moved, _launches(op, args))] += 1
        return out

    def _line(self) -> str:
        """`file:line` of the innermost frame outside of torch, or of the forward pass of the current autograd node."""
        frame: Any = sys._getframe(2)
        while frame and frame.f_code.co_name != "_engine_run_backward":
            path = frame.f_code.co_filename
            is_library = path.startswith(TORCH) or (path.startswith(STDLIB) and "site-packages" not in path)
            if not is_library and path != __file__:
                line = f"{_shorten(path)}:{frame.f_lineno}"
                self._lines.setdefault(torch.autograd._get_sequence_nr() - 1, line)  # autograd makes the node just before
                return line
            frame = frame.f_back
        node = torch._C._current_autograd_node()
        forward = self._lines.get(node._sequence_nr()) if node else None
        return f"backward of {forward}" if forward else f"autograd: {node.name()}" if node else "autograd: sum of gradients"

    def _flops(self, func, op: str, args, kwargs, out) -> int:
        if "_varlen_attn" in op:  # QK and PV forward; dV, dP, dQ, dK and QK again backward
            query_LAE = args["backward" in op]
            return (10 if "backward" in op else 4) * query_LAE.shape[1] * query_LAE.shape[2] * self.causal_pairs
        if op == "addmm_":  # torch has a formula only for the operation that is not in place
            return 2 * math.prod(args[1].shape) * args[2].shape[1]
        formula = flop_registry.get(func.overloadpacket)
        return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _shorten(path: str) -> str:
    """The path from the root of the repository or from site-packages."""
    return path.rpartition("site-packages/")[2] if "site-packages" in path else path.removeprefix(f"{ROOT}/")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _on_gpu(tensors: list[Tensor]) -> bool:
    return any(tensor.device.type != "cpu" for tensor in tensors)


def _waits(inputs: list[Tensor], outputs: list[Tensor], *, non_blocking: bool) -> bool:
    """Whether a copy keeps the host waiting: one from the GPU does, one to the GPU does unless it is `non_blocking`."""
    source, target = inputs[-1], outputs[0]
    return source.device != target.device and not (non_blocking and _on_gpu([target]))


def _size(tensors: Any) -> int:
    """Bytes of all tensors in a tree. A broadcast dimension, whose stride is 0, counts once."""
    return sum(
        t.element_size() * math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or not size)
        for t in _tensors(tensors)
    )


def _launches_kernels(func, op: str, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    if func._schema.is_mutable:
        return True
    memory = {tensor.untyped_storage()._cdata for tensor in inputs}
    is_view = all(tensor.untyped_storage()._cdata in memory for tensor in outputs)
    return not is_view and not op.startswith(("empty", "new_empty"))


def _bytes(func, op: str, args, kwargs, out) -> int:
    if op in LOOK_UPS:
        return _size(args[1:]) + 2 * _size(out)
    if op in SCATTERS:
        return _size(args[1:]) + 2 * _size(args[3])
    if op.endswith("_like") or op.startswith("new_"):
        return _size(out)
    if op == "nll_loss_backward":  # reads the targets, not the log-probabilities
        return _size(args[2:]) + _size(out)
    schema = func._schema
    values = [*zip(schema.arguments, args, strict=False), *((argument, kwargs.get(argument.name)) for argument in schema.arguments)]
    written = [value for argument, value in values if argument.alias_info and argument.alias_info.is_write]
    read = [value for argument, value in values if not (op in WRITE_ONLY and argument.alias_info and argument.alias_info.is_write)]
    results = out if len(schema.returns) > 1 else [out]
    fresh = [result for returned, result in zip(schema.returns, results, strict=False) if not returned.alias_info]
    return _size(read) + _size(written) + _size(fresh)


def _launches(op: str, args) -> int:
    if not op.startswith(("_foreach", "_fused")):
        return 1
    lists = [argument for argument in args if isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor)]
    depth = 4 if op.startswith("_fused") else len(lists) + (not op.endswith("_"))
    blocks = sum(math.ceil(tensor.numel() / BLOCK) for tensor in lists[0])
    return max(math.ceil(len(lists[0]) / TENSORS_PER_LAUNCH[min(depth, 5)]), math.ceil(blocks / BLOCKS_PER_LAUNCH))
