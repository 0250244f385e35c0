"""`python -m experiments.bench.gpu`: training at full size on one GPU, with random weights and synthetic shards.

Measures complete optimizer steps of our trainer and stream, with and without packing and activation checkpointing, against Llava of
transformers with peft as LLaVA's scripts run it (right-padded batches, with and without gradient checkpointing). MFU counts 4 FLOPs per
frozen parameter and real token, 6 per trained one, and no recomputation; its reference is the best matrix product of the same run.
"""

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from experiments.bench import peers, workload
from experiments.bench.flops import flops_per_token, peak_tflops, synchronised_time
from experiments.bench.gpu_data import make_shards, sample_batches, word_tokenizer
from experiments.bench.gpu_table import Row, gpu_name, show, write
from experiments.bench.step_monitor import Clock, StepMonitor, start_timing
from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.data.packing import collate
from src.data.prompt import Prompter
from src.model import cost
from src.model.vlm import VLM
from src.runtime.arguments import parse_arguments
from src.runtime.cli import compose
from src.runtime.errors import UserError, report_user_errors
from src.runtime.schema import check_choice, to_typed
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

SIZES: dict[str, dict[str, Any]] = {
    "full": {"steps": 8, "batch": 128, "micro": 32, "max_seq_len": 4096, "records": 4096, "product": 8192, "vocabulary": 32_000},
    "small": {"steps": 2, "batch": 4, "micro": 2, "max_seq_len": 600, "records": 64, "product": 64, "vocabulary": 500},
}
SMALL_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
SMALL_VISION = ["vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=32"]
SMALL_VISION += ["+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}"]
LENGTHS = ("even", "mix")  # 196 visual and 61 text tokens, 30 of them supervised; or as in experiments/bench/workload.py


class TrainingRun(NamedTuple):
    seconds: float
    samples: int
    tokens: int  # without padding
    supervised: int  # tokens
    data_wait: float | None  # share of the time; None if the batches were prepared in advance
    monitor: StepMonitor
    model: Any


Variant = Callable[[int], TrainingRun]  # trains with this many samples per micro-batch


@dataclass
class BenchGpuConfig:
    """Trains at full size on one GPU, with random weights and synthetic shards: our trainer against transformers.

    python -m experiments.bench.gpu lengths=even,mix

    device   cuda (default) or cpu
    size     full (default) or small
    lengths  even: all samples have the same length; mix: lengths of the mix (default: both)
    out      CSV file (default experiments/bench/gpu.csv)
    """

    device: str = "cuda"
    size: str = "full"
    lengths: list[str] = field(default_factory=lambda: list(LENGTHS))
    out: Path = Path("experiments/bench/gpu.csv")


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(BenchGpuConfig, args)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("bench-gpu: torch finds no GPU; use device=cpu size=small to try the script (its numbers mean nothing)")
    check_choice("size", config.size, tuple(SIZES))
    for lengths in config.lengths:
        check_choice("lengths", lengths, LENGTHS)
    rows: list[Row] = []
    for row in measure(config.device, config.size, config.lengths):
        rows.append(row)
        write(rows, config.out)  # after each row, so that an interrupted run keeps its measurements
        print(f"{row.lengths}, {row.variant}: {row.samples_per_second:.4g} samples/s", flush=True)
    show(rows)


def measure(device: str, size: str, all_lengths: list[str]) -> Iterator[Row]:
    scale = SIZES[size]
    ceiling = peak_tflops(device, scale["product"])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = word_tokenizer(scale["vocabulary"])
        for lengths in all_lengths:
            make_shards(Path(folder), lengths, scale)
            for name, variant in variants(device, size, Path(folder), lengths, tokenizer).items():
                micro, run = run_largest_micro_batch(variant, scale["micro"])
                flops = run.tokens * flops_per_token(run.model, run.supervised / run.tokens)
                peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
                tflops = flops / run.seconds / 1e12
                speed = (run.samples / run.seconds, run.tokens / run.seconds, tflops, ceiling, tflops / ceiling)
                host = (run.monitor.megabytes_per_step, run.monitor.slowdown)
                yield Row(gpu_name(device), lengths, name, micro, *speed, peak_gb, run.data_wait, *host)
                del run
                release_memory()


