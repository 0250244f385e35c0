"""Configuration of `python -m src.ask`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class AskConfig:
    model: str
    question: str | None
    questions: list[str]
    history: str | None
    image: Any
    frame: int | None
    batch: str | None
    out: str | None
    json: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int
    checkpoint: str
    accelerator: str
    outputs: str
