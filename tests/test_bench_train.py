"""experiments/bench/{workload,peers,train}: sample lengths, and equal losses on both sides."""

from types import SimpleNamespace

import pytest
import torch

from experiments.bench import peers, workload
from experiments.bench.workload import STEPS, WARM_UP, WORKLOADS, Workload
from tests.rounding import forward_steps, rounding

TINY = Workload("tiny", 4, 64, 1, 100, 16, padding=0, supervised=0)


@pytest.mark.parametrize(("name", "padding", "supervised"), [("a", 50.9, 25.4), ("b", 29.1, 17.1)])
def test_random_batches_have_expected_padding(name, padding, supervised):
    """The targets were set for these values: exact for the four batches after the warm-up, within two points for the eight timed ones."""
    batches = peers.make_batches(WORKLOADS[name], "plain")
    assert len(batches) == WARM_UP + STEPS
    empty, share, _ = peers.padding_stats(batches[1:5])
    assert (round(empty, 1), round(share, 1)) == (padding, supervised)
    empty, share, _ = peers.padding_stats(batches[WARM_UP:])
    assert abs(empty - padding) < 2
    assert abs(share - supervised) < 2


@pytest.mark.parametrize(("side", "least", "most"), [("llava", 35, 50), ("grouped", 0, 5)])
def test_grouped_batches_have_one_modality_and_sorted_ones_little_padding(side, least, most):
    batches = peers.make_batches(WORKLOADS["a"], side)[WARM_UP:]
    assert [len({sample.num_images for sample in batch}) for batch in batches] == [1] * STEPS
    assert least < peers.padding_stats(batches)[0] < most


def test_ours_trains_on_every_sample_of_the_plain_batches():
    samples = workload.make_samples(TINY, STEPS)
    packed = workload.pack_batches(samples, TINY, steps=STEPS)
    assert sum(batch.num_samples for batch in packed) == len(samples)
    assert sum(int((batch.sources_BT >= 0).sum()) for batch in packed) == sum(len(sample.ids) for sample in samples)


@pytest.mark.slow
def test_both_sides_have_equal_losses_over_two_updates(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "tiny", TINY)
    monkeypatch.setattr(peers, "pin_to_one_core", lambda: None)
    steps = forward_steps(workload.make_model(TINY).language.body.config, length=160)
    assert peers.max_loss_difference("tiny") < rounding(4 * steps, 1)  # two updates, forward and backward
    peer = peers.to_peft_llava(workload.make_model(TINY))
    trainable = {name for name, p in peer.named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in trainable) == 2 * 7
    assert any("vision_tower" in name for name in trainable)
    assert peer(input_ids=torch.tensor([[workload.BOS, workload.FIRST_WORD]])).past_key_values is None


def test_step_in_bfloat16_sees_the_update_of_the_step_before():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, 4))

        def forward(self, x):
            y = torch.nn.functional.linear(x, self.weight)
            assert y.dtype == torch.bfloat16
            return SimpleNamespace(loss=y.sum())

    step = peers.make_step(Model(), autocast=True)
    first, second, third = (step({"x": torch.ones(1, 4)}) for _ in range(3))
    assert first > second > third
