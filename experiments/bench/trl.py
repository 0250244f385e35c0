"""Training: speed against TRL's `SFTTrainer`."""

from collections.abc import Iterator

from experiments.bench import peers, trl_sft, workload
from experiments.bench.measurement import Measurement
from experiments.bench.peers import Cost
from experiments.bench.synthetic_data import run_in_process
from experiments.bench.train import ROUNDS, speed_row
from experiments.bench.workload import WORKLOADS, Workload
from experiments.soak import environments

SIDES = {"trl": "plain", "trl_grouped": "grouped"}  # side -> its batches
TARGETS = {"a": {"trl": ">= 4.0", "trl_grouped": ""}, "b": {"trl": ">= 1.5", "trl_grouped": ""}}


def measure() -> Iterator[Measurement]:
    """Ours and TRL alternately. Without TRL's environment, one line says that the rows are skipped and how to build it."""
    if not environments.is_built("trl"):
        rows = ", ".join(f"train_{name}_{side}" for name in TARGETS for side in SIDES)
        print(f"{rows}: skipped, TRL is not installed; `python -m experiments.soak.environments trl` installs it (needs the package index)")
        return
    python = environments.python_of("trl")
    for size in (WORKLOADS[name] for name in TARGETS):
        expected = run_in_process(peers.our_losses, size.name)
        costs: dict[str, list[Cost]] = {side: [] for side in ("ours", *SIDES)}
        for _ in range(ROUNDS):
            costs["ours"].append(run_in_process(peers.train_side, size.name, "ours"))
            for side, batches in SIDES.items():
                result = trl_sft.run(python, size.name, batches)
                costs[side].append(result.cost)
                if side == "trl":
                    check_losses(size, expected, result.losses)
                mean = result.collator_seconds / (workload.STEPS - 1)  # the loader collates one batch ahead
                print(f"workload {size.name}: {side}, {mean:.2g} CPU s per step in TRL's collator, not counted; losses {result.losses}")
        for side in SIDES:
            yield speed_row(size, side, costs["ours"], costs[side], TARGETS[size.name][side])


def check_losses(size: Workload, ours: list[float], peer: list[float]) -> None:
    """Both sides train the same model on the same tokens if the losses of their first updates are equal."""
    difference = max(abs(a - b) / b for a, b in zip(ours, peer, strict=False))
    assert difference < 1e-4, f"workload {size.name}: the losses of TRL differ from ours by {difference:.1e} (relative) on equal data"
