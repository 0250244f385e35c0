"""What a sweep costs over the training it is made of: twelve short trials in one process against their fits and one start-up."""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.bench.made import alone, memory
from experiments.bench.measured import Measured, single
from experiments.mini.run import STAGES, attempt
from src.runtime.errors import UserError

TRIALS, STEPS = 12, 40
SHORT = [
    "optim.warmup=2",
    "data.global_batch_size=4",
    "data.packing_window=128",
    "data.val_samples=4",
    "data.val_generations=1",
]  # fits of 3 to 6 s on an idle core
NEEDED = ("raw data and shards", "language model", "vision stand-in")  # stages of the mini run; what is complete is not made again


def measure(trials: int = TRIALS, steps: int = STEPS) -> Iterator[Measured]:
    """Start-up is what a process with one trial takes beside its fit: imports, the check of every trial, data and model."""
    for command in (command for stage in NEEDED for command in STAGES[stage][1]):
        if attempt(command):
            raise UserError(f"python -m {command} failed, whose data the trials need")
    with tempfile.TemporaryDirectory() as folder:
        words = ["+experiment=mini", f"optim.steps={steps}", f"trainer.val_every={steps}", f"outputs={folder}", *SHORT]
        one, fit, _ = timed([*words, "name=one", "seed=0"])
        wall, fits, memories = timed([*words, "name=many", f"seed={','.join(map(str, range(trials)))}"])
    least = sum(fits) + one - sum(fit)
    growth = (memories[-1] - memories[2]) / (trials - 3)  # the first trials fill caches
    unit = f"s, {trials} trials of {steps} steps; {min(fits):.1f} to {max(fits):.1f} s of fit each"
    yield Measured("sweep_overhead", wall / least, wall / least, wall / least, 1, wall, least, unit, "<= 1.15")
    yield single("sweep_memory_growth", growth, "MB a trial at the end of its fit, from the third on", target="<= 5")


def timed(words: list[str]) -> tuple[float, list[float], list[float]]:
    """Seconds of the whole process, of the fit of each trial, and MB of memory at the end of each fit."""
    begun = time.perf_counter()
    fits, memories = alone(swept, words)
    return time.perf_counter() - begun, fits, memories


def swept(words: list[str]) -> tuple[list[float], list[float]]:
    import lightning

    from src import train

    fits: list[float] = []
    memories: list[float] = []
    fit = lightning.Trainer.fit

    def measured(*arguments, **more):
        begun = time.perf_counter()
        fit(*arguments, **more)
        fits.append(time.perf_counter() - begun)
        memories.append(memory("VmRSS"))

    lightning.Trainer.fit = measured  # type: ignore[method-assign]
    sys.argv = [str(Path(train.__file__)), "-m", *words]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            train.main()
        except SystemExit as end:
            raise RuntimeError(said.getvalue()[-2000:]) from end
    return fits, memories
