"""Predicted time of a step on many GPUs: kernels at best (src/model/roofline.py), all-reduce, the fullest rank, and reading the data.

Nothing here was measured. The all-reduce is counted as if nothing of it overlapped with the backward pass.
"""

import math
from dataclasses import dataclass, replace

from rich.table import Column, Table

from src.config.plan import PlanConfig
from src.data.packing import RankBalance
from src.model.cost import AverageSample, average_batch
from src.model.roofline import ACCELERATORS, H200, Accelerator, Prediction
from src.model.vlm import VLM
from src.training.step_kernels import record_micro_batches, record_optimizer

GPUS = (1, 8, 64, 512)
GPUS_PER_NODE = 8
# Bytes/s per GPU and direction. Assumed: 80% of the 450 GB/s of NVLink (data sheet of the H100) and of a port of 400 Gbit/s per GPU.
NVLINK, NETWORK = 360e9, 40e9
DECODED = 884  # images/s of a data worker: stream_image of experiments/bench/results.csv, one core, 512x384 to 224x224
EFFICIENT = 0.9  # samples per second and GPU, of those of one GPU


@dataclass(frozen=True)
class StepTime:
    """Seconds of one rank: per micro-batch, per token, and per update."""

    fixed: float
    per_token: float
    update: float
    micro_batch: float  # mean tokens, of the configuration

    def step(self, tokens: float, micro_batches: int) -> float:
        return micro_batches * self.fixed + tokens * self.per_token + self.update


@dataclass(frozen=True)
class Scale:
    """A step of `batch` samples on `gpus` GPUs; seconds."""

    gpus: int
    batch: int
    compute: float  # of a rank with the mean number of tokens, and the update
    waiting: float  # for the rank with the most tokens
    all_reduce: float
    lack: float  # share of the samples that the data workers cannot decode in time

    @property
    def seconds(self) -> float:
        return (self.compute + self.waiting + self.all_reduce) / (1 - self.lack)

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Of the step: all-reduce, waiting for the fullest rank, lack of data."""
        return {"all-reduce": self.all_reduce / self.seconds, "waiting": self.waiting / self.seconds, "lack of data": self.lack}


def all_reduce_seconds(size: int, gpus: int) -> float:
    """Of `size` bytes: each node reduces over NVLink, each of its GPUs reduces its part over the network, and each node gathers."""
    local = min(gpus, GPUS_PER_NODE)
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    return 2 * (local - 1) / local * size / NVLINK + 2 * (nodes - 1) / nodes * size / local / NETWORK


@dataclass(frozen=True)
class Workload:
    """What decides how a run scales. `trained` counts parameters, whose gradients are reduced in float32."""

    time: StepTime
    lengths: list[int]  # tokens of the samples of a window
    max_seq_len: int
    trained: int
    images: float  # per sample
    workers: int  # that decode, per GPU

    def on(self, gpus: int, *, batch: int) -> Scale:
        window = self.lengths * math.ceil(batch / len(self.lengths))
        balance = RankBalance.of(window, gpus, global_batch_size=batch, max_seq_len=self.max_seq_len)
        tokens = batch * sum(self.lengths) / len(self.lengths) / gpus
        micro_batches = math.ceil(tokens / self.time.micro_batch - 1e-9)
        compute, fullest = (self.time.step(n, micro_batches) for n in (tokens, tokens / balance.utilization))
        all_reduce = all_reduce_seconds(4 * self.trained, gpus)
        needed = self.images * batch / gpus / (fullest + all_reduce)  # images/s
        lack = max(0.0, 1 - max(self.workers, 1) * DECODED / needed) if needed else 0.0
        return Scale(gpus, batch, compute, fullest - compute, all_reduce, lack)


def scale_table(config: PlanConfig, model: VLM, sample: AverageSample, lengths: list[int], *, sample_bytes: float) -> Table:
    """A row for each of `GPUS` with the batch of the configuration, and one with the smallest batch that is efficient, if another is."""
    gpu = ACCELERATORS.get(config.device[0].lower(), H200)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    time = step_time(config, model, sample, gpu, mean=sum(lengths) / len(lengths))
    run = Workload(time, lengths, config.data.max_seq_len, trained, sample.images, config.data.workers)
    columns = ["batch", "samples per GPU", "step ms", "samples/s", "of linear", "all-reduce", "waiting", "lack of data", "MB/s per node"]
    rates = f"{gpu.flops / 1e12:g} TFLOP/s and {gpu.bandwidth / 1e12:g} TB/s"
    caption = f"predicted for {gpu.name} at {rates}, at best; the all-reduce is counted without overlap; MB/s are read by a node of 8"
    table = Table("GPUs", *(Column(name, justify="right") for name in columns), box=None, caption=caption)
    one = run.on(1, batch=config.data.global_batch_size)
    for gpus in GPUS:
        rows = [run.on(gpus, batch=config.data.global_batch_size << n) for n in range(10) if config.data.global_batch_size << n >= gpus]
        efficient = [row for row in rows if row.samples_per_second >= EFFICIENT * gpus * one.samples_per_second]
        for row in dict.fromkeys([rows[0], *efficient[:1]]):
            linear = row.samples_per_second / one.samples_per_second / gpus
            read = row.samples_per_second / gpus * min(gpus, GPUS_PER_NODE) * sample_bytes / 1e6
            cells = [f"{row.batch:,}", f"{row.batch / gpus:g}", f"{1e3 * row.seconds:.0f}", f"{row.samples_per_second:,.0f}"]
            cells += [f"{linear:.0%}", *(f"{share:.1%}" for share in row.shares.values()), f"{read:.1f}"]
            table.add_row(f"{gpus}", *cells)
    return table


def step_time(config: PlanConfig, model: VLM, sample: AverageSample, gpu: Accelerator, *, mean: float) -> StepTime:
    """From micro-batches of one sample and of a full sequence, between which the time grows by the tokens."""
    slots = config.trainer.devices * config.trainer.nodes * config.trainer.accumulate
    config = replace(config, trainer=replace(config.trainer, accumulate=1))
    tokens = sample.text + sample.images * model.vision.num_patches + 1
    sizes = (tokens, max(2 * tokens, config.data.max_seq_len))
    batches = [average_batch(model, sample, rows=1, max_seq_len=size) for size in sizes]
    (few, short), (many, long) = (
        (batch.input_ids_BT.numel(), Prediction.of(record_micro_batches(config, [batch]).kernels, gpu).seconds) for batch in batches
    )
    per_token = (long - short) / (many - few)
    update = Prediction.of(record_optimizer(config).kernels, gpu).seconds
    return StepTime(short - few * per_token, per_token, update, micro_batch=config.data.global_batch_size * mean / slots)
