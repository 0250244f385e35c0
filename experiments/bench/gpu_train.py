"""Training at full size on one GPU: complete optimizer steps of our trainer and stream, with and without packing, the fast path and
activation checkpointing, against Llava of transformers with peft as LLaVA's scripts run it (right-padded batches, with and without
gradient checkpointing).

MFU counts 4 FLOPs per frozen parameter and real token, 6 per trained one, and no recomputation; its reference is the best matrix product
of the same run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from experiments.bench import peers, workload
from experiments.bench.flops import flops_per_token, synchronised_time
from experiments.bench.gpu_data import sample_batches
from experiments.bench.gpu_setup import Bench, release_memory
from experiments.bench.gpu_table import Row, gpu_name
from experiments.bench.step_monitor import Clock, StepMonitor, start_timing
from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.data.packing import collate
from src.data.prompt import Prompter
from src.model.fast import elementwise
from src.model.vlm import VLM
from src.runtime.errors import UserError
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer


class TrainingRun(NamedTuple):
    seconds: float
    samples: int
    tokens: int  # without padding
    supervised: int  # tokens
    data_wait: float | None  # share of the time; None if the batches were prepared in advance
    monitor: StepMonitor
    model: Any


Variant = Callable[[Bench, TrainConfig, int], TrainingRun]  # trains with this many samples per micro-batch


def train_packed(bench: Bench, settings: TrainConfig, micro: int) -> TrainingRun:
    """Our trainer on our stream: data workers read, decode and pack during training."""
    model = bench.model(settings)
    prompter = Prompter(bench.tokenizer, patches=model.vision.num_patches, budget=settings.data.max_seq_len)
    accumulate = settings.trainer.accumulate
    data = DataModule(settings.mix, settings.data, prompter=prompter, size=model.vision.size, seed=0, accumulate=accumulate)
    return fit(model, settings, data)


def train_unpacked(bench: Bench, settings: TrainConfig, micro: int) -> TrainingRun:
    """Our model and trainer without packing: one sample per sequence, padded to the longest."""
    model = bench.model(settings)
    size, batches = model.vision.size, []
    for samples in sample_batches(settings, bench.tokenizer, micro, size=size, patches=model.vision.num_patches):
        images = list(workload.random_pixels(sum(sample.num_images for sample in samples), size))
        sequences = [[sample] for sample in samples]
        sources = [[0]] * len(samples)
        batches.append(collate(sequences, sources=sources, images=images, size=size, pad=workload.EOS, image_id=workload.IMAGE_ID, keys=[]))
    return fit(model, settings, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


class StayingModule(VLMLightningModule):
    """Stays on the GPU at the end of a training, where Lightning would move 14 GB to the CPU."""

    def cpu(self) -> "StayingModule":
        return self


def fit(model: VLM, settings: TrainConfig, data) -> TrainingRun:
    module = StayingModule(model, settings, sources=["bench"], folder=Path(settings.outputs))
    clock = Clock(settings.trainer.accumulate)
    build_trainer(settings, callbacks=[clock]).fit(module.train(), data)
    wait = clock.wait / clock.seconds
    return TrainingRun(clock.seconds, clock.samples, int(clock.tokens), clock.supervised, wait, clock.monitor, model)


def train_transformers(bench: Bench, settings: TrainConfig, micro: int) -> TrainingRun:
    """As LLaVA's scripts train: bfloat16, right-padded batches, loss over all positions, one step per batch."""
    device, peer = bench.device, bench.peer(settings)
    if settings.trainer.activation_checkpointing == "full":
        peer.enable_input_require_grads()
        peer.gradient_checkpointing_enable({"use_reentrant": False})
    config = peer.get_base_model().config
    image_size, patches = config.vision_config.image_size, config.image_seq_length
    batches = sample_batches(settings, bench.tokenizer, micro, size=image_size, patches=patches)
    step = peers.make_step(peer.train(), autocast=settings.trainer.precision == "bf16-mixed")
    inputs = [{name: value.to(device) for name, value in peers.pad(samples, image_size).items()} for samples in batches]
    step(inputs[0])
    start, monitor = start_timing(), StepMonitor()
    monitor.record()
    for padded in inputs[1:]:
        step(padded)
        monitor.record()
    seconds = synchronised_time() - start
    timed = [sample for samples in batches[1:] for sample in samples]
    supervised = sum(int((sample.labels >= 0).sum()) for sample in timed)
    return TrainingRun(seconds, len(timed), sum(len(sample.ids) for sample in timed), supervised, None, monitor, peer)


VARIANTS: dict[str, tuple[Variant, tuple[str, ...]]] = {
    "ours_none": (train_packed, ("trainer.activation_checkpointing=none",)),
    "ours_selective": (train_packed, ("trainer.activation_checkpointing=selective",)),
    "ours_full": (train_packed, ("trainer.activation_checkpointing=full",)),
    "ours_unpacked": (train_unpacked, ("trainer.activation_checkpointing=none",)),
    "plain_none": (train_packed, ("trainer.activation_checkpointing=none", "language.fast=false")),
    "transformers": (train_transformers, ("trainer.activation_checkpointing=none",)),
    "transformers_checkpointing": (train_transformers, ("trainer.activation_checkpointing=full",)),
}


def train(bench: Bench, lengths: str, name: str) -> list[Row]:
    """The row of a variant, with the largest micro-batch that fits. All variants train the same samples."""
    variant, words = VARIANTS[name]
    batch = bench.scale["batch"]
    build = bench.peer if variant is train_transformers else bench.model
    build(bench.settings(lengths, *words))  # not within `run`, because a smaller micro-batch does not help where the model does not fit

    def run(micro: int) -> TrainingRun:
        return variant(bench, bench.settings(lengths, *words, f"trainer.accumulate={batch // micro}"), micro)

    micro, done = run_largest_micro_batch(run, bench.scale["micro"])
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if bench.device == "cuda" else 0.0
    tflops = done.tokens * flops_per_token(done.model, done.supervised / done.tokens) / done.seconds / 1e12
    monitor, compiled = done.monitor, bench.device == "cuda" and elementwise.compiler_works and name.startswith("ours")
    speed = (done.samples / done.seconds, done.tokens / done.seconds, tflops, bench.ceiling, tflops / bench.ceiling)
    host = (monitor.megabytes_per_step, monitor.slowdown)
    return [Row(gpu_name(bench.device), lengths, name, monitor.steps, micro, *speed, peak_gb, done.data_wait, *host, compiled)]


def run_largest_micro_batch(run: Callable[[int], TrainingRun], micro: int) -> tuple[int, TrainingRun]:
    """Halves the micro-batch until it fits into memory. Returns its samples and the run; raises `UserError` if one sample does not fit."""
    while micro:
        try:
            return micro, run(micro)
        except torch.OutOfMemoryError:
            micro //= 2
        release_memory()  # outside of `except`, because the error keeps the tensors alive
    raise UserError("bench-gpu: out of memory with one sample per micro-batch; use a GPU with more memory")
