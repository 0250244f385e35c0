"""Training against transformers' Llava with peft, the cost of the real 7B, packing, and what the trainer adds to a step."""

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.bench import peers, workload
from experiments.bench.full_size import full_size
from experiments.bench.made import alone
from experiments.bench.measured import Measured, ratio, single
from experiments.bench.peers import Cost
from experiments.bench.workload import WORKLOADS, Workload
from src.data.packing import Batch, pack
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.csv_log import CSVLog
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

SIDES = ("ours", "plain", "llava", "grouped")
ROUNDS = 2
TARGETS = {
    "a": {"plain": ">= 4.0", "llava": "", "grouped": ">= 3.2", "memory": ">= 4.5"},
    "b": {"plain": ">= 1.55", "llava": "", "grouped": ">= 1.05", "memory": ">= 1.5"},
}
WINDOW, BUDGET = 2048, 4096


def measure() -> Iterator[Measured]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield trainer_ms()
    yield from packing()
    spent, whole = alone(per_source, "b")
    yield single("per_source_share", spent / whole, "of a step of workload b, to add up and tell losses per source", target="<= 0.01")
    kept, cheap = full_size("none"), full_size("selective")
    yield single("meta_7b_flops", kept.flops / kept.least, "of the analytic minimum per real token", target="<= 1.03")
    unit = f"MB kept for backward per token by the language model alone, activation_checkpointing=none; {kept.saved / 1e6:.2f} with the encoder"
    yield single("meta_7b_saved_none_mb", kept.saved_alone / 1e6, unit, target="<= 5.6")
    yield single(
        "meta_7b_saved_mb", cheap.saved / 1e6, "MB kept for backward per token, activation_checkpointing=selective", target="<= 4.5"
    )
    for name in WORKLOADS:
        yield from against_peers(WORKLOADS[name])


def against_peers(size: Workload) -> Iterator[Measured]:
    """The peers and ours in turn, each time in a fresh process, so that one side's memory is not another's."""
    show_padding(size)
    apart = alone(peers.agree, size.name)
    assert apart < 1e-4, f"the losses of both sides on equal data differ by {apart:.1e} of their size"
    print(f"workload {size.name}: losses of both sides agree to {apart:.0e}")
    found: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            found[side].append(alone(peers.trained, size.name, side))
    unit = f"tokens per CPU second ({size.setting})"
    speeds = {side: sum(cost.tokens for cost in costs) / sum(cost.seconds for cost in costs) for side, costs in found.items()}
    targets = TARGETS[size.name]
    for name, side in (("speed", "plain"), ("llava", "llava"), ("grouped", "grouped")):
        rounds = ratio("", *([cost.tokens / cost.seconds for cost in found[who]] for who in ("ours", side)), unit)
        total = speeds["ours"] / speeds[side]
        yield Measured(
            f"train_{size.name}_{name}", total, rounds.low, rounds.high, ROUNDS, speeds["ours"], speeds[side], unit, targets[side]
        )
    growths = ([cost.growth for cost in found[side]] for side in ("ours", "plain"))
    yield ratio(f"train_{size.name}_memory", *growths, f"MB of growth ({size.setting})", target=targets["memory"], cost=True)


def show_padding(size: Workload) -> None:
    """What the lengths come to, which must be what they were when the targets were set."""
    timed = peers.batches(size, "plain")[workload.WARM_UP :]
    empty, supervised, mean = peers.padding(timed)
    print(f"workload {size.name}: {empty:.1f}% padding, {supervised:.1f}% of the tokens supervised, {mean:.1f} tokens per sample")
    assert abs(empty - size.padding) < 2, f"random batches should be padded by {size.padding}%"
    assert abs(supervised - size.supervised) < 2, f"{size.supervised}% of the tokens should be supervised"


def packing() -> Iterator[Measured]:
    lengths = [len(sample.ids) for sample in workload.samples(WORKLOADS["b"], 10 * WINDOW // WORKLOADS["b"].batch)]
    windows = [lengths[at : at + WINDOW] for at in range(0, len(lengths), WINDOW)]
    since = time.process_time()
    packed = [pack(window, BUDGET) for window in windows]
    seconds = time.process_time() - since
    rows = sum(map(len, packed))
    assert all(sorted(item for row in rows for item in row) == list(range(WINDOW)) for rows in packed)
    yield single("packing_empty", 1 - sum(lengths) / (rows * BUDGET), f"of rows of {BUDGET:,}, windows of {WINDOW:,}", target="<= 0.02")
    yield single("packing_us", 1e6 * seconds / len(lengths), "us per sample", target="<= 5")


def per_source(name: str) -> tuple[float, float]:
    """CPU seconds of adding up losses per source and telling them at every step, and those of the steps, one thread."""
    peers.pinned()
    size, spent = WORKLOADS[name], []

    def timed(method):
        def measured(module: VLMLightningModule, *arguments):
            since = time.process_time()
            found = method(module, *arguments)
            spent.append(time.process_time() - since)
            return found

        return measured

    VLMLightningModule._count, VLMLightningModule.totals = timed(VLMLightningModule._count), timed(VLMLightningModule.totals)  # type: ignore[method-assign]
    steps, clock = workload.WARM_UP + workload.STEPS, peers.Clock()
    batches = workload.packed(workload.samples(size, steps), size, steps=steps)
    peers.fit(workload.model(size), batches, size, callbacks=[clock, peers.Losses()])
    return sum(spent[2 * workload.WARM_UP :]), clock.seconds


class Nothing(nn.Module):
    """A model in whose step only the trainer's own work is left."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.weights, self.inherited = nn.Linear(4, 4), {}, set()

    def parts(self) -> dict[str, nn.Module]:
        return {"language": self.part}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.part(torch.ones(2, 4)).sum(1), torch.zeros(2, dtype=torch.int16)


def trainer_ms(steps: int = 2000) -> Measured:
    """CPU time of a step with logging and checkpoint hooks, less that of the same forward, backward and update in a bare loop."""
    size, torch_threads = WORKLOADS["b"], torch.get_num_threads()
    torch.set_num_threads(1)
    batch = workload.packed(workload.samples(size, 1), size, steps=1)[0]
    whole, bare = [], []
    for _ in range(3):
        whole.append(with_trainer(size, batch, steps))
        bare.append(without(batch, steps))
    torch.set_num_threads(torch_threads)
    spent = sorted(1e3 * (a - b) / steps for a, b in zip(whole, bare, strict=True))
    unit = "ms of CPU per step beside forward, backward and update"
    return Measured("trainer_ms", spent[1], spent[0], spent[-1], len(spent), spent[1], None, unit, "<= 1.5")


def with_trainer(size: Workload, batch: Batch, steps: int) -> float:
    config = workload.config(size, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        config.outputs = folder
        module = VLMLightningModule(Nothing(), config, sources=["bench"], folder=Path(folder))  # type: ignore[arg-type]
        log = CSVLog(Path(folder) / "log.csv", sources=module.sources, parts=["language"], log_every=config.trainer.log_every)
        saver = CheckpointCallback(Path(folder), config={}, keep_last=1)
        trainer = build_trainer(config, callbacks=[log, saver])
        since = time.process_time()
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
        return time.process_time() - since


def without(batch: Batch, steps: int) -> float:
    model = Nothing()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    since = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch)[0].sum().backward()
        optimizer.step()
    return time.process_time() - since
