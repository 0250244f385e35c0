"""Which activations of the language model are computed again in the backward pass instead of kept.

Per token and layer of LLaMA-7B in bfloat16 (width H = 4,096, inner width I = 11,008) autograd keeps 20 H + 8 I bytes; `cheap`
keeps 16 H + 6 I at no matrix product more, `full` keeps 2 H and repeats the whole layer.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(base: nn.Module, how: str) -> None:
    """Changes a transformers model of the LLaMA family in place; its outputs and gradients stay what they were."""
    if how == "full":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if how == "cheap":
        for module in base.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(again, module.forward)  # keeps its input, not the float32 copy of it
            elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
                module.forward = partial(gated, module)


def again(function: Callable, *tensors: Tensor) -> Tensor:
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def gated(mlp: nn.Module, x_BTH: Tensor) -> Tensor:
    """The gated MLP of LLaMA; the activation of the gate is not kept."""
    product_BTI = again(lambda gate_BTI, up_BTI: mlp.act_fn(gate_BTI) * up_BTI, mlp.gate_proj(x_BTH), mlp.up_proj(x_BTH))
    return mlp.down_proj(product_BTI)
