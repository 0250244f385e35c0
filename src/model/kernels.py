"""The kernels that PyTorch launches on a GPU, recorded without one, on the fake tensors of src/model/fake_gpu.py.

`KernelRecorder` counts the operations below autograd, as PyTorch dispatches them:

- FLOPs of matrix products, convolutions and attention, by the formulas of torch.utils.flop_counter. Attention per sample of a packed
  batch counts the pairs (token, earlier token of the same sample), which `causal_pairs` states, because fake tensors have no lengths.
- Bytes: each operand is read once and each result is written once. A dimension that is broadcast costs nothing. An operation in place
  reads and writes its target; `copy_`, `fill_` and `zero_` only write it. Look-ups (`embedding`, `index_select`, `gather`) read as many
  elements as they write, and `scatter_add_` and `index_add_` touch as many as they add; the loss does not read the log-probabilities again.
- An operation whose results all share memory with its operands (a view), or whose result is empty memory, launches nothing.
- `_foreach_*` and `_fused_*` launch as many kernels as torch's multi_tensor_apply needs for the number and the sizes of the tensors.
"""

import math
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from src.model import fake_gpu
from src.model.roofline import Kernel

ROOT = Path(__file__).parents[2]
TORCH, STDLIB = f"{Path(torch.__file__).parent}/", f"{sysconfig.get_path('stdlib')}/"
INSTRUMENTS = (__file__, fake_gpu.__file__)  # whose frames are not those of the code that runs
WRITE_ONLY = ("copy_", "fill_", "zero_", "_foreach_copy_")
LOOK_UPS = ("embedding", "index_select", "gather", "index", "nll_loss_forward")
SCATTERS = ("scatter_add_", "index_add_")
# aten/src/ATen/native/cuda/MultiTensorApply.cuh: tensors of a launch by the number of lists, blocks of a launch, elements of a block.
TENSORS_PER_LAUNCH, BLOCKS_PER_LAUNCH, BLOCK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65_536


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
            if not is_library and path not in INSTRUMENTS:
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
