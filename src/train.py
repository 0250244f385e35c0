"""`python -m src.train +experiment=NAME`: train the vision-language model; the same command again resumes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.train import TrainConfig
from src.config.train_rules import check_train_config
from src.runtime import run_folder, sweep
from src.runtime.cli import command
from src.runtime.run_names import follow_up
from src.tracking import wandb_run

if TYPE_CHECKING:
    import lightning


def train(config: TrainConfig, *, callbacks: "Sequence[lightning.Callback]" = ()) -> Path:
    """Starts or resumes a run and returns its folder.

    `callbacks` are added to those of `config.callbacks`. They read the values of `log.csv` in `trainer.callback_metrics`. With
    `trainer.extra.fast_dev_run`, the run is written to a temporary folder, and the run folder stays as it is.
    """
    check_train(config)
    from src.commands.train import start_training  # imports torch, which takes seconds: mistakes are reported before

    return start_training(config, callbacks)


def check_train(config: TrainConfig) -> None:
    check_train_config(config)
    if config.mix.exclude or config.mix.max_per_subset:
        from src.data.remote import CacheConfig  # imports pyarrow, as the next module does
        from src.data.train_val_split import open_sources, split_rows

        cache = CacheConfig(config.data.cache, config.data.cache_gb)
        split_rows(open_sources(config.data.root, config.mix, cache=cache), config.mix, val_samples=0)
    wandb_run.check_login(config.logger)


@command("train", TrainConfig, validate=check_train)
def main(config: TrainConfig) -> float | None:
    """Returns the best mean validation loss to Hydra, as the objective of a sweeper; None without a validation."""
    config.name = sweep.trial_name(config.name)
    folder = train(config)
    if not run_folder.is_first_rank() or config.trainer.extra.get("fast_dev_run"):
        return None
    from src.training.callbacks.csv_log import best_validation_value

    result = json.loads((folder / "result.json").read_text())
    print(f"{folder}/result.json: {result['metrics']['train/samples_per_second']['value']:.1f} samples/s")
    if not sweep.is_multirun():
        print(f"next: {follow_up('evaluate', config.name, config.outputs)}")
    return best_validation_value(folder / "log.csv")


if __name__ == "__main__":
    main()
