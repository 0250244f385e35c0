"""Small phantom data and models for the trials with services, and the commands that use them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from experiments.soak.trial import Row

FOLDER = Path("data/soak/small")  # kept; the next trial uses it again
SOURCES = "pathvqa,slake,pmc_oa"  # the weights of the language model need the captions
BUILD = f"sources={SOURCES} raw={FOLDER}/raw quarantine_limit=0.2"  # arguments of data_prep.shards but out=
TRAIN = [
    "+experiment=mini",
    "mix=own",
    "mix.shares={pathvqa: 1, slake: 1}",
    f"language.path={FOLDER}/weights/language",
    "vision=scratch",
    "vision.architecture=vit_tiny_patch16_224",
    "vision.image_size=64",
    "+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}",
    "data.packing_window=64",
    "data.global_batch_size=16",
    "data.val_samples=8",
    "trainer.log_every=1",
    "trainer.val_every=6",
    "optim.steps=12",
    "optim.warmup=2",
]


def prepare() -> None:
    """Raw data, audited shards and a language model below `FOLDER`, unless they exist."""
    shards = FOLDER / "shards"
    for command in (
        f"data_prep.phantom sources={SOURCES} scale=0.05 out={FOLDER}/raw",
        f"data_prep.shards {BUILD} out={shards}",
        f"data_prep.audit out={shards} raw={FOLDER}/raw",
        f"data_prep.phantom.weights parts=language out={FOLDER}/weights shards={shards} language_steps=4",
    ):
        code, output = run_python(command.split())
        assert code == 0, output


def run_python(words: list[str], *, start: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """(exit code, output) of `python -m <words>`, or of a program that starts it (`start`), such as srun."""
    print("$", *start, "python -m", *words, flush=True)
    command = [*start, sys.executable, "-m", *words]
    process = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return process.returncode, process.stdout


def differing_tensors(left: Path, right: Path) -> list[str]:
    """Names of the tensors that are not bit-identical in the newest checkpoints of two runs."""
    import torch  # only now: the commands that the trial starts need the memory

    from src.training.checkpoint import checkpoints_by_step

    files = (checkpoints_by_step(folder / "checkpoints")[-1] for folder in (left, right))
    a, b = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert a, left
    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name]))


def losses(folder: Path) -> list[dict[str, str]]:
    """The rows of `log.csv` without what depends on the speed of the machine, in the order of steps."""
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key == "step" or "loss" in key or key.startswith("val")} for row in rows]


def clear_message(output: str, *expected: str) -> bool:
    """Whether the output names what is wrong and has no traceback."""
    return "Traceback" not in output and all(text in output for text in expected)


def message_row(name: str, clear: bool, output: str) -> Row:
    if not clear:
        print(output)
    return Row(f"{name}: a clear message", str(clear), "True", clear)
