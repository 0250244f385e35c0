import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.model import loss
from src.model.loss import token_losses
from tests.rounding import rounding


def states_head_targets(tokens: int, dtype=torch.float64):
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False, dtype=dtype).requires_grad_(False)
    return torch.randn(tokens, 16, dtype=dtype, requires_grad=True), head, torch.randint(0, 50, (tokens,))


@pytest.mark.parametrize(("tokens", "chunk"), [(7, 50), (7, 150), (7, 10_000), (1, 1)])
def test_losses_and_gradients_match_cross_entropy(monkeypatch, tokens, chunk):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    h_SH, head, targets_S = states_head_targets(tokens)
    weights_S = torch.rand(tokens, dtype=torch.float64)
    losses = token_losses(h_SH, head, targets_S)
    grad = torch.autograd.grad((losses * weights_S).sum(), h_SH)[0]
    expected = F.cross_entropy(head(h_SH), targets_S, reduction="none")
    expected_grad = torch.autograd.grad((expected * weights_S).sum(), h_SH)[0]
    # Roundings of sums over 16 features and 50 words, an exponential and a logarithm.
    assert (losses - expected).abs().max() <= rounding(16 + 50 + 8, expected.max() + 1, torch.float64)
    assert (grad - expected_grad).abs().max() <= rounding(16 + 50 + 8, 1, torch.float64)
    assert torch.equal(token_losses(h_SH, head, targets_S, fast=False), expected)


@pytest.mark.parametrize("fast", [True, False])
def test_losses_of_a_bfloat16_model_are_float32(fast):
    h_SH, head, targets_S = states_head_targets(9, torch.bfloat16)
    losses = token_losses(h_SH, head, targets_S, fast=fast)
    assert losses.dtype == torch.float32
    logits_SV = head(h_SH).float()
    tolerance = rounding(2, logits_SV.abs().max(), torch.bfloat16)  # of the target's logit and of the others
    assert (losses - F.cross_entropy(logits_SV, targets_S, reduction="none")).abs().max() <= tolerance
    losses.sum().backward()
    assert h_SH.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("fast", [True, False])
def test_no_tokens_give_no_losses_and_zero_grad(fast):
    h_SH, head, targets_S = states_head_targets(4)
    losses_S = token_losses(h_SH[:0], head, targets_S[:0], fast=fast)
    assert losses_S.shape == (0,)
    losses_S.sum().backward()
    assert not h_SH.grad.any()


def test_backward_pass_saves_as_much_as_the_hidden_states():
    saved = []
    h_SH, head, targets_S = states_head_targets(40)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor):
        token_losses(h_SH, head, targets_S)
    assert sum(saved) == h_SH.numel()


def test_trainable_head_is_refused_on_the_fast_path_only():
    h_SH, head, targets_S = states_head_targets(4)
    with pytest.raises(AssertionError, match="frozen"):
        token_losses(h_SH, head.requires_grad_(True), targets_S)
    token_losses(h_SH, head, targets_S, fast=False).sum().backward()
    assert head.weight.grad.any()
