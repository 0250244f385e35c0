"""Training: speed and memory against transformers' Llava with peft."""

from collections.abc import Iterator

from experiments.bench import peers, workload
from experiments.bench.measurement import Measurement, ratio
from experiments.bench.peers import Cost
from experiments.bench.synthetic_data import run_in_process
from experiments.bench.workload import WORKLOADS, Workload

SIDES = ("ours", "plain", "llava", "grouped")
ROUNDS = 2
TARGETS = {
    "a": {"plain": ">= 4.0", "llava": "", "grouped": ">= 3.2", "memory": ">= 4.5"},
    "b": {"plain": ">= 1.55", "llava": "", "grouped": ">= 1.05", "memory": ">= 1.5"},
}


def measure() -> Iterator[Measurement]:
    for name in TARGETS:
        yield from against_peers(WORKLOADS[name])
    yield qwen3_speed()


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


def check_equal_losses(size: Workload) -> None:
    difference = run_in_process(peers.max_loss_difference, size.name)
    assert difference < 1e-4, f"workload {size.name}: the losses of the two sides differ by {difference:.1e} (relative) on equal data"
    print(f"workload {size.name}: the losses of the two sides agree to {difference:.0e}")


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
