import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from src.model.cost import AverageSample, average_batch, count_cost
from src.model.fast import llama
from src.model.fast.lora import lora_linears, patch_peft
from src.model.vlm import build_vlm


def pair(*, dropout: float = 0.0, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """peft's layer and ours with the same weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Linear(20, 6, bias=bias)).to(dtype)
        settings = LoraConfig(r=4, lora_alpha=10, lora_dropout=dropout, target_modules=["0", "1"], init_lora_weights=False)
        models.append(get_peft_model(base, settings))
    patch_peft(models[1])
    return models[0], models[1]


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(x)
    y.float().square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_peft(bias):
    theirs, ours = pair(bias=bias, dtype=torch.float64)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for one, other in zip(step(theirs, x), step(ours, x), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other)


def test_a_frozen_input_needs_no_gradient():
    _, ours = pair()
    ours(torch.randn(2, 12)).sum().backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    assert not any(p.grad is not None for p in ours.parameters() if not p.requires_grad)


def test_autocast_rounds_where_peft_rounds():
    theirs, ours = pair()
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(ours, x), step(theirs, x)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=0.05, atol=0.05 * one.abs().max().item())


def test_dropout_stays_as_peft_has_it():
    theirs, ours = pair(dropout=0.5)
    x = torch.randn(4, 12)
    assert all(torch.equal(one, other) for one, other in zip(step(theirs, x), step(ours, x), strict=True))


@pytest.mark.slow
def test_no_product_is_left_out_of_the_count(configure, monkeypatch):
    """Against peft's own layers, one after another."""
    model = build_vlm(configure())
    batch = average_batch(model, AverageSample(images=0, text=40, supervised=5), rows=1, max_seq_len=160)
    ours = count_cost(model, batch).flops
    for layer in model.modules():
        layer.__dict__.pop("forward", None)
    monkeypatch.setattr(llama, "lora_linears", lambda x, *layers: tuple(layer(x) for layer in layers))
    assert ours == count_cost(model, batch).flops


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_of_one_input_are_what_peft_makes_of_each(frozen):
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: nn.Linear(12, outputs, bias=name == "b") for name, outputs in (("a", 20), ("b", 6), ("c", 4))}).double()
    settings = LoraConfig(r=4, lora_alpha=10, target_modules=["a", "b", "c"], rank_pattern={"b": 2}, init_lora_weights=False)
    theirs = get_peft_model(layers, settings).base_model.model
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    found = []
    for make in (lambda x: [layer(x) for layer in theirs.values()], lambda x: lora_linears(x, *theirs.values())):
        theirs.zero_grad()
        given = x.clone().requires_grad_(not frozen)
        made = make(given)
        sum((y.sin() * n).sum() for n, y in enumerate(made, 1)).backward()
        found.append([*made, *([] if frozen else [given.grad]), *(p.grad.clone() for p in theirs.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other)
