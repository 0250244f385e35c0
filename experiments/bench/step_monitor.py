"""Host memory and time per optimizer step. A cache that grows with every new batch shape shows in both."""

import statistics

import numpy as np
import psutil

from experiments.bench.flops import synchronised_time


class StepMonitor:
    """Call `record` at the end of each step. The first call ends the warm-up."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.megabytes: list[float] = []  # resident memory of this process

    def record(self) -> None:
        self.times.append(synchronised_time())
        self.megabytes.append(psutil.Process().memory_info().rss / 1e6)

    @property
    def megabytes_per_step(self) -> float:
        """Slope of a least-squares line through the memory after each step."""
        return float(np.polyfit(range(len(self.megabytes)), self.megabytes, 1)[0])

    @property
    def slowdown(self) -> float:
        """Median step time of the second half over that of the first half."""
        seconds = np.diff(self.times).tolist()
        half = len(seconds) // 2
        return statistics.median(seconds[half:]) / statistics.median(seconds[:half])
