"""`python -m experiments.bench.gpu`: what LLaMA-7B with a ViT-B/16 costs on one GPU, with random weights and synthetic shards.

The parts run in the order of `parts()`, those that matter most first, as far as the minutes allow: training against transformers
(gpu_train.py), the kernels of a step against their prediction (gpu_kernels.py), host memory (gpu_memory.py), answers against
transformers (gpu_generate.py), and a training that is killed and resumed (gpu_resume.py).
"""

import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from experiments.bench.gpu_budget import Budget, Outcome, Part, run_parts
from experiments.bench.gpu_generate import compare_generation
from experiments.bench.gpu_kernels import compare_kernels
from experiments.bench.gpu_memory import host_memory
from experiments.bench.gpu_resume import train_and_resume
from experiments.bench.gpu_setup import LENGTHS, SIZES, Bench, check_gpu
from experiments.bench.gpu_table import Row, Value, prepare, show, write
from experiments.bench.gpu_train import train
from src.model.fast import elementwise
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors
from src.runtime.schema import check_choice

TRAININGS = {
    "mix": (
        "ours_none",
        "transformers",
        "transformers_checkpointing",
        "plain_none",
        "ours_selective",
        "ours_full",
        "ours_unpacked",
    ),
    "even": ("ours_none", "transformers", "transformers_checkpointing", "plain_none"),
}
OTHERS = {"kernels": compare_kernels, "memory": host_memory, "generate": compare_generation, "resume": train_and_resume}
NAMES = (*(f"{lengths}_{variant}" for lengths, variants in TRAININGS.items() for variant in variants), *OTHERS)


@dataclass
class BenchGpuConfig:
    """Measures training, evaluation and resume at full size on one GPU, with random weights and synthetic shards.

    python -m experiments.bench.gpu minutes=9
    python -m experiments.bench.gpu parts=mix_ours_none,kernels

    device   cuda (default) or cpu
    size     full (default) or small
    lengths  of the samples: even (all have the same length), mix (lengths of the mix), or both (default); the parts without a length
             in their name belong to mix
    parts    names of the parts to run (default: all). They run in this order:
             mix_ours_none, mix_transformers, mix_transformers_checkpointing, mix_plain_none, mix_ours_selective, mix_ours_full,
             mix_ours_unpacked, even_ours_none, even_transformers, even_transformers_checkpointing, even_plain_none,
             kernels, memory, generate, resume
    minutes  a part that would not end in time is left out (default 9)
    out      CSV file of the trainings (default experiments/bench/gpu.csv); gpu_kernels.csv and gpu_values.csv are written to its folder
    """

    device: str = "cuda"
    size: str = "full"
    lengths: list[str] = field(default_factory=lambda: list(LENGTHS))
    parts: list[str] = field(default_factory=lambda: list(NAMES))
    minutes: float = 9.0
    out: Path = Path("experiments/bench/gpu.csv")


@report_user_errors
def main(args: list[str], *, used: float = 0.0) -> None:
    """`used`: seconds of the budget that have passed before."""
    config = parse_arguments(BenchGpuConfig, args)
    budget = Budget(60 * config.minutes, used)
    check_choice("device", config.device, ("cuda", "cpu"))
    check_choice("size", config.size, tuple(SIZES))
    for key, allowed in (("lengths", LENGTHS), ("parts", NAMES)):
        for value in getattr(config, key):
            check_choice(key, value, allowed)
    prepare(config.out)
    check_gpu(config.device, config.size)
    rows: list[Any] = []
    left_out, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config.device, config.size, Path(folder), deadline=time.monotonic() + budget.left)
        for outcome in run_parts(parts(bench, config), budget):
            name = outcome.part.name
            new = [replace(row, wall_s=outcome.seconds) for row in outcome.rows]
            rows += new
            if new:
                write(new, config.out)  # after each part, so that an interrupted run keeps its measurements
            print(f"{name}: {describe(outcome)}", flush=True)
            left_out += [name] if outcome.skipped else []
            failed += [f"{name} ({outcome.failed})"] if outcome.failed else []
    if not elementwise.compiler_works:
        print(
            "torch.compile does not work here, so the element-wise functions of `ours` ran as several kernels each; see the warning above"
        )
    show(rows)
    if config.device == "cpu":
        print("device=cpu: the code of all parts runs, and the numbers mean nothing")
    if left_out:
        words = [f"{key}={getattr(config, key)}" for key in ("device", "size") if getattr(config, key) != getattr(BenchGpuConfig, key)]
        command = " ".join(["python -m experiments.bench.gpu", *words, f"out={config.out}", f"parts={','.join(left_out)}"])
        print(f"left out for lack of time: {', '.join(left_out)}; only these: {command}")
    if failed:
        raise UserError(f"bench-gpu: parts failed: {'; '.join(failed)}")


def parts(bench: Bench, config: BenchGpuConfig) -> list[Part]:
    """The parts that `config` selects, in the order of NAMES. Raises `UserError` if there are none."""
    chosen = []
    for lengths in ("mix", "even"):
        for variant in TRAININGS[lengths] if lengths in config.lengths else ():
            kind = "transformers" if variant.startswith("transformers") else "ours"
            chosen.append(Part(f"{lengths}_{variant}", kind, partial(train, bench, lengths, variant)))
    chosen += [Part(name, name, partial(run, bench)) for name, run in OTHERS.items() if "mix" in config.lengths]
    chosen = [part for part in chosen if part.name in config.parts]
    if not chosen:
        lengths, names = ",".join(config.lengths), ",".join(config.parts)
        raise UserError(f"parts={names}: none of them belongs to lengths={lengths}; add the other lengths or choose other parts")
    return chosen


def describe(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"left out, {outcome.skipped}"
    if outcome.failed:
        return f"failed after {outcome.seconds:.1f} s: {outcome.failed}"
    values = [f"{row.samples_per_second:.4g} samples/s" for row in outcome.rows if isinstance(row, Row)]
    values += [f"{row.name} {row.value:.4g}" for row in outcome.rows if isinstance(row, Value)]
    return ", ".join([*values, f"{outcome.seconds:.1f} s in all"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as an exception, so that `resume` ends its training
    main(sys.argv[1:], used=time.time() - psutil.Process().create_time())
