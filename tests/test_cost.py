import pytest
import torch

from src.config.train import TrainConfig
from src.model.cost import AverageSample, average_batch, build_on_meta, count_cost
from src.model.vlm import build_vlm
from src.plan import batch_to_meta, estimate_memory, measure_cost
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed


def parameters(model) -> dict[str, tuple[int, int]]:
    return {
        name: tuple(sum(p.numel() for p in part.parameters() if p.requires_grad or every) for every in (True, False))
        for name, part in model.parts().items()
    }


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_a_blueprint_counts_what_the_model_counts(configure, how):
    """Same parameters, same matrix products, same kept bytes, although nothing was computed."""
    config = configure(f"trainer.activation_checkpointing={how}")
    model, drawn = build_vlm(config), build_on_meta(config)
    batch = average_batch(model, AverageSample(images=1, text=12, supervised=5), rows=2, max_seq_len=160)
    ours, real = count_cost(drawn, batch_to_meta(batch)), count_cost(model, batch)
    assert (ours.tokens, ours.samples) == (real.tokens, real.samples) == (18 * 17, 18)
    assert ours.flops == pytest.approx(real.flops, rel=0.02)
    assert ours.saved == pytest.approx(real.saved, rel=0.05)
    mine, theirs = parameters(drawn), parameters(model)
    assert mine["vision"] == theirs["vision"]
    assert mine["projector"] == theirs["projector"]
    assert mine["language"][1] == theirs["language"][1]


@pytest.mark.slow
def test_the_real_7b_costs_little_more_than_it_must():
    """LLaMA-7B with LoRA r=8 on every linear layer and ViT-B/16: samples of 196 + 61 tokens, 30 of them supervised.

    The minimum, of the language model alone and without its attention: 4 FLOPs per frozen weight that an input meets and real token,
    6 per trained one.
    """
    found = {}
    for how in ("none", "selective", "full"):
        config = to_typed(
            TrainConfig, compose("train", ["+experiment=full_mix", f"trainer.activation_checkpointing={how}", "data.max_seq_len=1032"])
        )
        assert config.trainer.precision == "bf16-mixed"
        found[how] = measure_cost(config, AverageSample(images=1, text=61, supervised=30), checkpointing=how)
        # As text, so that the encoder sees one blank image per batch and the language model is left.
        found[f"{how}, text"] = measure_cost(config, AverageSample(images=0, text=257, supervised=30), checkpointing=how)
    assert parameters(build_on_meta(config))["language"][1] == 19_988_480
    least = 4 * 6.476e9 + 4 * 131e6 * 30 / 258 + 6 * 20.0e6
    per_token = {how.removesuffix(", text"): cost.flops / cost.tokens for how, cost in found.items() if how.endswith("text")}
    assert least < per_token["none"] <= 1.03 * least
    assert per_token["selective"] == per_token["none"]
    kept = {how: cost.saved / cost.tokens / 1e6 for how, cost in found.items()}
    assert kept["none, text"] <= 5.6  # of the language model, as the least is
    assert kept["none"] <= 5.75
    assert kept["selective"] <= 4.5
    assert kept["full"] <= 0.5


@pytest.mark.slow
def test_memory_is_what_the_optimizer_holds(configure):
    config = configure()
    model = build_vlm(config)
    batch = average_batch(model, AverageSample(images=1, text=12, supervised=5), rows=2, max_seq_len=160)
    found = estimate_memory(config, model, count_cost(model, batch), working=0, reserve=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    count_cost(model, batch)
    optimizer.step()
    held = [p.grad for p in model.parameters() if p.grad is not None]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert found.parts["gradients, AdamW"] == sum(tensor.nbytes for tensor in held)
    assert found.parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert found.tokens(1.0) > found.tokens(0.5)
    assert found.tokens(0.0) == 0


def test_mistakes_are_one_sentence(configure):
    with pytest.raises(UserError, match=r"language.path=./nowhere does not exist"):
        build_on_meta(configure("language.path=./nowhere"))
    with pytest.raises(UserError, match=r"data.max_seq_len=10 cannot hold an average sample of 17 tokens"):
        average_batch(build_vlm(configure()), AverageSample(images=1, text=12, supervised=5), rows=1, max_seq_len=10)
