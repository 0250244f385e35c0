"""A training by `python -m src.train` that is killed by SIGKILL after a checkpoint and resumed by the same command, from stored weights.

The language model has fewer layers than the 7B (`SIZES`), so that its weights are written and read twice within minutes.
"""

import contextlib
import csv
import io
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.bench.gpu_setup import Bench, default_dtype
from experiments.bench.gpu_table import Value
from src.runtime.errors import UserError
from src.training.checkpoint import checkpoints_by_step

PATIENCE = 180  # seconds without the next event, after which a process is taken as hanging
MAX_TIME = "00:00:05:00"  # of the training (days to seconds), in case that the benchmark is killed before it can end the training


def train_and_resume(bench: Bench) -> list[Value]:
    bench.release()  # the training is another process on the same GPU
    command = [sys.executable, "-m", "src.train", *training_words(bench)]
    run = RunFolder(bench.folder / "resume")
    half = bench.scale["seconds"] / 2
    with training(command, bench.folder / "killed.txt", bench.deadline) as killed:
        first = killed.until(lambda: run.steps)
        killed.until(lambda: run.checkpoint and run.steps[-1] > run.checkpoint and time.monotonic() - first > half)
        os.killpg(killed.process.pid, signal.SIGKILL)  # with its data workers
        killed.process.wait()
    checkpoint, before, replaced = run.checkpoint, run.rows, run.log.stat().st_ino
    with training(command, bench.folder / "resumed.txt", bench.deadline) as resumed:
        # The log is cut at the checkpoint, in a new file, and then continued.
        again = resumed.until(lambda: run.log.stat().st_ino != replaced and run.steps[-1] > checkpoint)
        resumed.until(lambda: time.monotonic() - again > half)
        resumed.process.terminate()
        code = resumed.process.wait(max(0, min(PATIENCE, bench.deadline - time.monotonic())))
    start = re.search(r"resuming from .*step=(\d+)\.ckpt", resumed.output)
    steps = run.steps
    if start is None or int(start[1]) != checkpoint or steps != list(range(1, len(steps) + 1)) or code != 128 + signal.SIGTERM:
        event = f"the resumed run did not continue at step {checkpoint} (exit code {code})"
        raise UserError(f"bench-gpu: {event}: {resumed.print_output()}; see its output above")
    step_seconds, checkpoint_seconds = split_seconds(before)
    size = run.folder / "checkpoints" / f"step={run.checkpoint}.ckpt"
    return bench.values(
        "resume",
        layers=(bench.scale["layers"], "of the language model"),
        steps_per_second=(1 / step_seconds, f"steps/s of {bench.scale['batch']} samples, without validation and checkpoint"),
        start=(first - killed.started, "s from the start of the command to the end of its first step"),
        checkpoint=(checkpoint_seconds, "s that the step after a validation takes longer: step=N.ckpt, and best.ckpt if it is better"),
        checkpoint_mb=(size.stat().st_size / 1e6, "MB of step=N.ckpt"),
        killed_at=(before[-1][0], "last step before SIGKILL"),
        resumed_at=(int(start[1]), "step of the checkpoint, at which the same command continued"),
        restart=(again - resumed.started, "s from the start of this command to the end of its first step"),
        steps=(steps[-1], "steps in log.csv, each once"),
    )


def training_words(bench: Bench) -> list[str]:
    """Overrides of the run `resume`. Writes its language model, with random weights."""
    folder, layers = bench.folder / "language", bench.scale["layers"]
    dtype = torch.float32 if bench.small else torch.bfloat16
    with default_dtype(dtype), torch.device(bench.device):
        model = LlamaForCausalLM(LlamaConfig(**bench.shape | {"num_hidden_layers": layers}, bos_token_id=1, eos_token_id=2))
    model.to(dtype).save_pretrained(folder)
    bench.tokenizer.save_pretrained(folder)
    del model
    bench.release()
    words = bench.words("mix") if bench.small else [*bench.words("mix"), "vision=scratch"]
    words += [f"language.path={folder}", "name=resume", "optim.steps=100000", "data.val_samples=16", "data.val_generations=0"]
    every = 5 if bench.small else 20
    words += [f"trainer.val_every={every}", "trainer.log_every=1", "trainer.activation_checkpointing=none"]
    return [*words, f"+trainer.extra.max_time={MAX_TIME}"]


class RunFolder:
    """What the files of a training that is in progress say."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.csv"

    @property
    def rows(self) -> list[tuple[int, float, bool]]:
        """(step, seconds since the start, whether a validation followed) of each complete line of the log."""
        text = self.log.read_text() if self.log.exists() else ""
        lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [(int(line["step"]), float(line["seconds"]), bool(line["val"])) for line in lines]

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.rows]

    @property
    def checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        return max((int(path.stem[5:]) for path in checkpoints_by_step(self.folder / "checkpoints")), default=0)


def split_seconds(rows: list[tuple[int, float, bool]]) -> tuple[float, float]:
    """(seconds of a step, seconds of a checkpoint), as medians. The row of a validation includes the validation; the time of its
    checkpoint is in the next row. The first row includes the warm-up."""
    usual, after = [], []
    for (_, begin, validated), (_, end, validates) in pairwise(rows):
        if not validates:
            (after if validated else usual).append(end - begin)
    step = statistics.median(usual)
    return step, statistics.median(after) - step


class Training:
    """A process whose output goes to `log`. It is not waited for after `deadline`, a time by `time.monotonic`."""

    def __init__(self, command: list[str], log: Path, deadline: float):
        self.log, self.deadline, self.started = log, deadline, time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def print_output(self) -> str:
        """Prints the end of the output and returns its last line."""
        print(self.output[-3000:], flush=True)
        return (self.output.strip().splitlines() or ["no output"])[-1]

    def until(self, condition: Callable[[], object]) -> float:
        """Waits until `condition()` is true; returns the time. Raises `UserError` if the process ends or hangs before, or at `deadline`."""
        start = time.monotonic()
        while not condition():
            now, ended = time.monotonic(), self.process.poll() is not None
            if ended or now > min(start + PATIENCE, self.deadline):
                hangs = f"made no progress for {PATIENCE} s" if now <= self.deadline else "would take longer than minutes= allows"
                event = "ended" if ended else hangs
                raise UserError(f"bench-gpu: python -m src.train {event}: {self.print_output()}; see its output above")
            time.sleep(0.02)
        return time.monotonic()


@contextlib.contextmanager
def training(command: list[str], log: Path, deadline: float) -> Iterator[Training]:
    """Starts a process, which ends with the context, together with its data workers."""
    started = Training(command, log, deadline)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()
