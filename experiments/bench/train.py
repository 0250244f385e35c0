"""Training: speed and memory against transformers' Llava with peft, the cost of the real 7B, packing, and the trainer's overhead."""

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.bench import peers, trl_sft, workload
from experiments.bench.full_size import full_size_cost
from experiments.bench.measurement import Measurement, ratio, single
from experiments.bench.peers import Cost
from experiments.bench.synthetic_data import run_in_process
from experiments.bench.workload import WORKLOADS, Workload
from experiments.soak import environments
from src.data.packing import Batch, pack
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.csv_log import CSVLog
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

SIDES = ("ours", "plain", "llava", "grouped")
TRL_SIDES = {"trl": "plain", "trl_grouped": "grouped"}  # side -> its batches
ROUNDS = 2
TARGETS = {
    "a": {"plain": ">= 4.0", "llava": "", "grouped": ">= 3.2", "memory": ">= 4.5", "trl": ">= 4.0", "trl_grouped": ""},
    "b": {"plain": ">= 1.55", "llava": "", "grouped": ">= 1.05", "memory": ">= 1.5", "trl": ">= 1.5", "trl_grouped": ""},
}
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
    for name in TARGETS:
        yield from against_peers(WORKLOADS[name])
    yield qwen3_speed()
    yield from against_trl()


def against_peers(size: Workload) -> Iterator[Measurement]:
    """Ours and the peers alternately, each run in a new process so that memory is measured separately."""
    check_padding(size)
    check_equal_losses(size)
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            costs[side].append(run_in_process(peers.train_side, size.name, side))
    for metric, side in (("speed", "plain"), ("llava", "llava"), ("grouped", "grouped")):
        yield speed_row(size, metric, costs["ours"], costs[side], TARGETS[size.name][side])
    growths = ([cost.growth for cost in costs[side]] for side in ("ours", "plain"))
    yield ratio(f"train_{size.name}_memory", *growths, f"MB of growth ({size.setting})", target=TARGETS[size.name]["memory"], cost=True)


def speed_row(size: Workload, metric: str, ours: list[Cost], peer: list[Cost], target: str) -> Measurement:
    """The ratio of tokens per CPU second over all rounds, with its range over the rounds."""
    unit = f"tokens per CPU second ({size.setting})"
    rounds = ratio("", *([cost.tokens / cost.seconds for cost in side] for side in (ours, peer)), unit)
    speeds = [sum(cost.tokens for cost in side) / sum(cost.seconds for cost in side) for side in (ours, peer)]
    return Measurement(f"train_{size.name}_{metric}", speeds[0] / speeds[1], rounds.low, rounds.high, len(ours), *speeds, unit, target)


def against_trl() -> Iterator[Measurement]:
    """Ours and TRL alternately. Without TRL's environment, one line says that the rows are skipped and how to build it."""
    if not environments.is_built("trl"):
        rows = ", ".join(f"train_{name}_{side}" for name in TARGETS for side in TRL_SIDES)
        print(f"{rows}: skipped, TRL is not installed; `python -m experiments.soak.environments trl` installs it (needs the package index)")
        return
    python = environments.python_of("trl")
    for size in (WORKLOADS[name] for name in TARGETS):
        expected = run_in_process(peers.our_losses, size.name)
        costs: dict[str, list[Cost]] = {side: [] for side in ("ours", *TRL_SIDES)}
        for _ in range(ROUNDS):
            costs["ours"].append(run_in_process(peers.train_side, size.name, "ours"))
            for side, batches in TRL_SIDES.items():
                result = trl_sft.run(python, size.name, batches)
                costs[side].append(result.cost)
                if side == "trl":
                    check_losses(size, expected, result.losses)
                mean = result.collator_seconds / (workload.STEPS - 1)  # the loader collates one batch ahead
                print(f"workload {size.name}: {side}, {mean:.2g} CPU s per step in TRL's collator, not counted; losses {result.losses}")
        for side in TRL_SIDES:
            yield speed_row(size, side, costs["ours"], costs[side], TARGETS[size.name][side])


def check_equal_losses(size: Workload) -> None:
    difference = run_in_process(peers.max_loss_difference, size.name)
    assert difference < 1e-4, f"workload {size.name}: the losses of the two sides differ by {difference:.1e} (relative) on equal data"
    print(f"workload {size.name}: the losses of the two sides agree to {difference:.0e}")


def check_losses(size: Workload, ours: list[float], peer: list[float]) -> None:
    """Both sides train the same model on the same tokens if the losses of their first updates are equal."""
    difference = max(abs(a - b) / b for a, b in zip(ours, peer, strict=False))
    assert difference < 1e-4, f"workload {size.name}: the losses of TRL differ from ours by {difference:.1e} (relative) on equal data"


def qwen3_speed() -> Measurement:
    """The fast path of Qwen3 against transformers + peft on random batches."""
    size = WORKLOADS["b_qwen3"]
    check_equal_losses(size)
    speeds: dict[str, list[float]] = {side: [] for side in ("ours", "plain")}
    for _ in range(ROUNDS):
        for side, values in speeds.items():
            cost = run_in_process(peers.train_side, size.name, side)
            values.append(cost.tokens / cost.seconds)
    return ratio("train_b_qwen3", speeds["ours"], speeds["plain"], f"tokens per CPU second ({size.setting})", target=">= 1.3")


def check_padding(size: Workload) -> None:
    """Prints the shares of padding and supervised tokens; they must match those for which the targets were set."""
    batches = peers.make_batches(size, "plain")[workload.WARM_UP :]
    padding, supervised, mean = peers.padding_stats(batches)
    print(f"workload {size.name}: {padding:.1f}% padding, {supervised:.1f}% of the tokens supervised, {mean:.1f} tokens per sample")
    assert abs(padding - size.padding) < 2, f"workload {size.name}: {padding:.1f}% padding, expected {size.padding}%"
    assert abs(supervised - size.supervised) < 2, f"workload {size.name}: {supervised:.1f}% supervised, expected {size.supervised}%"


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
