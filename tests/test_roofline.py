"""What is counted (src/model/kernels.py, roofline.py, src/training/step_kernels.py, experiments/bench/roofline.py), and limits."""

from collections import Counter

import pytest
import torch
from torch import nn

from experiments.bench import roofline
from src.model.cost import AverageSample, average_batch, build_on_meta
from src.model.fake_gpu import fake_gpu
from src.model.fast.attention import PackedSequences, varlen_attention
from src.model.kernels import KernelRecorder
from src.model.roofline import H100, Accelerator, Kernel, Prediction, extrapolate, most_expensive, seconds_by_file
from src.training.step_kernels import causal_pairs, record_micro_batches, record_optimizer, record_step

DEVICE = "meta"  # a GPU in what is recorded
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512}


def recorded(run, **options) -> dict[str, tuple[int, int, int]]:
    """{operation: (launches, FLOPs, bytes)} of `run`, on tensors of a GPU."""
    with fake_gpu():
        with KernelRecorder(**options) as recorder:
            run()
    totals: dict[str, tuple[int, int, int]] = {}
    for kernel, count in recorder.kernels.items():
        before = totals.get(kernel.op, (0, 0, 0))
        totals[kernel.op] = tuple(a + count * b for a, b in zip(before, (kernel.launches, kernel.flops, kernel.bytes), strict=True))
    return totals


def gpu(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=DEVICE)


def test_kernels_of_a_tiny_module_are_those_counted_by_hand():
    """Linear without bias, 3 inputs, 5 outputs, 7 rows, then ReLU and a sum, forward and backward, in float32."""

    def run():
        w_53, x_73 = nn.Parameter(gpu(5, 3)), gpu(7, 3)
        (x_73 @ w_53.T).relu().sum().backward()

    product, x, w, y = 2 * 7 * 3 * 5, 4 * 21, 4 * 15, 4 * 35
    assert recorded(run) == {
        "mm": (2, 2 * product, (x + w + y) + (y + x + w)),  # the gradient of w alone: x needs none
        "relu": (1, 0, 2 * y),
        "sum": (1, 0, y + 4),
        "ones_like": (1, 0, 4),
        "threshold_backward": (1, 0, 4 + y + y),  # the gradient of the sum is broadcast
    }


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: gpu(4, 6).view(6, 4).t()[1:].expand(2, 3, 6), {}),
        (lambda: gpu(4).add_(gpu(4)), {"add_": (1, 0, 48)}),
        (lambda: gpu(4).copy_(gpu(4)), {"copy_": (1, 0, 32)}),
        (lambda: gpu(4).zero_(), {"zero_": (1, 0, 16)}),
        (lambda: gpu(100, 8).index_select(0, gpu(3, dtype=torch.int64)), {"index_select": (1, 0, 24 + 2 * 96)}),
        (lambda: gpu(9, 100).scatter_add_(1, gpu(9, 1, dtype=torch.int64), gpu(9, 1)), {"scatter_add_": (1, 0, 72 + 3 * 36)}),
        (lambda: gpu(4, 2).addmm_(gpu(4, 3), gpu(3, 2)), {"addmm_": (1, 48, 4 * (8 + 12 + 6 + 8))}),
        (lambda: torch._foreach_mul_([gpu(2) for _ in range(111)], 2.0), {"_foreach_mul_": (2, 0, 111 * 16)}),
        (lambda: torch._foreach_mul_([gpu(321 * 65_536)], 2.0), {"_foreach_mul_": (2, 0, 8 * 321 * 65_536)}),
    ],
)
def test_bytes_and_launches_of_an_operation(run, expected):
    assert recorded(run) == expected


