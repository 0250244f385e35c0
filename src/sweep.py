"""Multirun: every trial has its own folder, a failed one is recorded, and the sweep goes on.

A trial's name is `<name>/<its overrides>`, so the same command again finds what is done and runs only what is missing.
"""

import contextlib
import hashlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from src.errors import UserError

LONGEST = 120  # characters of a trial's folder name
UNNAMED = ("name", "outputs", "experiment")  # overrides that the parent folder stands for

failures: dict[str, str] = {}  # trial -> its error, of this process's sweep


def points(overrides: list[str]) -> list[list[str]]:
    """The overrides of every trial that Hydra's basic sweeper runs."""
    words = [word for word in overrides if not word.startswith("hydra.sweeper.")]
    parsed = OverridesParser.create().parse_overrides(words)
    return [list(point) for batch in BasicSweeper.split_arguments(parsed, None) for point in batch]


def slug(overrides: list[str]) -> str:
    """The folder of a trial: its overrides, sorted; with a hash in place of the rest where that is too long for a folder name."""
    kept = [word for word in overrides if (key := word.lstrip("+~").partition("=")[0]) not in UNNAMED and not key.startswith("hydra")]
    whole = ",".join(sorted(kept)).replace("/", "_").replace(" ", "")
    if len(whole) <= LONGEST:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: LONGEST - 9]}-{digest}"


def check(trials: list[list[str]]) -> None:
    """Refuses two trials with one folder; raises `UserError`."""
    seen: dict[str, list[str]] = {}
    for trial in trials:
        name = slug(trial)
        if name in seen:
            raise UserError(f"two trials of this sweep would share the folder '{name or '.'}'; leave one of them out")
        seen[name] = trial


def refuse_ranks(config: Any, overrides: list[str]) -> None:
    """Several devices per trial need a launcher that starts trials as jobs of their own; raises `UserError`."""
    trainer = getattr(config, "trainer", None)
    if trainer and trainer.devices * trainer.nodes > 1 and not any(word.startswith("hydra/launcher=submitit") for word in overrides):
        raise UserError(
            f"-m runs trials one after another on one device, but trainer.devices x trainer.nodes = {trainer.devices} x {trainer.nodes}; "
            "add hydra/launcher=submitit_local (or submitit_slurm), or set trainer.devices=1"
        )


def trial_name(name: str) -> str:
    """`name`, or in a sweep the name of the trial that runs now."""
    if not multirun():
        return name
    return "/".join(filter(None, (name, slug(list(HydraConfig.get().overrides.task)))))


def multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def in_process() -> bool:
    """Whether trials run one after another in this process, not as jobs of their own."""
    return "submitit" not in HydraConfig.get().launcher._target_


@contextlib.contextmanager
def trial(folder: Path) -> Iterator[None]:
    """In a sweep, an error is written to `failed.json` in the trial's folder instead of ending the sweep; a success removes it."""
    record = folder / "failed.json"
    try:
        yield
    except Exception as error:
        if not multirun():
            raise
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full disk must not end the sweep either
            folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({"error": said, "traceback": traceback.format_exc()}, indent=1))
        if not in_process():
            raise
        failures[str(folder)] = said
        print(f"trial {folder} failed: {said}")
    else:
        record.unlink(missing_ok=True)


def finish() -> None:
    """Ends the process with code 1 if a trial failed."""
    if failures:
        print(f"{len(failures)} trial{'s' * (len(failures) > 1)} failed; the same command runs only what is missing:")
        for folder, said in failures.items():
            print(f"  {folder}: {said}")
        raise SystemExit(1)
