"""Multirun: every trial has its own folder, a failed one is recorded, and the sweep goes on.

A trial's name is `<name>/<its overrides>`, so the same command again finds what is done and runs only what is missing.
"""

import atexit
import contextlib
import gc
import hashlib
import json
import shlex
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, ValueType
from hydra.types import RunMode

from src.runtime.errors import UserError
from src.runtime.run_folder import FAILURE_FILE, trial_failure, write_atomically

LONGEST = 120  # characters of a trial's folder name
UNNAMED = ("name", "outputs", "experiment")  # overrides that the parent folder stands for

failures: dict[str, str] = {}  # trial -> its error, of this process's sweep


def expand_trials(overrides: list[str]) -> list[list[str]]:
    """The overrides of every trial that Hydra's basic sweeper runs. An interval, which another sweeper samples, counts as its start."""
    words = [word for word in overrides if not word.startswith("hydra.sweeper.")]
    parsed = OverridesParser.create().parse_overrides(words)
    for override in parsed:
        if isinstance(interval := override.value(), IntervalSweep):
            override.value_type, override._value = ValueType.ELEMENT, interval.start
    return [list(point) for batch in BasicSweeper.split_arguments(parsed, None) for point in batch]


def naming_overrides(overrides: list[str]) -> list[str]:
    """The overrides that set trials apart or hold for all of them, without those that the parent folder stands for."""
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    return [word for word, key in zip(overrides, keys, strict=True) if key not in UNNAMED and not key.startswith("hydra")]


def trial_slug(overrides: list[str]) -> str:
    """The folder of a trial: its overrides, sorted; with a hash in place of the rest where that is too long for a folder name."""
    whole = ",".join(sorted(naming_overrides(overrides))).replace("/", "_").replace(" ", "")
    if len(whole) <= LONGEST:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: LONGEST - 9]}-{digest}"


def check_trials(trials: list[list[str]]) -> None:
    """Refuses two trials with one folder; raises `UserError`."""
    seen: dict[str, list[str]] = {}
    for trial in trials:
        name = trial_slug(trial)
        if name in seen:
            apart = [word for word in [*seen[name], *trial] if (word in seen[name]) != (word in trial)]
            how = f": {' and '.join(apart)} give a trial no name; start each without -m" if apart else "; leave one of them out"
            raise UserError(f"two trials of this sweep would share the folder '{name or '.'}'{how}")
        seen[name] = trial


def reject_multi_device_trials(config: Any, overrides: list[str], *, words: list[str]) -> None:
    """Several devices per trial need a launcher that starts their processes; raises `UserError`. `words` are those of the command line."""
    trainer = getattr(config, "trainer", None)
    if not trainer or trainer.devices * trainer.nodes == 1 or "hydra/launcher=submitit_slurm" in overrides:
        return
    nodes, devices = trainer.nodes, trainer.devices
    kept = [word for word in words if not word.startswith("hydra/launcher=")]
    kept += ["hydra/launcher=submitit_slurm", f"hydra.launcher.nodes={nodes}", f"hydra.launcher.tasks_per_node={devices}"]
    kept += [f"hydra.launcher.gpus_per_node={devices}"] if trainer.accelerator != "cpu" else []
    raise UserError(
        f"-m runs trials on one device, but trainer.devices x trainer.nodes = {devices} x {nodes}; under Slurm, with a job per trial, "
        f"write: python -m src.train -m {shlex.join(kept)}; elsewhere set both to 1, or start one trial after another without -m"
    )


def trial_name(name: str) -> str:
    """`name`, or in a sweep the name of the trial that runs now."""
    if not is_multirun():
        return name
    return "/".join(filter(None, (name, trial_slug(list(HydraConfig.get().overrides.task)))))


def trial_folder() -> Path:
    """Of the trial that runs now; of a training it is the run's folder."""
    return Path(HydraConfig.get().sweep.dir) / trial_slug(list(HydraConfig.get().overrides.task))


def is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_in_process() -> bool:
    """Whether trials run one after another in this process, not as jobs of their own."""
    return "submitit" not in HydraConfig.get().launcher._target_


@contextlib.contextmanager
def trial_scope() -> Iterator[None]:
    """In a sweep, an error is written to `failed.json` in the trial's folder instead of ending the sweep; a success removes it.

    A trial that is a job of its own (submitit) ends in peace too, since its launcher would show the first error alone.
    """
    free_previous_trial()
    folder = trial_folder()
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full disk must not end the sweep either
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FAILURE_FILE, json.dumps({"error": said, "traceback": traceback.format_exc()}, indent=1))
        if not is_in_process() and not (folder / FAILURE_FILE).exists():
            raise
        failures[str(folder)] = said
        print(f"trial {folder} failed: {said}", flush=True)
    else:
        (folder / FAILURE_FILE).unlink(missing_ok=True)


def free_previous_trial() -> None:
    """Frees the model of the trial before: it stands in a cycle with its trainer, which Python by itself collects many trials later."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # what is imported stays, and need not be looked through again
        atexit.register(gc.unfreeze)  # libraries count what is left at the end


def exit_if_failed(jobs: Iterable[Path] = ()) -> None:
    """Ends the process with code 1 if a trial failed; `jobs` are the folders of trials that ran elsewhere."""
    failures.update({str(folder): said for folder in jobs if (said := trial_failure(folder))})
    if failures:
        print(f"{len(failures)} trial{'s' * (len(failures) > 1)} failed; the same command runs only what is missing:")
        for folder, said in failures.items():
            print(f"  {folder}: {said}")
        raise SystemExit(1)
