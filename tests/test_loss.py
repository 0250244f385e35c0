import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.model import loss
from src.model.loss import token_losses
from tests.rounding import rounding


def setting(tokens: int, dtype=torch.float64):
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False, dtype=dtype).requires_grad_(False)
    return torch.randn(tokens, 16, dtype=dtype, requires_grad=True), head, torch.randint(0, 50, (tokens,))


@pytest.mark.parametrize(("tokens", "chunk"), [(7, 50), (7, 150), (7, 10_000), (1, 1)])
def test_losses_and_gradients_are_those_of_cross_entropy(monkeypatch, tokens, chunk):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    h_SH, head, targets_S = setting(tokens)
    weights_S = torch.rand(tokens, dtype=torch.float64)
    ours = token_losses(h_SH, head, targets_S)
    grad = torch.autograd.grad((ours * weights_S).sum(), h_SH)[0]
    reference = F.cross_entropy(head(h_SH), targets_S, reduction="none")
    expected = torch.autograd.grad((reference * weights_S).sum(), h_SH)[0]
    # Sums over 16 features and 50 words, an exponential and a logarithm.
    assert (ours - reference).abs().max() <= rounding(16 + 50 + 8, reference.max() + 1, torch.float64)
    assert (grad - expected).abs().max() <= rounding(16 + 50 + 8, 1, torch.float64)


def test_a_bfloat16_model_has_float32_losses():
    h_SH, head, targets_S = setting(9, torch.bfloat16)
    ours = token_losses(h_SH, head, targets_S)
    assert ours.dtype == torch.float32
    logits_SV = head(h_SH).float()
    apart = rounding(2, logits_SV.abs().max(), torch.bfloat16)  # of the target's logit and of the others
    assert (ours - F.cross_entropy(logits_SV, targets_S, reduction="none")).abs().max() <= apart
    ours.sum().backward()
    assert h_SH.grad.dtype == torch.bfloat16


def test_no_token_is_no_loss_and_no_gradient():
    h_SH, head, targets_S = setting(4)
    token_losses(h_SH[:0], head, targets_S[:0]).sum().backward()
    assert not h_SH.grad.any()


def test_what_is_kept_for_the_backward_pass_is_as_wide_as_the_model():
    kept = []
    h_SH, head, targets_S = setting(40)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        token_losses(h_SH, head, targets_S)
    assert sum(kept) == h_SH.numel()


def test_a_head_that_trains_is_refused():
    h_SH, head, targets_S = setting(4)
    with pytest.raises(AssertionError, match="frozen"):
        token_losses(h_SH, head.requires_grad_(True), targets_S)
