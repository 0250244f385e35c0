"""Loss curves of `data.shuffle=blocks` and `global` on the same data, over several seeds.

    python -m experiments.shuffle.loss_curves sources=slake,vqa_med_2019 raw=data/raw out=outputs/shuffle

The shards have 128 records, so that a small dataset has as many shards as a large one. Writes `loss_curves.csv`, from which
`make experiments` renders the table of the README. The same command again continues.
"""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from experiments.real.run import run_command
from src.reporting.run_data import RunData
from src.runtime.arguments import parse_arguments
from src.runtime.errors import report_user_errors

TABLE = Path(__file__).with_name("loss_curves.csv")
MODES = ("global", "blocks")
SHARD_ROWS = 128
SETTINGS = (
    "+experiment=own_data",
    "data.global_batch_size=32",
    "data.packing_window=128",
    "data.val_samples=400",
    "data.val_generations=0",
    "trainer.log_every=10",
    "optim.warmup=10",
)


@dataclass
class ShuffleConfig:
    """Trains on the same data with data.shuffle=global and blocks, and compares the validation losses.

    python -m experiments.shuffle.loss_curves sources=slake,vqa_med_2019 raw=data/raw out=outputs/shuffle

    sources  sources below raw, in equal shares
    raw      folder of the raw data
    out      folder of the shards and of the run folders
    seeds    number of seeds of each mode (3)
    steps    optimizer steps (200)
    every    steps between validations (25)
    words    further overrides of src.train
    """

    sources: list[str]
    raw: Path
    out: Path
    seeds: int = 3
    steps: int = 200
    every: int = 25
    words: list[str] = field(default_factory=list)


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(ShuffleConfig, args)
    with mock.patch("data_prep.build.chunking.SHARD_ROWS", SHARD_ROWS):
        manifests = build_all(BuildConfig(sources=config.sources, raw=config.raw, out=config.out / "shards", workers=1))
    shards = sum(shard["name"].startswith("train") for manifest in manifests.values() for shard in manifest["shards"])
    print(f"{shards} training shards")
    rows = []
    for mode in MODES:
        for seed in range(config.seeds):
            name = f"{mode}-{seed}"
            run_command("train", train_words(config, mode, seed, name), config.out)
            run = RunData(name, config.out / name)
            origin = {"shards": shards, "data": run.data_fingerprint, "git": run.results["train"]["git"]}
            rows += [
                {"shuffle": mode, "seed": seed, "step": row["step"], "val": row["val"], **origin}
                for row in validations(config.out / name / "log.csv")
            ]
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {TABLE}")


def train_words(config: ShuffleConfig, mode: str, seed: int, name: str) -> list[str]:
    shares = ", ".join(f"{source}: 1" for source in config.sources)
    words = [*SETTINGS, f"mix.shares={{{shares}}}", f"data.root={config.out / 'shards'}", f"data.shuffle={mode}", f"seed={seed}"]
    return [*words, f"name={name}", f"optim.steps={config.steps}", f"trainer.val_every={config.every}", *config.words]


def validations(log: Path) -> list[dict[str, str]]:
    """The rows of a `log.csv` that have a validation loss."""
    with log.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["val"]]


if __name__ == "__main__":
    main(sys.argv[1:])
