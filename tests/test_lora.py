import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from src.model.cost import AverageSample, average_batch, count_cost
from src.model.fast import llama
from src.model.fast.lora import AdapterSum, lora_linears, patch_peft
from src.model.vlm import build_vlm


def reference_and_ours(*, dropout: float = 0.0, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """peft's model, and a patched one with the same weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Linear(20, 6, bias=bias)).to(dtype)
        settings = LoraConfig(r=4, lora_alpha=10, lora_dropout=dropout, target_modules=["0", "1"], init_lora_weights=False)
        models.append(get_peft_model(base, settings))
    patch_peft(models[1])
    return models[0], models[1]


def outputs_and_gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(x)
    y.float().square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_match_peft(bias):
    reference, ours = reference_and_ours(bias=bias, dtype=torch.float64)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for expected, result in zip(outputs_and_gradients(reference, x), outputs_and_gradients(ours, x), strict=True):
        assert expected.shape == result.shape
        assert torch.allclose(expected, result)


def test_input_without_gradient_is_supported():
    _, ours = reference_and_ours()
    ours(torch.randn(2, 12)).sum().backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    assert not any(p.grad is not None for p in ours.parameters() if not p.requires_grad)


def test_autocast_rounds_as_in_peft():
    reference, ours = reference_and_ours()
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        results, expected = outputs_and_gradients(ours, x), outputs_and_gradients(reference, x)
    assert results[0].dtype == torch.bfloat16
    for one, other in zip(expected, results, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=0.05, atol=0.05 * one.abs().max().item())


def test_layers_with_dropout_are_not_patched():
    reference, ours = reference_and_ours(dropout=0.5)
    x = torch.randn(4, 12)
    results = zip(outputs_and_gradients(reference, x), outputs_and_gradients(ours, x), strict=True)
    assert all(torch.equal(one, other) for one, other in results)


@pytest.mark.slow
def test_flop_count_includes_every_product(configure, monkeypatch):
    """Compared with peft's own layers, one at a time."""
    model = build_vlm(configure())
    batch = average_batch(model, AverageSample(images=0, text=40, supervised=5), rows=1, max_seq_len=160)
    flops = count_cost(model, batch).flops
    for layer in model.modules():
        layer.__dict__.pop("forward", None)
    monkeypatch.setattr(llama, "lora_linears", lambda x, *layers: tuple(layer(x) for layer in layers))
    monkeypatch.setattr(llama, "lora_sums", lambda x, *layers, deferred: tuple(AdapterSum(layer(x)) for layer in layers))
    assert flops == count_cost(model, batch).flops


@pytest.mark.parametrize("frozen_input", [False, True])
def test_layers_of_one_input_match_peft_layer_by_layer(frozen_input):
    torch.manual_seed(0)
    linears = {name: nn.Linear(12, outputs, bias=name == "b") for name, outputs in (("a", 20), ("b", 6), ("c", 4))}
    settings = LoraConfig(r=4, lora_alpha=10, target_modules=["a", "b", "c"], rank_pattern={"b": 2}, init_lora_weights=False)
    layers = get_peft_model(nn.ModuleDict(linears).double(), settings).base_model.model
    data = torch.randn(3, 5, 12, dtype=torch.float64)
    results = []
    for forward in (lambda x: [layer(x) for layer in layers.values()], lambda x: lora_linears(x, *layers.values())):
        layers.zero_grad()
        x = data.clone().requires_grad_(not frozen_input)
        outputs = forward(x)
        sum((y.sin() * n).sum() for n, y in enumerate(outputs, 1)).backward()
        adapter_grads = [p.grad.clone() for p in layers.parameters() if p.requires_grad]
        results.append([*outputs, *([] if frozen_input else [x.grad]), *adapter_grads])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other)
