"""Configuration of `python -m src.demo`."""

from dataclasses import dataclass


@dataclass
class DemoConfig:
    model: str
    host: str
    port: int
    auth: str | None
    examples: str | None
    max_megapixels: float
    max_megabytes: float
    queue: int
    checkpoint: str
    accelerator: str
    outputs: str
