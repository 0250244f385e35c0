"""Shared entry point of all commands: Hydra composes `conf/<command>.yaml` and the overrides; mistakes become one-line errors."""

import contextlib
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.runtime import sweep
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.paths import CONF
from src.runtime.renamed_keys import reject_renamed
from src.runtime.run_folder import is_first_rank
from src.runtime.schema import to_typed
from src.runtime.silence_libraries import silence_libraries
from src.runtime.slurm_jobs import recorded_lost_jobs

RUN_NAME_KEYS = ("run", "runs", "baseline", "blind", "encoder", "model", "init")  # keys whose value is the name of a run
INFO_FLAGS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}
MULTIRUN_FLAGS = {"-m", "--multirun"}
SHORT_FORMS = {"push": "push.repository"}  # a section, and the key that a value for the section sets


def command(name: str, schema: type, *, validate: Callable | None = None) -> Callable:
    """Makes `main(config: schema)` the command `python -m src.<name>`; `validate` raises for a configuration that cannot run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # disables the fork warnings of tokenizers

    def decorate(main: Callable) -> Callable:
        @functools.wraps(main)
        def task(composed):
            silence_libraries()  # a trial on a cluster starts here, not in `run`
            with mute_other_ranks():
                config = to_typed(schema, composed)
                if not sweep.is_multirun():
                    return report_user_errors(main)(config)  # inside Hydra, which would print a traceback and exit with code 1
                with sweep.trial_scope():
                    return main(config)

        @report_user_errors
        def run() -> None:
            job_folders: list[Path] = []
            trials: list[list[str]] = []
            # The flags come first: argparse, which Hydra uses, rejects overrides on both sides of a flag.
            sys.argv[1:] = sorted((normalise_override(word, schema) for word in sys.argv[1:]), key=lambda word: word not in MULTIRUN_FLAGS)
            if not INFO_FLAGS & set(sys.argv):
                overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
                multirun = bool(MULTIRUN_FLAGS & set(sys.argv))
                trials = check_overrides(name, schema, overrides, multirun=multirun, validate=validate)
                if multirun:
                    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises errors outside of the trials, such as a full disk
                    job_folders = trial_folders(name, trials) if "submitit" in " ".join(overrides) else []
                    flags = [word for word in sys.argv[1:] if word.startswith("-")]
                    sys.argv[1:] = [*flags, *expand_experiment_sweep(name, overrides), sweep.common_override(trials)]
            try:
                with recorded_lost_jobs(job_folders) if job_folders else contextlib.nullcontext():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
            except HydraException as error:
                raise UserError(str(error).partition("\n")[0]) from None
            sweep.exit_if_failed(job_folders)
            if name == "train" and len(trials) > 1:
                first = compose(name, trials[0])
                sweep.print_follow_up(first.name, first.outputs)

        return run

    return decorate


@contextlib.contextmanager
def mute_other_ranks() -> Iterator[None]:
    """Discards stdout on all ranks but the first; errors still go to stderr."""
    if is_first_rank():
        yield
        return
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
        yield


def normalise_override(override: str, schema: type) -> str:
    """Quotes a run name that contains `=`, expands `SHORT_FORMS`, and reads `benchmark=x` as `benchmarks=x` if the schema has only
    the plural.

    The plural exists because Hydra takes a key that is also a folder of conf/ for a config group.
    """
    key, equals, value = override.partition("=")
    known = {field.name for field in fields(schema)}
    if key in SHORT_FORMS and key in known:
        return f"{SHORT_FORMS[key]}={value}"
    if key in RUN_NAME_KEYS and "=" in value:
        return quote_free_text([override], texts=RUN_NAME_KEYS)[0]
    return f"{key}s={value}" if equals and key not in known and f"{key}s" in known and (CONF / key).is_dir() else override


def check_overrides(
    name: str, schema: type, overrides: list[str], *, multirun: bool = False, validate: Callable | None = None
) -> list[list[str]]:
    """Composes and validates the configuration of every trial before Hydra starts; returns the overrides of each trial.

    Raises `UserError` with one line where Hydra would print many.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        has_trial_name = any(word.partition("=")[0] in RUN_NAME_KEYS and "=" in word.partition("=")[2] for word in overrides)
        hint = """; in a list, quote names that contain '=': 'runs=["a/seed=0","a/seed=1"]'""" if has_trial_name else ""
        raise UserError(_split_by_shell(overrides) or f"cannot parse the override: {str(error).splitlines()[0]}{hint}") from None
    reject_renamed(overrides)
    swept = [override.input_line for override in parsed if override.is_sweep_override()]
    if swept and not multirun:
        raise UserError(f"{swept[0]} gives several values, which makes a sweep; add -m, or write a list as [a,b]")
    trials = sweep.expand_trials(expand_experiment_sweep(name, overrides)) if multirun else [overrides]
    sweep.check_trials(trials)
    for trial in trials:
        config: Any = to_typed(schema, compose(name, trial))
        if validate:
            validate(config)
        if multirun:
            sweep.reject_multi_device_trials(config, trial, overrides=overrides)
    return trials


