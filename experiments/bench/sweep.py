"""Overhead of a sweep: twelve short trials in one process, against the sum of their fits and one start-up."""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.bench.measurement import Measurement, single, single_ratio
from experiments.bench.synthetic_data import memory_mb, run_in_process
from experiments.mini.run import STAGES, run_command
from src.runtime.errors import UserError

TRIALS, STEPS = 12, 40
SHORT_FIT = ["optim.warmup=2", "data.global_batch_size=4", "data.packing_window=128", "data.val_samples=4", "data.val_generations=1"]
REQUIRED_STAGES = ("raw data and shards", "language model", "vision stand-in")  # of the mini run; complete stages are skipped


def measure(trials: int = TRIALS, steps: int = STEPS) -> Iterator[Measurement]:
    """Start-up is the time of a process with one trial minus its fit: imports, checks of all trials, data and model."""
    for command in (command for stage in REQUIRED_STAGES for command in STAGES[stage][1]):
        if run_command(command):
            raise UserError(f"python -m {command}: failed, and the trials need its output; run it alone to see why")
    with tempfile.TemporaryDirectory() as folder:
        words = ["+experiment=mini", f"optim.steps={steps}", f"trainer.val_every={steps}", f"outputs={folder}", *SHORT_FIT]
        one, fit, _ = time_sweep([*words, "name=one", "seed=0"])
        wall, fits, memories = time_sweep([*words, "name=many", f"seed={','.join(map(str, range(trials)))}"])
    minimum = sum(fits) + one - sum(fit)
    growth = (memories[-1] - memories[2]) / (trials - 3)  # the first trials fill caches
    unit = f"s, {trials} trials of {steps} steps; {min(fits):.1f} to {max(fits):.1f} s of fit each"
    yield single_ratio("sweep_overhead", wall, minimum, unit, target="<= 1.15")
    yield single("sweep_memory_growth", growth, "MB per trial at the end of its fit, from the third trial on", target="<= 5")


def time_sweep(words: list[str]) -> tuple[float, list[float], list[float]]:
    """Seconds of the whole process, seconds of the fit of each trial, and MB of memory at the end of each fit."""
    start = time.perf_counter()
    fits, memories = run_in_process(run_sweep, words)
    return time.perf_counter() - start, fits, memories


def run_sweep(words: list[str]) -> tuple[list[float], list[float]]:
    import lightning

    from src import train

    fits: list[float] = []
    memories: list[float] = []
    fit = lightning.Trainer.fit

    def timed_fit(*args, **kwargs):
        start = time.perf_counter()
        fit(*args, **kwargs)
        fits.append(time.perf_counter() - start)
        memories.append(memory_mb("VmRSS"))

    lightning.Trainer.fit = timed_fit  # type: ignore[method-assign]
    sys.argv = [str(Path(train.__file__)), "-m", *words]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            train.main()
        except SystemExit as exit_error:
            raise RuntimeError(output.getvalue()[-2000:]) from exit_error
    return fits, memories
