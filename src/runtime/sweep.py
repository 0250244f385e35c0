"""Multirun: every trial has its own folder; a failed trial is recorded, and the sweep continues.

The name of a trial is `<name>/<what varies in the sweep>`, so the same command again finds finished trials and runs only the missing
ones. Another command that differs in what is common to its trials names the same folders; a folder with another configuration is refused.
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

from src.runtime.atomic_file import write_atomically
from src.runtime.errors import UserError, full_disk_message
from src.runtime.run_folder import FAILURE_FILE, trial_failure
from src.runtime.run_names import follow_up

MAX_SLUG_LENGTH = 120  # characters
KEYS_OUTSIDE_SLUG = ("name", "outputs", "experiment")  # they determine the parent folder

failures: dict[str, str] = {}  # folder of a trial -> its error, in the sweep of this process


def expand_trials(overrides: list[str]) -> list[list[str]]:
    """The overrides of every trial that Hydra's basic sweeper runs.

    An interval, which another sweeper samples, counts as two trials: its start and its end.
    """
    words = [word for word in overrides if not word.startswith("hydra.sweeper.")]
    trials: list[list[str]] = []
    for bound in ("start", "end"):
        parsed = OverridesParser.create().parse_overrides(words)
        intervals = [override for override in parsed if isinstance(override.value(), IntervalSweep)]
        for override in intervals:
            override.value_type, override._value = ValueType.ELEMENT, getattr(override.value(), bound)
        trials += [list(trial) for batch in BasicSweeper.split_arguments(parsed, None) for trial in batch]
        if not intervals:
            break
    return trials


def naming_overrides(overrides: list[str]) -> list[str]:
    """The overrides that appear in the name of a trial."""
    return [word for word in overrides if _key(word) not in KEYS_OUTSIDE_SLUG and not _key(word).startswith("hydra")]


def common_keys(trials: list[list[str]]) -> list[str]:
    """The keys whose overrides are the same in all trials of a sweep; none for a single trial, whose overrides all name it."""
    if len(trials) == 1:
        return []
    shared = set(trials[0]).intersection(*trials[1:])
    varying = {_key(word) for trial in trials for word in trial if word not in shared}
    return sorted({_key(word) for word in shared} - varying)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def trial_slug(overrides: list[str], *, common: Iterable[str] = ()) -> str:
    """The folder name of a trial: its sorted overrides without those with a key in `common`. A hash ends a name that would be too long."""
    named = [override for override in naming_overrides(overrides) if _key(override) not in set(common)]
    slug = ",".join(sorted(named)).replace("/", "_").replace(" ", "")
    if len(slug) <= MAX_SLUG_LENGTH:
        return slug
    digest = hashlib.sha256(slug.encode()).hexdigest()[:8]
    return f"{slug[: MAX_SLUG_LENGTH - 9]}-{digest}"


def check_trials(trials: list[list[str]]) -> None:
    """Raises `UserError` if two trials would share a folder."""
    by_slug: dict[str, list[str]] = {}
    common = common_keys(trials)
    for trial in trials:
        slug = trial_slug(trial, common=common)
        if slug in by_slug:
            other = by_slug[slug]
            differences = [word for word in [*other, *trial] if (word in other) != (word in trial)]
            advice = "leave one of them out"
            if differences:
                advice = f"{' and '.join(differences)} are not part of the folder name, so start each without -m"
            raise UserError(f"two trials of this sweep would share the folder '{slug or '.'}'; {advice}")
        by_slug[slug] = trial


def reject_multi_device_trials(config: Any, trial: list[str], *, overrides: list[str]) -> None:
    """Raises `UserError` if a trial needs several devices but no launcher that starts their processes.

    `trial` are the overrides of the trial, `overrides` those of the command line.
    """
    trainer = getattr(config, "trainer", None)
    if not trainer or trainer.devices * trainer.nodes == 1 or "hydra/launcher=submitit_slurm" in trial:
        return
    nodes, devices = trainer.nodes, trainer.devices
    words = [word for word in overrides if not word.startswith("hydra/launcher=")]
    words += ["hydra/launcher=submitit_slurm", f"hydra.launcher.nodes={nodes}", f"hydra.launcher.tasks_per_node={devices}"]
    words += [f"hydra.launcher.gpus_per_node={devices}"] if trainer.accelerator != "cpu" else []
    raise UserError(
        f"-m runs trials on one device, but trainer.devices x trainer.nodes = {devices} x {nodes}; under Slurm, with a job per trial, "
        f"write: python -m src.train -m {shlex.join(words)}; elsewhere set both to 1, or start one trial after another without -m"
    )


def trial_name(name: str) -> str:
    """`name`, or in a sweep the name of the current trial."""
    if not is_multirun():
        return name
    return "/".join(filter(None, (name, current_slug())))


def trial_folder() -> Path:
    """The folder of the current trial, which is the run folder if the command is train."""
    return Path(HydraConfig.get().sweep.dir) / current_slug()


def current_slug() -> str:
    """The folder name of the current trial. `common_override` carries the common keys to trials in other processes."""
    hydra = HydraConfig.get()
    return trial_slug(list(hydra.overrides.task), common=hydra.job.config.override_dirname.exclude_keys)


def common_override(trials: list[list[str]]) -> str:
    """The override by which Hydra excludes the common keys from the names of trials."""
    keys = [key for key in common_keys(trials) if not key.startswith("hydra")]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(keys)}]"


def is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_in_process() -> bool:
    """Whether trials run one after another in this process, not as separate jobs."""
    return "submitit" not in HydraConfig.get().launcher._target_


@contextlib.contextmanager
def trial_scope() -> Iterator[None]:
    """In a sweep, an error is written to `failed.json` in the folder of the trial and does not end the sweep; success removes the file.

    A trial that is a separate job (submitit) also exits normally, because its launcher would report only the first error.
    """
    free_previous_trial()
    folder = trial_folder()
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else full_disk_message(error) or f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full disk must not end the sweep either
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FAILURE_FILE, json.dumps({"error": message, "traceback": traceback.format_exc()}, indent=1))
        if not is_in_process() and not (folder / FAILURE_FILE).exists():
            raise
        failures[str(folder)] = message
        print(f"trial {folder} failed: {message}", flush=True)
    else:
        (folder / FAILURE_FILE).unlink(missing_ok=True)


def free_previous_trial() -> None:
    """Frees the model of the previous trial. It is part of a reference cycle with its trainer, which Python would collect much later."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # later collections skip the imported modules
        atexit.register(gc.unfreeze)  # some libraries count their objects at exit


def print_follow_up(name: str, outputs: str) -> None:
    """What to run after all trials of a training sweep have succeeded."""
    print(f"next: {follow_up('evaluate', f'{name}/*', outputs)}; {follow_up('report', f'{name}/*', outputs)}")


def exit_if_failed(job_folders: Iterable[Path] = ()) -> None:
    """Exits with code 1 if a trial failed; `job_folders` are the folders of trials that ran as separate jobs."""
    failures.update({str(folder): error for folder in job_folders if (error := trial_failure(folder))})
    if failures:
        print(f"{len(failures)} trial{'s' * (len(failures) > 1)} failed; the same command runs only what is missing:")
        for folder, error in failures.items():
            print(f"  {folder}: {error}")
        raise SystemExit(1)
