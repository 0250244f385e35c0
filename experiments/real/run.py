"""Trains and evaluates the trials of trials.yaml on real images, and writes their tables. The same command again continues.

python -m experiments.real.run data=SHARDS out=FOLDER vision.format=timm vision.path=FOLDER language.path=FOLDER
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.real import results
from experiments.real.trials import SETTINGS, Trial, read_experiment, select_trials
from src.config.evaluate import EvaluateConfig
from src.config.train import TrainConfig
from src.config.transfer import TransferConfig
from src.evaluate import evaluate
from src.evaluation.benchmark import read_benchmark
from src.runtime.arguments import parse_arguments
from src.runtime.cli import compose
from src.runtime.errors import UserError, report_user_errors
from src.runtime.schema import to_typed
from src.train import train
from src.transfer import transfer

COMMANDS: dict[str, tuple[type, Callable]] = {
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "transfer": (TransferConfig, transfer),
}


@dataclass
class RealConfig:
    """Trains and evaluates models on real images, and writes their tables. The same command again continues.

    python -m experiments.real.run data=data/shards out=outputs/real vision.format=timm vision.path=FOLDER language.path=FOLDER

    data      folder of the shards, after `make audit`
    out       folder of the run folders
    vision    keys of the encoder at the start, vision.format=, vision.path=, ..., in place of those of +experiment=small
    language  keys of the language model, language.path=, ..., in place of those of +experiment=small
    trials    names from trials.yaml, separated by commas; all if not given
    seeds     number of seeds of each trial (1)
    steps     optimizer steps in place of those of trials.yaml
    limit     questions per benchmark, spread over the test split; 0 = all (0)
    cells     folder written by experiments.real.cells; no transfer if not given
    tables    folder of the CSV files; `out` if not given
    settings  file like trials.yaml
    """

    data: Path
    out: Path
    vision: dict[str, str] = field(default_factory=dict)
    language: dict[str, str] = field(default_factory=dict)
    trials: list[str] = field(default_factory=list)
    seeds: int = 1
    steps: int | None = None
    limit: int = 0
    cells: Path | None = None
    tables: Path | None = None
    settings: Path = SETTINGS


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(RealConfig, args)
    shared = [f"{part}.{key}={value}" for part in ("vision", "language") for key, value in getattr(config, part).items()]
    shared += [f"data.root={config.data}", *([f"optim.steps={config.steps}"] if config.steps else [])]
    experiment = read_experiment(config.settings)
    trials = select_trials(experiment, config.trials, seeds=config.seeds, shared=shared)
    if config.cells and not (config.cells / "labels.csv").is_file():
        raise UserError(f"cells={config.cells} holds no labels.csv; write it with python -m experiments.real.cells")
    benchmarks = {name: len(read_benchmark(name, root=config.data, limit=config.limit).rows) for name in experiment.benchmarks}
    tables = config.tables or config.out
    for number, trial in enumerate(trials, 1):
        print(f"[{number}/{len(trials)}] {trial.name}", flush=True)
        run_trial(trial, config, benchmarks)
        results.write(config.out, trials[:number], tables)
    if config.cells:
        transfer_encoders(trials, config)
        results.write_cells(config.out / results.CELLS, tables)
    print(f"wrote the tables to {tables}")


def run_trial(trial: Trial, config: RealConfig, benchmarks: dict[str, int]) -> None:
    """Trains and evaluates; complete parts are skipped. Raises `UserError` if the run folder has other settings."""
    run_command("train", trial.train_words(), config.out)
    if is_evaluated(config.out / trial.name, benchmarks, trial.settings.images):
        print(f"{config.out / trial.name} is evaluated already")
    else:
        run_command("evaluate", trial.evaluate_words(config.limit), config.out)


def is_evaluated(folder: Path, benchmarks: dict[str, int], images: list[str]) -> bool:
    """Whether the finished model has answered this number of questions of each benchmark under each image condition."""
    path = folder / "evaluate.json"
    if not path.exists() or path.stat().st_mtime < (folder / "train.json").stat().st_mtime:
        return False
    result = json.loads(path.read_text())
    keys = {f"vqa/{name}/{condition}/all/exact" for name in benchmarks for condition in images}
    return result["asked"] == benchmarks and keys <= result["metrics"].keys()


def transfer_encoders(trials: list[Trial], config: RealConfig) -> None:
    """Linear probes on cells: the encoder that each trial trained, the one before training, and one with random weights."""
    assert config.cells is not None
    trained = [trial.name for trial in trials if trains_encoder(config.out / trial.name)]
    if not trained:
        raise UserError("cells: no trial has trained its encoder; add a trial such as both, or remove cells=")
    given = to_typed(TrainConfig, compose("train", trials[0].given_words())).vision
    start = [f"hf:{given.path}"] if given.format != "scratch" else []
    encoders = [*(f"run:{name}" for name in trained), *start, f"scratch:{trained[0]}"]
    if not results.has_cells(config.out / results.CELLS, encoders):
        quoted = ",".join(f'"{name}"' for name in encoders)
        words = [f"encoder=[{quoted}]", f"benchmarks={config.cells.name}", f"raw={config.cells.parent}", f"name={results.CELLS}"]
        words += trials[0].experiment.transfer
        run_command("transfer", words, config.out)


def trains_encoder(folder: Path) -> bool:
    """Whether the run has trained its encoder. A run without images has not, although the encoder has a learning rate."""
    parts = json.loads((folder / "train.json").read_text())["parts"]
    images = yaml.safe_load((folder / "config.yaml").read_text())["data"]["images"]
    return images and any(part["part"] == "vision" and part["trainable"] and part["lr"] for part in parts)


def run_command(name: str, words: list[str], out: Path) -> Any:
    """Runs a command of `src` in this process. Its result file records the arguments in `sys.argv`, so they are set."""
    words, own = [*words, f"outputs={out}"], sys.argv
    print(f"$ python -m src.{name} {' '.join(words)}", flush=True)
    schema, command = COMMANDS[name]
    config = to_typed(schema, compose(name, words))
    gc.collect()  # the previous model is part of a reference cycle with its trainer
    try:
        sys.argv = [f"src.{name}", *words]
        return command(config)
    finally:
        sys.argv = own


if __name__ == "__main__":
    main(sys.argv[1:])
