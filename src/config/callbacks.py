"""The config group `callbacks`: callbacks of Lightning by name."""

from dataclasses import dataclass, field

from src.config.fields import bounded, choices


@dataclass
class EarlyStoppingConfig:
    """Arguments of Lightning's `EarlyStopping`; it compares at every validation."""

    monitor: str = "val"
    mode: str = field(default="min", metadata=choices("min", "max"))
    patience: int = field(default=3, metadata=bounded(1))
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
