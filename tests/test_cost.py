import pytest
import torch

from src.commands.plan import batch_to_meta, estimate_memory, measure_cost
from src.config.train import TrainConfig
from src.model.cost import AverageSample, average_batch, build_on_meta, count_cost
from src.model.fast.elementwise import meta_counts_as
from src.model.vlm import build_vlm
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed


def parameter_counts(model) -> dict[str, tuple[int, int]]:
    """Per part: (number of parameters, number of trainable parameters)."""
    return {
        name: (sum(p.numel() for p in part.parameters()), sum(p.numel() for p in part.parameters() if p.requires_grad))
        for name, part in model.parts().items()
    }


@pytest.mark.parametrize(("how", "fast"), [("none", True), ("selective", True), ("full", True), ("none", False), ("full", False)])
def test_meta_model_counts_what_the_real_model_counts(configure, how, fast):
    """Same parameters, same matrix products, same saved bytes, although the meta device computes nothing."""
    config = configure(f"trainer.activation_checkpointing={how}", f"language.fast={str(fast).lower()}")
    model, meta = build_vlm(config), build_on_meta(config)
    batch = average_batch(model, AverageSample(images=1, text=12, supervised=5), rows=2, max_seq_len=160)
    with meta_counts_as("cpu"):
        estimate = count_cost(meta, batch_to_meta(batch))
    expected = count_cost(model, batch)
    assert (estimate.tokens, estimate.samples) == (expected.tokens, expected.samples) == (18 * 17, 18)
    assert estimate.flops == pytest.approx(expected.flops, rel=0.02)
    assert estimate.saved == pytest.approx(expected.saved, rel=0.05)
    meta_counts, counts = parameter_counts(meta), parameter_counts(model)
    assert meta_counts["vision"] == counts["vision"]
    assert meta_counts["projector"] == counts["projector"]
    assert meta_counts["language"][1] == counts["language"][1]


@pytest.mark.slow
def test_7b_costs_little_more_than_the_minimum():
    """LLaMA-7B with LoRA r=8 on every linear layer and ViT-B/16: samples of 196 + 61 tokens, 30 of them supervised.

    The minimum is that of the language model alone without its attention: per token, 4 FLOPs per frozen weight that the token meets
    and 6 per trained weight. On a GPU `selective` is `none`.
    """
    costs = {}
    for how in ("none", "full"):
        config = to_typed(
            TrainConfig, compose("train", ["+experiment=recommended", f"trainer.activation_checkpointing={how}", "data.max_seq_len=1032"])
        )
        assert config.trainer.precision == "bf16-mixed"
        costs[how] = measure_cost(config, AverageSample(images=1, text=61, supervised=30), checkpointing=how)
        if how != "full":
            # The same length as text alone: the encoder gets one blank image per batch, so that the language model dominates.
            costs[f"{how}, text"] = measure_cost(config, AverageSample(images=0, text=257, supervised=30), checkpointing=how)
    assert parameter_counts(build_on_meta(config))["language"][1] == 19_988_480
    minimum = 4 * 6.476e9 + 4 * 131e6 * 30 / 258 + 6 * 20.0e6
    flops_per_token = {how.removesuffix(", text"): cost.flops / cost.tokens for how, cost in costs.items() if how.endswith("text")}
    assert minimum < flops_per_token["none"] <= 1.03 * minimum
    saved_mb_per_token = {how: cost.saved / cost.tokens / 1e6 for how, cost in costs.items()}
    assert saved_mb_per_token["none, text"] <= 4.45  # of the language model, as is the minimum
    assert saved_mb_per_token["none"] <= 4.6
    assert saved_mb_per_token["full"] <= 0.5


@pytest.mark.slow
def test_estimated_memory_is_what_weights_gradients_and_optimizer_use(configure):
    config = configure()
    model = build_vlm(config)
    batch = average_batch(model, AverageSample(images=1, text=12, supervised=5), rows=2, max_seq_len=160)
    memory = estimate_memory(config, model, count_cost(model, batch), working=0, reserve=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    count_cost(model, batch)
    optimizer.step()
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert memory.parts["gradients, AdamW"] == sum(tensor.nbytes for tensor in tensors)
    assert memory.parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert memory.tokens(1.0) > memory.tokens(0.5)
    assert memory.tokens(0.0) == 0


def test_mistakes_name_the_key(configure):
    with pytest.raises(UserError, match=r"language.path=./nowhere does not exist"):
        build_on_meta(configure("language.path=./nowhere"))
    with pytest.raises(UserError, match=r"data.max_seq_len=10 cannot hold an average sample of 17 tokens"):
        average_batch(build_vlm(configure()), AverageSample(images=1, text=12, supervised=5), rows=1, max_seq_len=10)