def test_attention_of_a_packed_batch_counts_the_pairs_of_its_samples():
    """Samples of 3 and 2 tokens: 6 + 3 pairs, 2 products of 2 FLOPs per pair, head and dimension forward, 5 backward."""

    def run():
        q_LAE, k_LAE, v_LAE = (gpu(5, 2, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
        sequences = PackedSequences.of([0, 3, 5], torch.device(DEVICE))
        varlen_attention(q_LAE, k_LAE, v_LAE, sequences, scale=None).backward(gpu(5, 2, 8, dtype=torch.bfloat16))

    assert causal_pairs([0, 3, 5]) == 9
    kernels = recorded(run, causal_pairs=9)
    assert [kernels[op][1] for op in ("_varlen_attn", "_varlen_attn_backward")] == [4 * 16 * 9, 10 * 16 * 9]


def test_prediction_adds_the_slower_of_both_limits_and_the_launches():
    rates = Accelerator("a", flops=100, bandwidth=10, launch=0.5)
    large, small, add = Kernel("mm", "a.py:1", 400, 10, 1), Kernel("mm", "a.py:1", 100, 50, 1), Kernel("add", "a.py:2", 0, 20, 3)
    recording = Counter({large: 2, small: 1, add: 1})
    prediction = Prediction.of(recording, rates)
    assert (prediction.kernels, prediction.bytes) == (6, 90)
    assert (prediction.matrix, prediction.other) == (2 * (4 + 0.5) + (5 + 0.5), 2 + 3 * 0.5)
    assert most_expensive(recording, rates, count=1) == [("mm", "a.py:1", 3, 14.5)]
    recording[Kernel("mul", "backward of b.py:1", 0, 200, 1)] += 1
    assert seconds_by_file(recording, rates) == [("b.py", 1, 20.5), ("a.py", 6, 18.0)]
    assert extrapolate(Counter(a=2, b=1), Counter(a=3, b=1), 5) == Counter(a=5, b=1)


def test_a_kernel_has_the_line_of_its_forward_pass():
    with fake_gpu():
        x, recorder = gpu(2, 2).requires_grad_(), KernelRecorder()
        with recorder:
            y = x.exp()  # this line
            y.sum().backward()
    lines = {kernel.op: kernel.line for kernel in recorder.kernels}
    assert lines["exp"].startswith("tests/test_roofline.py:")
    assert lines["mul"] == f"backward of {lines['exp']}"


def test_recorder_counts_what_the_host_waits_for():
    with fake_gpu():
        x, recorder = gpu(2), KernelRecorder()
        with recorder:
            assert bool(x.sum())
            x.cpu()
            torch.ones(2).to(DEVICE)
            torch.ones(2).to(DEVICE, non_blocking=True)
            torch.full((), 3.0, device=DEVICE)
    assert recorder.waits.total() == 3


def small_batch(config):
    model = build_on_meta(config, shape=SHAPE)
    return average_batch(model, AverageSample(images=1, text=28, supervised=12), rows=2, max_seq_len=96)


@pytest.fixture
def half(configure):
    """The recipe in half precision, as on a GPU."""
    words = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "language.dtype=bfloat16", "trainer.accumulate=1"]
    return lambda *more: configure(*words, *more)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["trainer.activation_checkpointing=full"], ["language.fast=false"]])
def test_kernels_of_three_layers_tell_those_of_all(half, monkeypatch, overrides):
    config = half(*overrides)
    batch = small_batch(config)
    from_three = record_micro_batches(config, [batch], shape=SHAPE)
    monkeypatch.setattr("src.training.step_kernels.record_layers", lambda record, layers: record(layers))
    assert from_three.kernels == record_micro_batches(config, [batch], shape=SHAPE).kernels


@pytest.mark.slow
def test_a_step_waits_for_the_gpu_once_and_launches_few_kernels_for_the_update(half):
    """The host reads whether the gradient norm is finite. AdamW is fused, the norm and clipping take all gradients together."""
    config = half()
    passes = record_micro_batches(config, [small_batch(config)], shape=SHAPE)
    assert passes.waits == {}
    update = record_optimizer(config, shape=SHAPE)
    (line,) = update.waits
    assert line.startswith("src/training/lightning_module.py:")
    assert update.waits.total() == 1
    assert sum(count * kernel.launches for kernel, count in update.kernels.items()) <= 40


# Kernels of a step of two micro-batches and bytes per token, of LLaMA with four layers of width 64 and a ViT of 192 at 32 pixels.
LIMITS = {
    ("none", "true"): (1004, 100_100),
    ("full", "true"): (1270, 129_300),
    ("none", "false"): (2028, 284_600),
}


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "fast"), LIMITS)
def test_kernels_and_bytes_of_a_step_do_not_grow(half, checkpointing, fast):
    """The benchmark's code at a small size. Raise a limit only together with the prediction for the 7B, and lower it with every gain."""
    config = half(f"trainer.activation_checkpointing={checkpointing}", f"language.fast={fast}")
    model = build_on_meta(config, shape=SHAPE)
    samples = [roofline.sample_of(lengths, model.vision.num_patches) for lengths in roofline.mix_lengths()[:64]]
    batches = roofline.packed_batches(samples, rows=2, max_seq_len=512, size=model.vision.size)
    prediction = Prediction.of(record_step(config, batches, shape=SHAPE).kernels, H100)
    tokens = sum(int((batch.sources_BT >= 0).sum()) for batch in batches)
    kernels, per_token = LIMITS[checkpointing, fast]
    assert prediction.kernels <= kernels, f"{prediction.kernels} kernels, {prediction.bytes / tokens:.0f} bytes per token"
    assert prediction.bytes / tokens <= per_token
