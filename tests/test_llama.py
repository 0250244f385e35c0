import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from src.config.train import LoraSettings
from src.model.cost import AverageSample, average_batch, count_cost
from src.model.fast.llama import LossOnlyLastLayer, PackedAttention
from src.model.language import Language
from src.model.vlm import build_vlm

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CU_SEQLENS = [0, 5, 9, 12, 19, 24]  # two sequences of 12 tokens: samples of 5, 4 and 3, and of 7 and 5
POSITIONS = torch.tensor([[*range(5), *range(4), *range(3)], [*range(7), *range(5)]])
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50, "num_attention_heads": 4}
LLAMA, MISTRAL = (LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)
QWEN2, QWEN3 = (Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)  # the heads of Qwen3 are wider than H / A


def reference_and_ours(family=LLAMA, *, groups: int = 2, targets=ALL, dropout: float = 0.0, how: str = "none"):
    """A model of transformers and peft, and our `Language` with the same weights."""
    bases = []
    for _ in range(2):
        torch.manual_seed(0)
        bases.append(family[1](family[0](**SHAPE, num_key_value_heads=groups)).double())
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout, "target_modules": targets, "task_type": "CAUSAL_LM"}
    reference = get_peft_model(bases[0], LoraConfig(**settings)).train()
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: 1)
    lora = LoraSettings(rank=4, alpha=8, dropout=dropout, targets=list(targets))
    ours = Language(bases[1], tokenizer, lora, activation_checkpointing=how).double().train()
    if how == "selective":
        for norm in (module for module in reference.modules() if type(module).__name__.endswith("RMSNorm")):
            norm.forward = functools.partial(rms_norm, norm)  # transformers computes norms in float32, `selective` in float64
    for model in (reference, ours):
        torch.manual_seed(1)
        for name, p in model.named_parameters():
            if "lora_" in name or name.endswith(("bias", "norm.weight")):  # transformers starts biases at 0 and norms at 1
                p.data.normal_()
    return reference, ours


def rms_norm(norm, x):
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def states_and_gradients(reference, ours, index: list[int]):
    """[hidden states of the tokens `index`, gradients of the input and of every adapter] of both models."""
    index_S = torch.tensor(index, dtype=torch.long)
    results = []
    for model in (reference, ours):
        torch.manual_seed(2)
        e_BTH = torch.randn(2, 12, 32, dtype=torch.float64, requires_grad=True)
        if model is ours:
            h_SH = ours.loss_states(e_BTH, POSITIONS, CU_SEQLENS, index_S)
        else:
            body = reference.base_model.model.model
            h_SH = body(inputs_embeds=e_BTH, position_ids=POSITIONS, use_cache=False).last_hidden_state.flatten(0, 1)[index_S]
        (h_SH.sin() * torch.arange(1, 33)).sum().backward()
        results.append([h_SH, e_BTH.grad, *(p.grad for name, p in model.named_parameters() if "lora_" in name)])
    return results


@pytest.mark.parametrize("how", ["none", "selective", "full"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"]])
def test_packed_sequences_match_transformers_and_peft(how, groups, targets):
    """The reference finds samples by the restarting positions and uses a dense mask."""
    expected, results = states_and_gradients(*reference_and_ours(groups=groups, targets=targets, how=how), [1, 3, 8, 11, 12, 22])
    scale = max(one.abs().max() for one in expected)
    assert all((one - other).abs().max() <= 1e-12 * scale for one, other in zip(expected, results, strict=True))
    assert all(one.any() for one in expected)


@pytest.mark.parametrize(
    ("family", "how"), [(MISTRAL, "none"), *((f, how) for f in (QWEN2, QWEN3) for how in ("none", "selective", "full"))]
)
def test_other_families_match_transformers_and_peft(family, how):
    reference, ours = reference_and_ours(family, how=how)
    layers = ours.body.layers
    assert isinstance(layers[-1], LossOnlyLastLayer) == all(isinstance(layer.self_attn, PackedAttention) for layer in layers)
    assert isinstance(layers[-1], LossOnlyLastLayer) == (family != MISTRAL)
    expected, results = states_and_gradients(reference, ours, [0, 3, 8, 22])
    scale = max(one.abs().max() for one in expected)
    assert all((one - other).abs().max() <= 1e-12 * scale for one, other in zip(expected, results, strict=True))
    assert all(one.any() for one in expected)


def test_adapter_dropout_draws_the_same_numbers_as_peft():
    expected, results = states_and_gradients(*reference_and_ours(dropout=0.5), list(range(24)))
    assert all(torch.allclose(one, other) for one, other in zip(expected, results, strict=True))


@pytest.mark.parametrize("how", ["none", "selective"])
def test_unsupervised_rows_get_zero_grad(how):
    _, (h_SH, de_BTH, *adapters) = states_and_gradients(*reference_and_ours(how=how), [])
    assert h_SH.shape == (0, 32)
    assert all(grad is not None and not grad.any() for grad in (de_BTH, *adapters))


@pytest.mark.slow
def test_last_layer_computes_only_supervised_tokens_after_its_attention(configure):
    """FLOPs of forward and backward pass: 4 per weight of the output projection and of the three MLP matrices, 6 per weight of their
    adapters, 4 per weight of the head."""
    model = build_vlm(configure())
    few, many = (
        count_cost(model, average_batch(model, AverageSample(images=0, text=60, supervised=n), rows=1, max_seq_len=160)) for n in (10, 40)
    )
    layer, head = model.language.base.model.layers[-1], model.language.head.weight.numel()
    linears = [layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    frozen = sum(linear.base_layer.weight.numel() for linear in linears)
    trained = sum(p.numel() for linear in linears for p in linear.parameters() if p.requires_grad)
    assert few.tokens == many.tokens
    assert many.flops - few.flops == 30 * many.samples * (4 * (frozen + head) + 6 * trained)