def _split_by_shell(overrides: list[str]) -> str | None:
    """The message for a value with brackets that the shell split at its blanks, because it was not quoted; None without such a value."""
    for start, word in enumerate(overrides):
        for end in range(start + 2, len(overrides) + 1):
            joined = " ".join(overrides[start:end])
            if _is_open(word) and not _is_open(joined):
                return f"{word}: the shell split this value at its blanks; quote it: {shlex.quote(joined)}"
    return None


def _is_open(text: str) -> bool:
    """Whether more brackets open than close."""
    return text.count("{") + text.count("[") > text.count("}") + text.count("]")


def trial_folders(name: str, trials: list[list[str]]) -> list[Path]:
    """The folders in which `sweep.trial_scope` records failures."""
    common = sweep.common_keys(trials)
    folders = [Path(compose(name, trial, return_hydra_config=True).hydra.sweep.dir) for trial in trials]
    return [folder / sweep.trial_slug(trial, common=common) for folder, trial in zip(folders, trials, strict=True)]


def expand_experiment_sweep(name: str, overrides: list[str]) -> list[str]:
    """Adds the sweep of the experiment (`hydra.sweeper.params`) to the overrides; a key of the command line replaces its values.

    Hydra itself would combine both, and run every trial more than once.
    """
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    first_trial = compose(name, sweep.expand_trials(overrides)[0], return_hydra_config=True)
    params = dict(first_trial.hydra.sweeper.params or {})
    return [
        *(f"{key}={values}" for key, values in params.items() if key not in keys),
        *overrides,
        *(["hydra.sweeper.params=null"] if params else []),
    ]


def compose(name: str, overrides: list[str], **options: bool):
    """The composed configuration of a command; does not start it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose(name, overrides, **options)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(name, overrides, error)) from None


def _explain(name: str, overrides: list[str], error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = CONF / key
        if group.is_dir():
            options = sorted(path.stem for path in group.glob("*.yaml"))
            if value not in options:
                return f"{key}={value} names no file in conf/{key}{suggest(value, options)}"
            if key == "experiment" and not override.startswith("+"):
                return f"experiment={value}: conf/{name}.yaml has no default experiment; write +experiment={value}"
        elif any(key in line for line in lines) and not key.startswith("hydra"):
            keys = _allowed_keys(name, overrides)
            if key not in keys:
                return f"unknown config key '{key}'{suggest(key, keys)}"
    return " ".join(lines[: lines.index("Config search path:")] if "Config search path:" in lines else lines[:2])


def _allowed_keys(name: str, overrides: list[str]) -> set[str]:
    """All keys of a command's configuration with the chosen file of each config group."""
    base: Any = OmegaConf.load(CONF / f"{name}.yaml")
    choices = {group: file for entry in base.get("defaults", []) if OmegaConf.is_dict(entry) for group, file in entry.items()}
    choices |= {key: value for key, _, value in (override.partition("=") for override in overrides) if key in choices}
    keys = _config_keys(base)
    for group, file in choices.items():
        path = CONF / group / f"{file}.yaml"
        keys |= {f"{group}.{key}" for key in _config_keys(OmegaConf.load(path))} if path.exists() else set()
    return keys


def _config_keys(config, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key in config:
        if key in ("defaults", "hydra"):
            continue
        keys.add(f"{prefix}{key}")
        if OmegaConf.is_dict(config) and not OmegaConf.is_missing(config, key) and OmegaConf.is_dict(config[key]):
            keys |= _config_keys(config[key], f"{prefix}{key}.")
    return keys
