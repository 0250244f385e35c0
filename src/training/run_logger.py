"""The Lightning logger of a run, for what callbacks log beside the rows of `log.csv`."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(Logger):
    """Writes metrics to `metrics.jsonl` of the run folder and to the wandb run, if there is one.

    It takes what Lightning's monitors (`LearningRateMonitor`, `DeviceStatsMonitor`) and `self.log` of a user's callback produce. The rows
    of `log.csv` do not pass through it: they are sums over ranks and steps, and a resume has to cut them at a checkpoint (`CSVLog`).
    After a kill, the steps that are repeated occur twice in `metrics.jsonl`.
    """

    def __init__(self, folder: Path, *, wandb: Any = None):
        super().__init__()
        self.folder, self.wandb = folder, wandb

    @property
    def name(self) -> str:
        return ""  # callbacks append name and version to `save_dir`

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self.wandb:
            # Not as "step": that key belongs to the rows of log.csv, of which wandb gets each once.
            self.wandb.run.log({**metrics, "trainer/global_step": step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds the configuration."""
