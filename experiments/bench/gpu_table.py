"""The result tables of the GPU benchmark, in CSV files and on the screen."""

import contextlib
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.table import Table

from src.runtime.errors import UserError
from src.runtime.tables import print_table


@dataclass
class Row:
    """A training, in <out>.csv."""

    suffix: ClassVar[str] = ""
    identity: ClassVar[tuple[str, ...]] = ("gpu", "lengths", "variant")

    gpu: str
    lengths: str
    variant: str
    steps: int  # timed optimizer steps
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
    compiled: bool  # whether the element-wise functions of the fast path are kernels of torch.compile
    wall_s: float = 0.0  # of the whole part: model, data, warm-up and timed steps


@dataclass
class KernelRow:
    """Kernels of one optimizer step, in <out>_kernels.csv."""

    suffix: ClassVar[str] = "_kernels"
    identity: ClassVar[tuple[str, ...]] = ("gpu",)

    gpu: str
    group: str  # total, or one of the two lists of the kernels with most time
    name: str
    launches_predicted: int | None = None
    launches_measured: int | None = None
    ms_predicted: float | None = None
    ms_measured: float | None = None
    wall_s: float = 0.0


@dataclass
class Value:
    """One number of another part, in <out>_values.csv."""

    suffix: ClassVar[str] = "_values"
    identity: ClassVar[tuple[str, ...]] = ("gpu", "part")

    gpu: str
    part: str
    name: str
    value: float
    unit: str
    wall_s: float = 0.0


def gpu_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "no GPU"


def path_of(kind: Any, out: Path) -> Path:
    return out.with_stem(out.stem + kind.suffix)


def prepare(out: Path) -> None:
    """Makes the folder of the files. Raises `UserError` if that fails or if an existing file has other columns."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: its folder cannot be made ({error.strerror}); choose another file") from None
    for path, names in ((path_of(kind, out), [field.name for field in fields(kind)]) for kind in (Row, KernelRow, Value)):
        with path.open(newline="") if path.exists() else contextlib.nullcontext([]) as file:
            if next(csv.reader(file), names) != names:
                raise UserError(f"{path}: its columns are not {','.join(names)}; move the file away or choose another out=")


def write(rows: list[Any], out: Path) -> Path:
    """Replaces the rows with the identity of one of `rows`; all others stay. Returns the path."""
    kind = type(rows[0])
    path = path_of(kind, out)
    replaced = {tuple(getattr(row, key) for key in kind.identity) for row in rows}
    with path.open(newline="") if path.exists() else contextlib.nullcontext([]) as file:
        others = [line for line in csv.DictReader(file) if tuple(line[key] for key in kind.identity) not in replaced]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(others + [format_cells(row) for row in rows])
    return path


def show(rows: list[Any]) -> None:
    """A table of each kind of rows."""
    for kind in dict.fromkeys(map(type, rows)):
        same = [row for row in rows if type(row) is kind]
        table = Table(*(name.replace("_", " ") for name in asdict(same[0])), box=None)
        for row in same:
            table.add_row(*("" if value is None else str(value) for value in format_cells(row).values()))
        print_table(table)


def format_cells(row: Any) -> dict[str, Any]:
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
