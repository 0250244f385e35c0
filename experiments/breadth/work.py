"""One trial of the breadth experiment: trains an encoder and evaluates it with a linear probe on the eight benchmarks."""

import sys
from pathlib import Path

import torch

from experiments.breadth.trials import BENCHMARKS, Trial
from src.config.train import TrainConfig
from src.config.transfer import TransferConfig
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from src.train import train
from src.transfer import transfer

RAW = "data/phantom/raw"
INITIAL_ENCODER = "phantom"  # of every trial; a file of conf/vision


def redirect_output(log: str) -> None:
    """Initialises a worker process: one thread, and output to a log file, because two workers would mix their lines."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115


def run_trial(trial: Trial) -> None:
    """Trains one encoder and probes it on the eight benchmarks. Complete parts are skipped."""
    train(to_typed(TrainConfig, compose("train", trial.overrides())))
    probe(f"run:{trial.name}", trial.name)


def run_baseline() -> None:
    probe(INITIAL_ENCODER, "breadth/start")


def probe(encoder: str, name: str) -> None:
    words = [f"raw={RAW}", f"benchmarks=[{','.join(BENCHMARKS)}]", f"name='{name}'", "checkpoint=last", "resamples=200", "threads=1"]
    config = to_typed(TransferConfig, compose("transfer", [f"encoder='{encoder}'", *words]))
    if not (Path(config.outputs) / name / "transfer.json").exists():
        transfer(config)
