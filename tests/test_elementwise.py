"""src/model/fast/elementwise.py: the kernels of norms, activations and rotary embeddings."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from src.model.fast import attention, elementwise
from src.model.fast.llama import _ApplyRotary
from src.model.fast.recompute import _RecomputedGate, _RecomputedRMSNorm


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


def rotate(x_LAE: torch.Tensor, cos_LE: torch.Tensor, sin_LE: torch.Tensor) -> torch.Tensor:
    """As transformers writes it."""
    left, right = x_LAE.chunk(2, -1)
    return x_LAE * cos_LE[:, None] + torch.cat((-right, left), -1) * sin_LE[:, None]


def add_norm(x, delta, weight, epsilon):
    total = x + delta
    return total, F.rms_norm(total, weight.shape, weight, epsilon)


ANGLES = torch.linspace(0, 6, 5 * 4, dtype=torch.float64).view(5, 4).repeat(1, 2)
NORM = (torch.linspace(0.5, 1.5, 8, dtype=torch.float64), 1e-3)
CASES = {  # autograd function, plain PyTorch, arguments with a gradient, other arguments
    "norm": (
        _RecomputedRMSNorm.apply,
        lambda x, delta, *rest: (x, F.rms_norm(x, rest[0].shape, *rest)),
        [(5, 8)],
        (None, *NORM),
    ),
    "sum and norm": (_RecomputedRMSNorm.apply, add_norm, [(5, 8), (5, 8)], NORM),
    "gate": (lambda *inputs: _RecomputedGate.apply(*inputs)[0], lambda gate, up: F.silu(gate) * up, [(5, 12), (5, 12)], ()),
    "rotary": (
        _ApplyRotary.apply,
        lambda q, k, *angles: (rotate(q, *angles), rotate(k, *angles)),
        [(5, 4, 8), (5, 2, 8)],
        (ANGLES.cos(), ANGLES.sin()),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_plain_pytorch(case):
    function, plain, shapes, rest = CASES[case]
    torch.manual_seed(0)
    inputs = [normal(*shape).requires_grad_() for shape in shapes]
    results = []
    for run in (function, plain):
        outputs = run(*inputs, *rest)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((y.sin() * n).sum() for n, y in enumerate(outputs, 1))
        results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-13 * other.abs().max()


def test_broken_compiler_is_reported_once_and_the_plain_functions_serve(monkeypatch):
    def broken(function, **options):
        def run(*arguments):
            raise ImportError("libtriton.so: undefined symbol\nsecond line")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(elementwise, "compiler_works", True)
    silu, norm = (elementwise.compile_or_keep(getattr(elementwise, name).__wrapped__) for name in ("silu_product", "rmsnorm"))
    gate, up, weight = normal(3, 8), normal(3, 8), normal(8)
    with warnings.catch_warnings(record=True) as caught:
        assert torch.equal(silu(gate, up), F.silu(gate) * up)
        assert torch.allclose(norm(gate, weight, 1e-5)[0], F.rms_norm(gate, (8,), weight, 1e-5))
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith("torch.compile does not work here (ImportError: libtriton.so: undefined symbol); norms")
    assert "Install the Triton that belongs to this version of torch" in message


def test_lack_of_memory_is_not_a_broken_compiler(monkeypatch):
    def full(function, **options):
        def run(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setattr(torch, "compile", full)
    monkeypatch.setattr(elementwise, "compiler_works", True)
    with pytest.raises(torch.OutOfMemoryError):
        elementwise.compile_or_keep(F.silu)(normal(2))
    assert elementwise.compiler_works


def test_gpu_without_flash_attention_takes_one_call_per_sample_with_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    attention.has_flash_attention.cache_clear()
    with pytest.warns(UserWarning, match=r"Tesla T4 has compute capability 7\.5, and flash attention needs 8\.0"):
        assert not attention.has_flash_attention(torch.device("cuda:0"))
    assert attention.has_flash_attention(torch.device("meta"))
    assert not attention.has_flash_attention(torch.device("cpu"))
    attention.has_flash_attention.cache_clear()
