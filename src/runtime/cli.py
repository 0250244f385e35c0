"""The door of every command: Hydra composes `conf/<verb>.yaml` and the overrides; a mistake becomes one sentence."""

import contextlib
import functools
import os
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

from src.runtime import paths, sweep
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.renamed_keys import reject_renamed
from src.runtime.run_folder import is_first_rank
from src.runtime.schema import to_typed
from src.runtime.silence_libraries import silence_libraries

CONF = paths.CONF
RUN_NAME_KEYS = ("run", "runs", "baseline", "blind", "encoder", "model", "init")  # keys that take the name of a run


def command(name: str, schema: type, *, validate: Callable | None = None) -> Callable:
    """Makes `main(config: schema)` the command `python -m src.<name>`; `validate` raises for a configuration that cannot run."""
    # Models are tiny or live on a GPU; fork-safety warnings of tokenizers would only hide real messages.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def decorate(main: Callable) -> Callable:
        @functools.wraps(main)
        def task(composed):
            silence_libraries()  # also in the job of a trial on a cluster, which `command` does not start
            with first_rank_prints():
                config = to_typed(schema, composed)
                if not sweep.is_multirun():
                    return report_user_errors(main)(config)  # at once: Hydra would print a traceback and exit with 1
                with sweep.trial_scope():
                    return main(config)

        @report_user_errors
        def run() -> None:
            jobs: list[Path] = []
            # -m first: argparse, which Hydra uses, refuses overrides on both sides of it.
            sys.argv[1:] = sorted(
                (normalise_override(word, schema) for word in sys.argv[1:]), key=lambda word: word not in ("-m", "--multirun")
            )
            if not {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"} & set(sys.argv):
                words = [word for word in sys.argv[1:] if not word.startswith("-")]
                many = bool({"-m", "--multirun"} & set(sys.argv))
                trials = check_overrides(name, schema, words, many=many, validate=validate)
                if many:
                    jobs = trial_folders(name, trials) if "submitit" in " ".join(words) else []
                    sys.argv[1:] = [*(word for word in sys.argv[1:] if word.startswith("-")), *expand_experiment_sweep(name, words)]
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
            sweep.exit_if_failed(jobs)

        return run

    return decorate


@contextlib.contextmanager
def first_rank_prints() -> Iterator[None]:
    """Drops what the other ranks print to stdout; their errors go to stderr."""
    if is_first_rank():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def normalise_override(word: str, schema: type) -> str:
    """`benchmark=x` as `benchmarks=x` where the schema has only that: Hydra takes a key that is also a folder of conf for a choice
    among its files. The name of a trial, which holds `=`, is quoted."""
    key, equals, value = word.partition("=")
    known = {one.name for one in fields(schema)}
    if key in RUN_NAME_KEYS and "=" in value:
        return quote_free_text([word], texts=RUN_NAME_KEYS)[0]
    return f"{key}s={value}" if equals and key not in known and f"{key}s" in known and (CONF / key).is_dir() else word


def check_overrides(
    name: str, schema: type, overrides: list[str], *, many: bool = False, validate: Callable | None = None
) -> list[list[str]]:
    """Composes once in advance, so that what Hydra would explain on twenty lines is one sentence; of a sweep, every trial. Gives the
    overrides of each."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        of_trials = any(word.partition("=")[0] in RUN_NAME_KEYS and "=" in word.partition("=")[2] for word in overrides)
        hint = """; in a list, names that hold '=' are quoted: 'runs=["a/seed=0","a/seed=1"]'""" if of_trials else ""
        raise UserError(f"cannot read the override: {str(error).splitlines()[0]}{hint}") from None
    reject_renamed(overrides)
    swept = [override.input_line for override in parsed if override.is_sweep_override()]
    if swept and not many:
        raise UserError(f"{swept[0]} gives several values, which makes a sweep; add -m, or write a list as [a,b]")
    trials = sweep.expand_trials(expand_experiment_sweep(name, overrides)) if many else [overrides]
    sweep.check_trials(trials)
    for trial in trials:
        config: Any = to_typed(schema, compose(name, trial))
        if validate:
            validate(config)
        if many:
            sweep.reject_multi_device_trials(config, trial, words=overrides)
    return trials


def trial_folders(name: str, trials: list[list[str]]) -> list[Path]:
    """Where `sweep.trial` records the failure of each trial."""
    return [Path(compose(name, trial, return_hydra_config=True).hydra.sweep.dir) / sweep.trial_slug(trial) for trial in trials]


def expand_experiment_sweep(name: str, overrides: list[str]) -> list[str]:
    """A sweep with what its experiment sweeps over written out; a key that the command line gives replaces the experiment's values."""
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    own = _experiment_sweep(name, sweep.expand_trials(overrides)[0])
    # Hydra would multiply the two, each trial twice or more.
    return [
        *(f"{key}={values}" for key, values in own.items() if key not in given),
        *overrides,
        *(["hydra.sweeper.params=null"] if own else []),
    ]


def _experiment_sweep(name: str, overrides: list[str]) -> dict[str, str]:
    """What an experiment itself sweeps over: its `hydra.sweeper.params`."""
    return dict(compose(name, overrides, return_hydra_config=True).hydra.sweeper.params or {})


def compose(name: str, overrides: list[str], **more: bool):
    """The composed configuration of a verb, without starting it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose(name, overrides, **more)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(name, overrides, error)) from None


def _explain(name: str, overrides: list[str], error: Exception) -> str:
    said = str(error).splitlines()
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        value = override.partition("=")[2]
        group = CONF / key
        if group.is_dir():
            options = sorted(path.stem for path in group.glob("*.yaml"))
            if value not in options:
                return f"{key}={value} names no file in conf/{key}{suggest(value, options)}"
            if key == "experiment" and not override.startswith("+"):
                return f"write +experiment={value}: an experiment is added to conf/{name}.yaml"
        elif any(key in line for line in said) and not key.startswith("hydra"):
            base = OmegaConf.load(CONF / f"{name}.yaml")
            keys = _config_keys(base)
            for chosen in _chosen_groups(base, overrides):
                group_file = CONF / chosen[0] / f"{chosen[1]}.yaml"
                keys |= {f"{chosen[0]}.{inner}" for inner in _config_keys(OmegaConf.load(group_file))} if group_file.exists() else set()
            if key not in keys:
                return f"unknown config key '{key}'{suggest(key, keys)}"
    told = [line.strip() for line in said if line.strip()]
    return " ".join(told[: told.index("Config search path:")] if "Config search path:" in told else told[:2])


def _chosen_groups(base, overrides: list[str]) -> list[tuple[str, str]]:
    chosen = {key: value for entry in base.get("defaults", []) if isinstance(entry, dict | type(base)) for key, value in entry.items()}
    chosen |= {key: value for key, _, value in (override.partition("=") for override in overrides) if key in chosen}
    return list(chosen.items())


def _config_keys(config, prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key in config:
        if key in ("defaults", "hydra"):
            continue
        out.add(f"{prefix}{key}")
        if OmegaConf.is_dict(config) and not OmegaConf.is_missing(config, key) and OmegaConf.is_dict(config[key]):
            out |= _config_keys(config[key], f"{prefix}{key}.")
    return out
