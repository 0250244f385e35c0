"""A run, its float32 export and its questions, for the trials that compare another program with ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from src.data.remote import CacheConfig
from src.evaluation.benchmark import Benchmark, benchmarks_of_mix, read_benchmark
from src.inference.query import ModelSource, find_model
from src.runtime.errors import UserError


def copy_run(model: str, scratch: Path) -> ModelSource:
    """A copy of the run without its answers, so that the trial changes nothing of it. Raises `UserError` for what cannot be compared."""
    source = find_model(model)
    if source.config is None:
        raise UserError(f"model={model}: an export is compared with its run; give run:NAME")
    if source.config.language.dtype != "float32":
        raise UserError(
            f"model={model}: answers are compared in float32, but the run has language.dtype={source.config.language.dtype}, whose "
            "rounding changes answers; give a run with language.dtype=float32"
        )
    name = source.name.removeprefix("run:")
    shutil.copytree(source.folder, scratch / "outputs" / name, ignore=shutil.ignore_patterns("predictions"))
    return find_model(f"run:{name}", outputs=str(scratch / "outputs"), accelerator="cpu")


def run_command(source: ModelSource, command: str, *options: str) -> None:
    """`python -m src.<command>` on the copied run. The command prints its own error."""
    name = source.name.removeprefix("run:")
    outputs = str(source.folder).removesuffix(f"/{name}")
    code = subprocess.run([sys.executable, "-m", f"src.{command}", f"run={name}", f"outputs={outputs}", *options]).returncode
    if code:
        raise UserError(f"src.{command} of {source.name} failed with exit code {code}; its message above says what to do")


def export_hf(source: ModelSource, scratch: Path) -> Path:
    run_command(source, "export", f"out={scratch / 'export'}", "parts=[hf]")
    return scratch / "export" / "hf"


def image_benchmark(source: ModelSource, *, limit: int = 0) -> Benchmark:
    """The first benchmark of the run's mix that asks for free text on images."""
    assert source.config is not None
    data = source.config.data
    cache = CacheConfig(data.cache, data.cache_gb)
    for name in benchmarks_of_mix(source.config.mix, data.root, cache=cache):
        test = read_benchmark(name, root=data.root, limit=limit, cache=cache)
        if test.pooled:
            return test
    raise UserError(f"model={source.name}: its mix has no benchmark with free-text questions on images; give another run")


def offline(**variables: str) -> dict[str, str]:
    """The environment of a program that must not use the network."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"} | variables
