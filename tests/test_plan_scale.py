"""src/commands/plan_scale.py: the arithmetic, by hand."""

from dataclasses import replace

import pytest

from src.commands.plan_scale import DECODED, NETWORK, NVLINK, StepTime, Workload, all_reduce_seconds

TIME = StepTime(fixed=0.01, per_token=1e-4, update=0.002, micro_batch=1000)
RUN = Workload(TIME, [50] * 64, max_seq_len=100, trained=0, images=0.0, workers=1)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(1, 0.0), (8, 2 * 7 / 8 * 9e9 / NVLINK), (64, 2 * 7 / 8 * 9e9 / NVLINK + 2 * 7 / 8 * 9e9 / 8 / NETWORK)],
)
def test_all_reduce_goes_over_nvlink_within_a_node_and_over_the_network_between_nodes(gpus, expected):
    assert all_reduce_seconds(int(9e9), gpus) == pytest.approx(expected)


def test_step_adds_passes_and_update():
    """64 samples of 50 tokens: 3,200 tokens in four micro-batches of at most 1,000."""
    step = RUN.on(1, batch=64)
    assert step.seconds == pytest.approx(4 * 0.01 + 3200e-4 + 0.002)
    assert step.samples_per_second == pytest.approx(64 / 0.362)


def test_ranks_wait_for_the_one_with_the_longest_sample():
    """Two samples of 90 and 10 tokens on two ranks: the mean is 50, the fullest has 90."""
    step = replace(RUN, lengths=[90, 10]).on(2, batch=2)
    assert (step.compute, step.waiting) == (pytest.approx(0.01 + 50e-4 + 0.002), pytest.approx(40e-4))
    assert step.shares["waiting"] == pytest.approx(0.004 / 0.021)


def test_communication_counts_four_bytes_per_trained_parameter():
    step = replace(RUN, trained=1_000_000_000).on(8, batch=64)
    assert step.all_reduce == pytest.approx(2 * 7 / 8 * 4e9 / NVLINK)
    assert step.shares["all-reduce"] > 0.1


def test_lack_of_data_slows_the_step():
    """A rank needs the images of 64 samples in 0.362 s; its worker decodes fewer than half of them."""
    images = 2 * DECODED * 0.362 / 64
    step = replace(RUN, images=images).on(1, batch=64)
    assert step.lack == pytest.approx(0.5)
    assert step.seconds == pytest.approx(2 * 0.362)
