"""The result table of the GPU benchmark: one row per variant, in a CSV file and on the screen."""

import contextlib
import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from src.runtime.tables import print_table


@dataclass
class Row:
    gpu: str
    lengths: str
    variant: str
    micro_batch: int  # samples, on average: as many of SIZES as fit
    samples_per_second: float
    tokens_per_second: float
    tflops: float
    ceiling_tflops: float
    mfu: float
    peak_gb: float
    data_wait: float | None  # share of the time; None if the batches were prepared in advance
    host_mb_per_step: float  # growth of the memory of the process
    slowdown: float  # step time in the second half of the run over that in the first


def gpu_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "no GPU"


def write(rows: list[Row], out: Path) -> None:
    """Replaces the rows of the same lengths and GPU; all others stay."""
    replaced = {(row.gpu, row.lengths) for row in rows}
    with out.open(newline="") if out.exists() else contextlib.nullcontext([]) as file:
        others = [line for line in csv.DictReader(file) if (line["gpu"], line["lengths"]) not in replaced]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(others + [format_cells(row) for row in rows])


def show(rows: list[Row]) -> None:
    table = Table(*(name.replace("_", " ") for name in asdict(rows[0])), box=None)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in format_cells(row).values()))
    print_table(table)


def format_cells(row: Row) -> dict[str, Any]:
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
