"""Predicted speed of one optimizer step of LLaMA-7B with LoRA and a ViT-B/16 on a GPU, without one (src/model/roofline.py).

`python -m experiments.bench.roofline [gpu=h200] [flops=...] [bandwidth=...] [launch=...]` prints the predictions for other rates;
`make bench ONLY=roofline` stores those for an H100. Nothing depends on the load of the machine.

The samples have the lengths of experiments/bench/workload.py. Ours trains on packed sequences of 4,096 tokens, two per micro-batch;
transformers and peft train on the same mix in random order, right-padded. The micro-batches fit into 80 GB by `python -m src.plan`.
The ceiling counts 4 FLOPs per frozen weight of the language model and real token and 6 per trained one, as
experiments/bench/gpu_train.py does.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from rich.table import Table

from experiments.bench import peers, workload
from experiments.bench.flops import flops_per_token
from experiments.bench.measurement import Measurement, ratio, single
from experiments.bench.synthetic_data import FULL_MIX_RECORDS
from src.config.train import TrainConfig
from src.data.packing import Batch, collate, pack
from src.data.prompt import IGNORE, EncodedSample
from src.model.cost import IMAGE_ID, LLAMA_7B, build_on_meta
from src.model.fake_gpu import fake_gpu, fake_like, to_fake
from src.model.fast.elementwise import meta_counts_as
from src.model.kernels import KernelRecorder
from src.model.roofline import ACCELERATORS, H100, Accelerator, Prediction, most_expensive, seconds_by_file
from src.runtime.arguments import parse_arguments
from src.runtime.cli import compose
from src.runtime.errors import report_user_errors
from src.runtime.schema import check_choice, to_typed
from src.runtime.tables import print_table
from src.training.step_kernels import record_layers, record_passes, record_step, record_update

WINDOW, MAX_SEQ_LEN, MICRO_BATCHES = 2048, 4096, 2
UNFUSED = "ours_none_unfused"  # `ours_none` with the operations of PyTorch in place of the kernels of src/model/fast/elementwise.py
OURS = {  # name -> overrides
    "ours_none": ["trainer.activation_checkpointing=none"],
    "ours_selective": ["trainer.activation_checkpointing=selective"],
    "ours_full": ["trainer.activation_checkpointing=full"],
    UNFUSED: ["trainer.activation_checkpointing=none"],
    "plain_none": ["trainer.activation_checkpointing=none", "language.fast=false"],
    "plain_full": ["trainer.activation_checkpointing=full", "language.fast=false"],
}
PEERS = {"transformers": (16, False), "transformers_checkpointing": (32, True)}  # name -> samples of a micro-batch, checkpointing
TARGETS = {"ours_none": ">= 0.70"}
STORED = ("ours_none", "ours_selective", "plain_none", "transformers", "transformers_checkpointing")


@dataclass
class Step:
    """A recorded step. `tokens` excludes padding, `places` includes it; `flops` are those of the ceiling."""

    recorder: KernelRecorder
    tokens: int
    places: int
    flops: float

    def seconds_per_token(self, gpu: Accelerator) -> float:
        return Prediction.of(self.recorder.kernels, gpu).seconds / self.tokens

    def share(self, gpu: Accelerator) -> float:
        return self.flops / Prediction.of(self.recorder.kernels, gpu).seconds / gpu.flops


def measure() -> Iterator[Measurement]:
    steps = {}
    for name, step in record_all():
        steps[name] = step
        if name in STORED:
            unit = f"predicted share of the H100's ceiling; {summary(step, H100)}"
            yield single(f"roofline_{name}", step.share(H100), unit, target=TARGETS.get(name, ""))
    ours, unfused = ([1e6 * steps[name].seconds_per_token(H100)] for name in ("ours_none", UNFUSED))
    unit = "predicted ms per 1,000 tokens of packed sequences of 4,096 on an H100, against the fast path without fused element-wise kernels"
    yield ratio("roofline_fusion", ours, unfused, unit, target=">= 1.35", cost=True)
    for gpu in ACCELERATORS.values():
        show(steps, gpu)


def record_all(names: tuple[str, ...] = (*OURS, *PEERS)) -> Iterator[tuple[str, Step]]:
    lengths = mix_lengths()
    for name in names:
        with meta_counts_as("cpu" if name == UNFUSED else "gpu"):
            step = record_ours(lengths, OURS[name]) if name in OURS else record_peer(lengths, *PEERS[name])
        yield name, step


def mix_lengths() -> list[tuple[int, int, int]]:
    """(images, prompt tokens, answer tokens) of the samples of a window."""
    rng = np.random.default_rng(0)
    return [workload.sample_lengths(rng) for _ in range(WINDOW)]


def sample_of(lengths: tuple[int, int, int], patches: int) -> EncodedSample:
    images, prompt, answer = lengths
    ids = np.array([0, *[IMAGE_ID] * (images * patches), *[5] * (prompt + answer), 2], np.int32)
    return EncodedSample(ids, np.where(np.arange(len(ids)) < len(ids) - answer - 1, IGNORE, ids).astype(np.int32), images)


def packed_batches(samples: list[EncodedSample], *, rows: int, max_seq_len: int, size: int, count: int = MICRO_BATCHES) -> list[Batch]:
    """`count` micro-batches of the first packed sequences of a window, `rows` sequences each."""
    packed = pack([len(sample.ids) for sample in samples], max_seq_len)
    order = np.random.default_rng(0).permutation(len(packed))
    batches = []
    for number in range(count):
        sequences = [[samples[item] for item in packed[n]] for n in order[number * rows : (number + 1) * rows]]
        images = [np.zeros((3, size, size), np.uint8)] * sum(sample.num_images for sequence in sequences for sample in sequence)
        sources = [[0] * len(sequence) for sequence in sequences]
        batches.append(collate(sequences, sources=sources, images=images, size=size, pad=2, image_id=IMAGE_ID, keys=[""]))
    return batches


def configure(*words: str) -> TrainConfig:
    return to_typed(TrainConfig, compose("train", ["+experiment=recommended", *words]))


def record_ours(lengths: list[tuple[int, int, int]], words: list[str]) -> Step:
    config = configure(*words)
    model = build_on_meta(config)
    samples = [sample_of(length, model.vision.num_patches) for length in lengths]
    batches = packed_batches(samples, rows=2, max_seq_len=MAX_SEQ_LEN, size=model.vision.size)
    tokens = sum(int((batch.sources_BT >= 0).sum()) for batch in batches)
    supervised = sum(len(batch.loss_index_S) for batch in batches)
    places = sum(batch.input_ids_BT.numel() for batch in batches)
    return Step(record_step(config, batches), tokens, places, tokens * flops_per_token(model, supervised / tokens))


def record_peer(lengths: list[tuple[int, int, int]], micro_batch: int, checkpointing: bool) -> Step:
    """As `train_transformers` of experiments/bench/gpu_train.py, with one update after 64 samples."""
    config = configure()
    model = build_on_meta(config)
    samples = [sample_of(length, model.vision.num_patches) for length in lengths[:64]]
    batches = [peers.pad(samples[at : at + micro_batch], model.vision.size) for at in range(0, len(samples), micro_batch)]

    def build(layers: int | None) -> torch.nn.Module:
        with torch.device("meta"):
            peer = peers.to_peft_llava(build_on_meta(config, layers=layers), dtype=torch.bfloat16)
        if checkpointing:
            peer.enable_input_require_grads()
            peer.gradient_checkpointing_enable({"use_reentrant": False})
        return peer

    def passes(layers: int) -> KernelRecorder:
        peer, recorder = build(layers), KernelRecorder()
        with fake_gpu():
            to_fake(peer).train()
            for batch in batches:
                inputs = {name: fake_like(value) for name, value in batch.items()}
                record_passes(recorder, lambda inputs=inputs: peer(**inputs).loss / len(batches), config=config)  # type: ignore[misc]
        return recorder

    recorder, peer = record_layers(passes, LLAMA_7B["num_hidden_layers"]), build(None)
    with fake_gpu():
        trainable = [p for p in to_fake(peer, device="cuda:0").parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, foreach=True)

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()

        record_update(recorder, peer, optimizer, update)
    tokens = sum(len(sample.ids) for sample in samples)
    supervised = sum(int((sample.labels >= 0).sum()) for sample in samples)
    places = sum(batch["input_ids"].numel() for batch in batches)
    return Step(recorder, tokens, places, tokens * flops_per_token(model, supervised / tokens))


def samples_per_second(step: Step, gpu: Accelerator) -> float:
    """Of the mean length of the mix, since a step holds only few samples."""
    mean = np.mean([2 + images * 196 + prompt + answer for images, prompt, answer in mix_lengths()])
    return float(step.tokens / mean / Prediction.of(step.recorder.kernels, gpu).seconds)


def summary(step: Step, gpu: Accelerator) -> str:
    predicted = Prediction.of(step.recorder.kernels, gpu)
    speed = samples_per_second(step, gpu)
    return (
        f"per 1,000 tokens {1e3 * predicted.kernels / step.tokens:,.0f} kernels, {predicted.bytes / step.tokens / 1e6:,.1f} GB moved, "
        f"{1e6 * predicted.matrix / step.tokens:.1f} ms of matrix kernels, {1e6 * predicted.other / step.tokens:.1f} ms of others; "
        f"{speed:.0f} samples/s"
    )


def show(steps: dict[str, Step], gpu: Accelerator) -> None:
    """Prints a table of all variants and the ten most expensive kernels and all files of `ours_none`."""
    columns = ("kernels", "GB moved", "matrix ms", "other ms", "share of the ceiling", "samples/s", "hours for the mix", "waits", "padding")
    print(f"{gpu.name}: {gpu.flops / 1e12:g} TFLOP/s, {gpu.bandwidth / 1e12:g} TB/s, {gpu.launch * 1e6:g} us per kernel; one step")
    table = Table("", *columns, box=None)
    for name, step in steps.items():
        predicted, speed = Prediction.of(step.recorder.kernels, gpu), samples_per_second(step, gpu)
        cells = [f"{predicted.kernels:,}", f"{predicted.bytes / 1e9:,.0f}", f"{1e3 * predicted.matrix:.0f}", f"{1e3 * predicted.other:.0f}"]
        cells += [f"{step.share(gpu):.1%}", f"{speed:.1f}", f"{FULL_MIX_RECORDS / speed / 3600:.1f}", str(step.recorder.waits.total())]
        table.add_row(name, *cells, f"{1 - step.tokens / step.places:.1%}")
    print_table(table)
    for name in [name for name in ("ours_none", "transformers") if name in steps]:
        table = Table(f"most expensive kernels, {name}", "line", "kernels", "ms", box=None)
        for op, line, launches, seconds in most_expensive(steps[name].recorder.kernels, gpu, count=10):
            table.add_row(op, line, f"{launches:,}", f"{1e3 * seconds:.1f}")
        for file, launches, seconds in seconds_by_file(steps[name].recorder.kernels, gpu):
            table.add_row("all of a file", file, f"{launches:,}", f"{1e3 * seconds:.1f}")
        print_table(table)


@dataclass
class RooflineConfig:
    """Prints the predictions for a GPU.

    python -m experiments.bench.roofline gpu=h200 launch=2e-6 variants=ours_none,transformers

    gpu        h100 (default) or h200
    flops      FLOP/s of matrix products in place of those of the GPU
    bandwidth  bytes/s of its memory in place of that of the GPU
    launch     seconds per kernel in place of those of the GPU
    variants   ours_none, ours_selective, ..., transformers, ... (default: all)
    """

    gpu: str = "h100"
    flops: float | None = None
    bandwidth: float | None = None
    launch: float | None = None
    variants: list[str] = field(default_factory=lambda: [*OURS, *PEERS])


@report_user_errors
def main(arguments: list[str]) -> None:
    config = parse_arguments(RooflineConfig, arguments)
    check_choice("gpu", config.gpu, tuple(ACCELERATORS))
    rates = {key: rate for key in ("flops", "bandwidth", "launch") if (rate := getattr(config, key)) is not None}
    for name in config.variants:
        check_choice("variants", name, (*OURS, *PEERS))
    show(dict(record_all(tuple(config.variants))), replace(ACCELERATORS[config.gpu], **rates))


if __name__ == "__main__":
    main(sys.argv[1:])
