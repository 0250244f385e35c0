from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from src.config.train import LoraSettings
from src.model.cost import AverageSample, average_batch, count_cost
from src.model.fast.attention import PackedSequences
from src.model.fast.recompute import set_activation_checkpointing
from src.model.language import Language
from src.model.vlm import build_vlm
from tests.rounding import rounding

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EDGES = [0, 5, 9, 12, 19, 24]  # two rows of 12: samples of 5, 4 and 3, and 7 and 5
POSITIONS = torch.tensor([[*range(5), *range(4), *range(3)], [*range(7), *range(5)]])
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50, "num_attention_heads": 4}
LLAMA, MISTRAL, QWEN = (LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM), (Qwen2Config, Qwen2ForCausalLM)


def pair(family=LLAMA, *, groups: int = 2, targets=ALL, dropout: float = 0.0, how: str = "none"):
    """transformers with peft, and ours with the same weights."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(family[1](family[0](**SHAPE, num_key_value_heads=groups)).double())
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout, "target_modules": targets, "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(made[0], LoraConfig(**settings)).train()
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: 1)
    ours = Language(made[1], tokenizer, LoraSettings(rank=4, alpha=8, dropout=dropout, targets=list(targets))).double().train()
    for model in (theirs, ours):
        torch.manual_seed(1)
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data.normal_()
    set_activation_checkpointing(ours.base, how)
    return theirs, ours


def states(theirs, ours, wanted: list[int]):
    """[hidden states of `wanted`, gradients of the input and of every adapter] of both."""
    wanted_S, spans = torch.tensor(wanted, dtype=torch.long), PackedSequences.of(EDGES, torch.device("cpu"))
    found = []
    for side in (theirs, ours):
        torch.manual_seed(2)
        e_BTH = torch.randn(2, 12, 32, dtype=torch.float64, requires_grad=True)
        if side is ours:
            h_SH = ours.states(e_BTH, POSITIONS, spans, wanted_S)
        else:
            body = theirs.base_model.model.model
            h_SH = body(inputs_embeds=e_BTH, position_ids=POSITIONS, use_cache=False).last_hidden_state.flatten(0, 1)[wanted_S]
        (h_SH.sin() * torch.arange(1, 33)).sum().backward()
        found.append([h_SH, e_BTH.grad, *(p.grad for name, p in side.named_parameters() if "lora_" in name)])
    return found


@pytest.mark.parametrize("how", ["none", "selective", "full"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"]])
def test_packed_rows_are_what_transformers_and_peft_compute(how, groups, targets):
    """transformers tells samples apart by the restarting positions and masks densely."""
    expected, found = states(*pair(groups=groups, targets=targets, how=how), [1, 3, 8, 11, 12, 22])
    # Norms compute in float32, whose backward pass `selective` has of its own: in each of five, sums of 32 terms and eight operations.
    apart = rounding(5 * (32 + 8), 1) if how == "selective" else 1e-12
    size = max(one.abs().max() for one in expected)
    assert all((one - other).abs().max() <= apart * size for one, other in zip(expected, found, strict=True))
    assert all(one.any() for one in expected)


@pytest.mark.parametrize("family", [MISTRAL, QWEN])
def test_other_families_go_transformers_way(family):
    expected, found = states(*pair(family), [0, 8, 23])
    assert all(torch.allclose(one, other) for one, other in zip(expected, found, strict=True))


def test_dropout_of_adapters_is_drawn_as_peft_draws_it():
    expected, found = states(*pair(dropout=0.5), list(range(24)))
    assert all(torch.allclose(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("how", ["none", "selective"])
def test_rows_that_predict_nothing_train_nothing(how):
    _, (h_SH, de_BTH, *adapters) = states(*pair(how=how), [])
    assert h_SH.shape == (0, 32)
    assert all(grad is not None and not grad.any() for grad in (de_BTH, *adapters))


@pytest.mark.slow
def test_behind_its_attention_the_last_layer_meets_only_what_predicts(configure):
    """Forward and backward: 4 FLOPs per weight of its output projection and its three of the MLP, 6 per weight of their adapters, and
    the head's 4."""
    model = build_vlm(configure())
    few, many = (
        count_cost(model, average_batch(model, AverageSample(images=0, text=60, supervised=n), rows=1, max_seq_len=160)) for n in (10, 40)
    )
    layer, head = model.language.base.model.layers[-1], model.language.head.weight.numel()
    behind = [layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    frozen = sum(one.base_layer.weight.numel() for one in behind)
    trained = sum(p.numel() for one in behind for p in one.parameters() if p.requires_grad)
    assert few.tokens == many.tokens
    assert many.flops - few.flops == 30 * many.samples * (4 * (frozen + head) + 6 * trained)
