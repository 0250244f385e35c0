"""The time that kernels take at best: max(FLOPs / peak, bytes / bandwidth) plus a launch (roofline model: Williams et al., CACM 2009).

That is a lower bound for eager execution: kernels that reach less than the peak, and launches that overlap with other kernels, are not
modelled.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Accelerator:
    """Rates that kernels are assumed to reach at best."""

    name: str
    flops: float  # bfloat16 FLOP/s of matrix products
    bandwidth: float  # bytes/s
    launch: float  # seconds per kernel


# Assumed, not measured: 80% of the 989 TFLOP/s and 90% of the 3.35 or 4.8 TB/s of NVIDIA's data sheets; 4 us per eager launch.
H100 = Accelerator("H100", flops=790e12, bandwidth=3.0e12, launch=4e-6)
H200 = Accelerator("H200", flops=790e12, bandwidth=4.3e12, launch=4e-6)
ACCELERATORS = {gpu.name.lower(): gpu for gpu in (H100, H200)}


class Kernel(NamedTuple):
    """An operation, `launches` kernels, and the line of Python that launches it, or whose backward pass does."""

    op: str
    line: str
    flops: int
    bytes: int
    launches: int

    def seconds(self, gpu: Accelerator) -> float:
        return max(self.flops / gpu.flops, self.bytes / gpu.bandwidth) + self.launches * gpu.launch


@dataclass
class Prediction:
    """Totals of a recording on an accelerator. `matrix` and `other` are the seconds of kernels with and without FLOPs."""

    kernels: int
    bytes: int
    matrix: float
    other: float

    @staticmethod
    def of(recording: Counter[Kernel], gpu: Accelerator) -> "Prediction":
        matrix, other = (
            sum(count * kernel.seconds(gpu) for kernel, count in recording.items() if bool(kernel.flops) == has_flops)
            for has_flops in (True, False)
        )
        launches = sum(count * kernel.launches for kernel, count in recording.items())
        return Prediction(launches, sum(count * kernel.bytes for kernel, count in recording.items()), matrix, other)

    @property
    def seconds(self) -> float:
        return self.matrix + self.other


def most_expensive(recording: Counter[Kernel], gpu: Accelerator, *, count: int) -> list[tuple[str, str, int, float]]:
    """The (operation, line, launches, seconds) with most seconds, over all shapes."""
    totals: dict[tuple[str, str], list[float]] = {}
    for kernel, number in recording.items():
        total = totals.setdefault((kernel.op, kernel.line), [0, 0.0])
        total[0] += number * kernel.launches
        total[1] += number * kernel.seconds(gpu)
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])[:count]
    return [(op, line, int(launches), seconds) for (op, line), (launches, seconds) in ordered]


def seconds_by_file(recording: Counter[Kernel], gpu: Accelerator) -> list[tuple[str, int, float]]:
    """(file, launches, seconds), forward and backward together, most seconds first. `autograd` sums gradients."""
    totals: dict[str, list[float]] = {}
    for _, line, launches, seconds in most_expensive(recording, gpu, count=len(recording)):
        total = totals.setdefault(line.removeprefix("backward of ").partition(":")[0], [0, 0.0])
        total[0] += launches
        total[1] += seconds
    return [(file, int(launches), seconds) for file, (launches, seconds) in sorted(totals.items(), key=lambda item: -item[1][1])]


def extrapolate(two: Counter[Kernel], three: Counter[Kernel], layers: int) -> Counter[Kernel]:
    """The recording of a model of `layers` equal layers from those of two and three. First and last layer may differ from the others."""
    counts = {kernel: three[kernel] + (layers - 3) * (three[kernel] - two[kernel]) for kernel in two | three}
    return Counter({kernel: count for kernel, count in counts.items() if count})
