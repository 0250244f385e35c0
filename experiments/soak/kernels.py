"""The functions of src/model/fast/elementwise.py, compiled by inductor for this CPU, against the same functions as PyTorch runs them."""

import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters

from experiments.soak.trial import Row
from src.model.fast import elementwise

SHAPES = {  # shapes of the arguments for n tokens; numbers as they are
    "rmsnorm": lambda n: [(n, 64), (64,), 1e-5],
    "add_rmsnorm": lambda n: [(n, 64), (n, 64), (64,), 1e-5, (n, 4), (64, 4)],
    "add_residual": lambda n: [(n, 64), (n, 64), (n, 4), (64, 4)],
    "rmsnorm_backward": lambda n: [(n, 64), (n, 64), (64,), (n, 1), (n, 64)],
    "silu_product": lambda n: [(n, 96), (n, 96), (n, 4), (96, 4), (n, 2), (96, 2)],
    "silu_product_backward": lambda n: [(n, 96), (n, 96), (n, 96), (n, 8), (8, 96), (n, 4), (96, 4), (n, 2), (96, 2)],
    "rotary": lambda n: [(n, 4, 16), (n, 16), (n, 16)],
    "rotary_backward": lambda n: [(n, 4, 16), (n, 16), (n, 16)],
}
TOKENS = (32, 48, 80)
GRAPHS = 2  # one for the first number of tokens, and one for all others


def trial(model: str) -> list[Row]:
    del model
    return [row for name in SHAPES for row in compare(name)]


def compare(name: str) -> list[Row]:
    function = getattr(elementwise, name).__wrapped__
    compiled = torch.compile(function, dynamic=True)
    counters["stats"].clear()
    largest = 0.0
    for tokens in TOKENS:
        torch.manual_seed(tokens)
        arguments = [torch.randn(*shape, dtype=torch.float64) if isinstance(shape, tuple) else shape for shape in SHAPES[name](tokens)]
        with torch._inductor.config.patch(compile_threads=1):
            pairs = zip(_as_tuple(compiled(*arguments)), _as_tuple(function(*arguments)), strict=True)
        largest = max(largest, *(float((one - other).abs().max() / other.abs().max()) for one, other in pairs))
    graphs = counters["stats"]["unique_graphs"]
    return [
        Row(f"{name}: largest relative difference, float64", f"{largest:.0e}", "1e-13", largest <= 1e-13),
        Row(f"{name}: compiled graphs for {len(TOKENS)} lengths", str(graphs), f"at most {GRAPHS}", graphs <= GRAPHS),
    ]


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