def run_largest_micro_batch(variant: Variant, micro: int) -> tuple[int, TrainingRun]:
    """Halves the micro-batch until it fits into memory. Returns its samples and the run; raises `UserError` if one sample does not fit."""
    while micro:
        try:
            return micro, variant(micro)
        except torch.OutOfMemoryError:
            micro //= 2
        release_memory()  # outside of `except`, because the error keeps the tensors alive
    raise UserError("bench-gpu: out of memory with one sample per micro-batch; use a GPU with more memory")


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def variants(device: str, size: str, folder: Path, lengths: str, tokenizer) -> dict[str, Variant]:
    """All variants by name. They train the same samples."""

    def settings(micro: int, *more: str) -> TrainConfig:
        return make_config(size, folder, lengths, device, (f"trainer.accumulate={SIZES[size]['batch'] // micro}", *more))

    def ours(checkpointing: str) -> Variant:
        return lambda micro: train_packed(settings(micro, f"trainer.activation_checkpointing={checkpointing}"), device, tokenizer)

    def peer(checkpointing: bool) -> Variant:
        return lambda micro: train_transformers(settings(micro), device, tokenizer, micro, checkpointing)

    result = {f"ours, packed, activation_checkpointing={value}": ours(value) for value in ("none", "selective", "full")}
    result["ours, one sample per sequence"] = lambda micro: train_unpacked(settings(micro), device, tokenizer, micro)
    return result | {"transformers, padded": peer(False), "transformers, padded, checkpointing": peer(True)}


def make_config(size: str, folder: Path, lengths: str, device: str, more: tuple[str, ...]) -> TrainConfig:
    scale = SIZES[size]
    words = ["mix=own", f"mix.shares={{{lengths}: 1}}", f"data.root={folder}/shards", f"data.max_seq_len={scale['max_seq_len']}"]
    words += [f"data.global_batch_size={scale['batch']}", f"data.packing_window={scale['batch'] * 8}", "optim.warmup=0"]
    words += [f"optim.steps={scale['steps'] + 1}", "name=bench", f"outputs={folder}", "optim.lr.vision=1e-5"]
    words += ["trainer=cpu", "data.workers=0", "language=phantom", *SMALL_VISION] if size == "small" else ["trainer=gpu", "data.workers=8"]
    words += [] if device == "cuda" else ["trainer.accelerator=cpu"]
    return to_typed(TrainConfig, compose("train", [*words, *more]))


def make_model(settings: TrainConfig, device: str) -> VLM:
    """A model with random weights on the device; shapes and precisions are those of the real model."""
    torch.manual_seed(0)
    small = settings.language.path.startswith("data/phantom")
    model = cost.build_on_meta(settings, device=device, shape=SMALL_LLAMA if small else cost.LLAMA_7B)
    model.image_id = workload.IMAGE_ID
    return model


def train_packed(settings: TrainConfig, device: str, tokenizer) -> TrainingRun:
    """Our trainer on our stream: data workers read, decode and pack during training."""
    model = make_model(settings, device)
    prompter = Prompter(tokenizer, patches=model.vision.num_patches, budget=settings.data.max_seq_len)
    accumulate = settings.trainer.accumulate
    data = DataModule(settings.mix, settings.data, prompter=prompter, size=model.vision.size, seed=0, accumulate=accumulate)
    return fit(model, settings, data)


def train_unpacked(settings: TrainConfig, device: str, tokenizer, batch: int) -> TrainingRun:
    """Our model and trainer without packing: one sample per sequence, padded to the longest."""
    model = make_model(settings, device)
    size, batches = model.vision.size, []
    for samples in sample_batches(settings, model, tokenizer, batch):
        images = list(workload.random_pixels(sum(sample.num_images for sample in samples), size))
        sequences = [[sample] for sample in samples]
        sources = [[0]] * len(samples)
        batches.append(collate(sequences, sources=sources, images=images, size=size, pad=workload.EOS, image_id=workload.IMAGE_ID, keys=[]))
    return fit(model, settings, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


def fit(model: VLM, settings: TrainConfig, data) -> TrainingRun:
    module = VLMLightningModule(model, settings, sources=["bench"], folder=Path(settings.outputs))
    clock = Clock(settings.trainer.accumulate)
    build_trainer(settings, callbacks=[clock]).fit(module.train(), data)
    wait = clock.wait / clock.seconds
    return TrainingRun(clock.seconds, clock.samples, int(clock.tokens), clock.supervised, wait, clock.monitor, model)


def train_transformers(settings: TrainConfig, device: str, tokenizer, batch: int, checkpointing: bool) -> TrainingRun:
    """As LLaVA's scripts train: bfloat16, right-padded batches, loss over all positions, one step per batch."""
    model = make_model(settings, device)
    batches = sample_batches(settings, model, tokenizer, batch)
    image_size = model.vision.size
    peer = peers.to_peft_llava(model, dtype=getattr(torch, settings.language.dtype)).to(device)
    if checkpointing:
        peer.enable_input_require_grads()
        peer.gradient_checkpointing_enable({"use_reentrant": False})
    step = peers.make_step(peer)
    inputs = [{name: value.to(device) for name, value in peers.pad(samples, image_size).items()} for samples in batches]
    del model
    with torch.autocast(device, torch.bfloat16, enabled=settings.trainer.precision == "bf16-mixed"):
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


if __name__ == "__main__":
    main(sys.argv[1:])
