"""Lightning's callbacks that the config group `callbacks` switches on."""

from dataclasses import asdict

from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, EarlyStopping, LearningRateMonitor

from src.config.callbacks import CallbacksConfig

CLASSES = {"early_stopping": EarlyStopping, "lr_monitor": LearningRateMonitor, "device_stats": DeviceStatsMonitor}


def configured_callbacks(config: CallbacksConfig) -> list[Callback]:
    """One callback for every entry of `config` that is not null; its fields are the arguments of the class."""
    return [CLASSES[name](**asdict(settings)) for name, settings in vars(config).items() if settings is not None]
