"""Training: what the trainer costs beside the model, packing, and the cost of the real 7B."""

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.bench import peers, workload
from experiments.bench.full_size import full_size_cost
from experiments.bench.measurement import Measurement, single
from experiments.bench.synthetic_data import run_in_process
from experiments.bench.workload import WORKLOADS, Workload
from src.data.packing import Batch, pack
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.csv_log import CSVLog
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

WINDOW, MAX_SEQ_LEN = 2048, 4096


def measure() -> Iterator[Measurement]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield trainer_ms()
    yield from packing()
    seconds, total = run_in_process(per_source_seconds, "b")
    yield single("per_source_share", seconds / total, "share of a step of workload b spent on losses per source", target="<= 0.01")
    unchecked, selective = full_size_cost("none"), full_size_cost("selective")
    yield single("meta_7b_flops", unchecked.flops / unchecked.min_flops, "FLOPs per real token over the analytic minimum", target="<= 1.03")
    unit = "MB saved for backward per token"
    none_unit = f"{unit} by the language model alone, activation_checkpointing=none; {unchecked.saved / 1e6:.2f} with the encoder"
    yield single("meta_7b_saved_none_mb", unchecked.saved_language / 1e6, none_unit, target="<= 5.6")
    yield single("meta_7b_saved_mb", selective.saved / 1e6, f"{unit}, activation_checkpointing=selective", target="<= 4.5")


def packing() -> Iterator[Measurement]:
    lengths = [len(sample.ids) for sample in workload.make_samples(WORKLOADS["b"], 10 * WINDOW // WORKLOADS["b"].batch)]
    windows = [lengths[at : at + WINDOW] for at in range(0, len(lengths), WINDOW)]
    start = time.process_time()
    packed = [pack(window, MAX_SEQ_LEN) for window in windows]
    seconds = time.process_time() - start
    sequences = sum(map(len, packed))
    assert all(sorted(item for sequence in window for item in sequence) == list(range(WINDOW)) for window in packed)
    unit = f"empty share of sequences of {MAX_SEQ_LEN:,}, windows of {WINDOW:,}"
    yield single("packing_empty", 1 - sum(lengths) / (sequences * MAX_SEQ_LEN), unit, target="<= 0.02")
    yield single("packing_us", 1e6 * seconds / len(lengths), "us per sample", target="<= 5")


def per_source_seconds(name: str) -> tuple[float, float]:
    """CPU seconds of the losses per source (summed and read at every step), and of the steps, on one thread."""
    peers.pin_to_one_core()
    size, seconds = WORKLOADS[name], []

    def timed(method):
        def timed_method(module: VLMLightningModule, *arguments):
            start = time.process_time()
            result = method(module, *arguments)
            seconds.append(time.process_time() - start)
            return result

        return timed_method

    VLMLightningModule._count, VLMLightningModule.totals = timed(VLMLightningModule._count), timed(VLMLightningModule.totals)  # type: ignore[method-assign]
    steps, clock = workload.WARM_UP + workload.STEPS, peers.Clock()
    batches = workload.pack_batches(workload.make_samples(size, steps), size, steps=steps)
    peers.fit(workload.make_model(size), batches, size, callbacks=[clock, peers.LossRecorder()])
    return sum(seconds[2 * workload.WARM_UP :]), clock.seconds


class TrivialModel(nn.Module):
    """A model so small that a step consists of the trainer's own work."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.weights, self.inherited = nn.Linear(4, 4), {}, set()

    def parts(self) -> dict[str, nn.Module]:
        return {"language": self.part}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.part(torch.ones(2, 4)).sum(1), torch.zeros(2, dtype=torch.int16)


def trainer_ms(steps: int = 2000) -> Measurement:
    """CPU time of a step with logging and checkpoint hooks, minus that of the same forward, backward and update in a bare loop."""
    size, num_threads = WORKLOADS["b"], torch.get_num_threads()
    torch.set_num_threads(1)
    batch = workload.pack_batches(workload.make_samples(size, 1), size, steps=1)[0]
    pairs = [(with_trainer(size, batch, steps), with_bare_loop(batch, steps)) for _ in range(3)]
    torch.set_num_threads(num_threads)
    overhead = sorted(1e3 * (trainer - bare) / steps for trainer, bare in pairs)
    unit = "ms of CPU per step beside forward, backward and update"
    return Measurement("trainer_ms", overhead[1], overhead[0], overhead[-1], len(overhead), overhead[1], None, unit, "<= 1.5")


def with_trainer(size: Workload, batch: Batch, steps: int) -> float:
    config = workload.make_config(size, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        config.outputs = folder
        module = VLMLightningModule(TrivialModel(), config, sources=["bench"], folder=Path(folder))  # type: ignore[arg-type]
        log = CSVLog(Path(folder) / "log.csv", sources=module.sources, parts=["language"], log_every=config.trainer.log_every)
        checkpoints = CheckpointCallback(Path(folder), config={}, keep_last=1)
        trainer = build_trainer(config, callbacks=[log, checkpoints])
        start = time.process_time()
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
        return time.process_time() - start


def with_bare_loop(batch: Batch, steps: int) -> float:
    model = TrivialModel()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch)[0].sum().backward()
        optimizer.step()
    return time.process_time() - start
