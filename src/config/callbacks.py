"""The config group `callbacks`: callbacks of Lightning by name."""

from dataclasses import dataclass

from src.runtime.errors import UserError
from src.runtime.schema import check_choice


@dataclass
class EarlyStoppingConfig:
    """Arguments of Lightning's `EarlyStopping`; it compares at every validation."""

    monitor: str = "val"
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0


@dataclass
class LRMonitorConfig:
    """Arguments of Lightning's `LearningRateMonitor`."""

    log_momentum: bool = False
    log_weight_decay: bool = False


@dataclass
class DeviceStatsConfig:
    """Arguments of Lightning's `DeviceStatsMonitor`."""

    cpu_stats: bool | None = None


@dataclass
class CallbacksConfig:
    """Lightning callbacks by name; null leaves one out (src/training/callbacks/configured.py)."""

    early_stopping: EarlyStoppingConfig | None = None
    lr_monitor: LRMonitorConfig | None = None
    device_stats: DeviceStatsConfig | None = None


def check_callbacks(config: CallbacksConfig) -> None:
    """Raises `UserError` for a setting that Lightning would reject or that could never stop a run."""
    stopping = config.early_stopping
    if stopping:
        check_choice("callbacks.early_stopping.mode", stopping.mode, ("min", "max"))
        if stopping.patience < 1:
            raise UserError(f"callbacks.early_stopping.patience must be at least 1, found {stopping.patience}")
