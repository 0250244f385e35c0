import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from src.model.fast.recompute import recomputed_gate, recomputed_rmsnorm, set_activation_checkpointing
from src.runtime.errors import UserError
from tests.rounding import rounding

CONFIG = LlamaConfig(hidden_size=32, intermediate_size=80)


def norm():
    module = LlamaRMSNorm(32, eps=1e-3).requires_grad_(False)
    module.weight.copy_(torch.rand(32) + 0.5)
    return module


@pytest.mark.parametrize(
    ("module", "ours"), [(norm, recomputed_rmsnorm), (lambda: LlamaMLP(CONFIG).requires_grad_(False), recomputed_gate)]
)
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 32 + 80 + 8), (torch.bfloat16, 8)])
def test_cheap_parts_compute_what_transformers_computes(module, ours, dtype, steps):
    """Sums of 32 and 80 terms and eight element-wise operations; products of bfloat16 are added up in float32."""
    torch.manual_seed(0)
    theirs = module().to(dtype)
    x_BTH = torch.randn(2, 7, 32, dtype=dtype, requires_grad=True)
    dy_BTH = torch.randn(2, 7, 32, dtype=dtype)
    assert torch.equal(ours(theirs, x_BTH), theirs(x_BTH))
    (expected,) = torch.autograd.grad(theirs(x_BTH), x_BTH, dy_BTH)
    (found,) = torch.autograd.grad(ours(theirs, x_BTH), x_BTH, dy_BTH)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= rounding(steps, expected.abs().max(), dtype)


def test_a_model_whose_norms_are_not_llamas_is_refused():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50}
    gemma = GemmaForCausalLM(GemmaConfig(hidden_size=32, intermediate_size=80, **sizes))
    with pytest.raises(UserError, match=r"the model has Gemma\w+.*set trainer\.activation_checkpointing=full or none"):
        set_activation_checkpointing(gemma, "selective")
