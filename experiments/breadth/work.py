"""One trial of the breadth experiment, in a process of its own: train an encoder, then probe it on the eight benchmarks."""

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
START = "phantom"  # the encoder that every trial starts from, a file of conf/vision


def quiet(log: str) -> None:
    """What a worker says goes to a file: two of them at once cannot be read."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115


def work(trial: Trial) -> None:
    """Trains one encoder and probes it on the eight benchmarks; what is done already is not done again."""
    train(to_typed(TrainConfig, compose("train", trial.overrides())))
    probe(f"run:{trial.name}", trial.name)


def baseline() -> None:
    probe(START, "breadth/start")


def probe(encoder: str, name: str) -> None:
    words = [f"raw={RAW}", f"benchmarks=[{','.join(BENCHMARKS)}]", f"name='{name}'", "checkpoint=last", "resamples=200", "threads=1"]
    config = to_typed(TransferConfig, compose("transfer", [f"encoder='{encoder}'", *words]))
    if not (Path(config.outputs) / name / "transfer.json").exists():
        transfer(config)
