import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from src.model.fast.recompute import patch_recompute, recomputed_mlp, recomputed_rmsnorm
from src.runtime.errors import UserError
from tests.rounding import rounding

CONFIG = LlamaConfig(hidden_size=32, intermediate_size=80)


def norm():
    module = LlamaRMSNorm(32, eps=1e-3).requires_grad_(False)
    module.weight.copy_(torch.rand(32) + 0.5)
    return module


@pytest.mark.parametrize(
    ("make", "recomputed"), [(norm, recomputed_rmsnorm), (lambda: LlamaMLP(CONFIG).requires_grad_(False), recomputed_mlp)]
)
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 32 + 80 + 8), (torch.bfloat16, 8)])
def test_recomputed_modules_match_transformers(make, recomputed, dtype, steps):
    """`steps`: sums of 32 and 80 terms and eight element-wise operations; products of bfloat16 are summed in float32."""
    torch.manual_seed(0)
    module = make().to(dtype)
    x_BTH = torch.randn(2, 7, 32, dtype=dtype, requires_grad=True)
    dy_BTH = torch.randn(2, 7, 32, dtype=dtype)
    assert torch.equal(recomputed(module, x_BTH), module(x_BTH))
    (expected,) = torch.autograd.grad(module(x_BTH), x_BTH, dy_BTH)
    (grad,) = torch.autograd.grad(recomputed(module, x_BTH), x_BTH, dy_BTH)
    assert grad.dtype == dtype
    assert (grad - expected).abs().max() <= rounding(steps, expected.abs().max(), dtype)


def test_selective_checkpointing_of_other_norms_is_refused():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50}
    gemma = GemmaForCausalLM(GemmaConfig(hidden_size=32, intermediate_size=80, **sizes))
    with pytest.raises(UserError, match=r"the model has Gemma\w+.*set trainer\.activation_checkpointing=full or none"):
        patch_recompute(gemma, on_cpu=True)
