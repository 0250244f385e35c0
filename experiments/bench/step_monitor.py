"""Host memory and time per optimizer step. A cache that grows with every new batch shape shows in both."""

import statistics
import time

import lightning
import numpy as np
import psutil
import torch

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
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def megabytes_per_step(self) -> float:
        """Slope of a least-squares line through the memory after each step."""
        return float(np.polyfit(range(len(self.megabytes)), self.megabytes, 1)[0])

    @property
    def slowdown(self) -> float:
        """Median step time of the second half over that of the first half."""
        return self.slowdown_of_last(2)

    def slowdown_of_last(self, parts: int) -> float:
        """Median step time of the last of equal parts over that of the first one."""
        seconds = np.diff(self.times).tolist()
        size = len(seconds) // parts
        return statistics.median(seconds[len(seconds) - size :]) / statistics.median(seconds[:size])


def start_timing() -> float:
    """The current time. Also resets the peak memory, because building a model can need more than training it."""
    start = synchronised_time()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return start


class Clock(lightning.Callback):
    """Time, samples, tokens and waiting time after the first optimizer step."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate, self.samples, self.tokens, self.supervised, self.wait = accumulate, 0, 0, 0, 0.0
        self.monitor = StepMonitor()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx > self.accumulate:
            self.wait += time.perf_counter() - self._batch_end
        self._timed = batch_idx >= self.accumulate

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._timed:
            self.samples += batch.num_samples
            self.tokens += (batch.sources_BT >= 0).sum()
            self.supervised += len(batch.loss_index_S)
        elif batch_idx == self.accumulate - 1:
            self._start = start_timing()
        if (batch_idx + 1) % self.accumulate == 0:
            self.monitor.record()
        self._batch_end = time.perf_counter()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = synchronised_time() - self._start
