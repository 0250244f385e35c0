"""The run folder `outputs/<name>/`. Its path depends on the name of the run only, never on the time.

    config.yaml  log.csv  checkpoints/  predictions/*.jsonl  <command>.json ...  result.json

Each command writes its own `<command>.json` last and rebuilds `result.json` from all that exist.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

from src.runtime.atomic_file import write_atomically
from src.runtime.environment import environment
from src.runtime.errors import UserError
from src.runtime.renamed_keys import translate
from src.runtime.version import __version__

COMMANDS = ("train", "evaluate", "transfer", "export")  # in the order of `result.json`
# Keys that may differ when a run is resumed: they change neither the order of the data nor the update.
MAY_CHANGE = (
    *("outputs", "data.root", "data.cache", "data.workers", "trainer.devices", "trainer.nodes", "trainer.accumulate"),
    *("trainer.accelerator", "trainer.log_every", "trainer.val_every", "trainer.keep_last", "trainer.activation_checkpointing"),
    *("trainer.on_nonfinite", "trainer.strategy", "trainer.extra", "language.fast", "logger", "callbacks"),
)
ADDED = {"prompt": {"template": "plain"}, "data": {"shuffle": "global"}}  # keys that older runs lack, with the values that they had
SECRET = re.compile(r"(^|_)(password|secret|api_key|token)$")
FAILURE_FILE = "failed.json"  # in the folder of a trial of a sweep


def open_run(folder: Path, config: dict) -> None:
    """Creates the folder and its config.yaml. Raises `UserError` if the folder holds a run with another configuration."""
    path = folder / "config.yaml"
    if path.exists():
        changes = diff_configs(flatten(ADDED) | flatten(read_config(folder)), flatten(ADDED) | flatten(redact_secrets(config)))
        changes = {key: change for key, change in changes.items() if not key.startswith(MAY_CHANGE)}
        if changes:
            summary = "; ".join(list(changes.values())[:3])
            only_optim = all(key.startswith("optim.") for key in changes)
            hint = f" with init=run:{config['name']} to start from its weights" if only_optim else ""
            raise UserError(f"{folder} holds a different configuration ({summary}); choose another name=...{hint}, or remove the folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_first_rank():
            write_atomically(path, yaml.safe_dump(redact_secrets(config), sort_keys=False))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another outputs=...") from None


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Raises `UserError` if another process trains in this folder: both would write the same checkpoints and log.

    The lock (`lockf`) is not inherited by data workers, so one that outlives this process does not hold it.
    """
    with (folder / ".train.lock").open("w") as file:
        try:
            if is_first_rank():
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # other errors: the file system does not support locks
                raise UserError(f"another process is training in {folder}; wait for it, stop it, or choose another name=...") from None
        yield


def read_config(folder: Path) -> dict:
    """The config.yaml of a run, with the present names of renamed keys. Raises `UserError` if it is not valid YAML."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} cannot be read as a configuration; restore it, or remove the folder to start again")
    return translate(config)


def flatten(config: dict, prefix: str = "") -> dict:
    """`{"optim": {"clip": 1}}` as `{"optim.clip": 1}`."""
    flat: dict = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def diff_configs(old: dict, new: dict) -> dict[str, str]:
    """Keys with different values, each with a text `key was 1, now 2`."""
    old, new = flatten(old), flatten(new)
    changed = (key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
    return {key: f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed}


def redact_secrets(config: dict) -> dict:
    """The configuration with `***` in place of passwords, keys and tokens."""
    secrets = {key for key, value in config.items() if value and not isinstance(value, dict) and SECRET.search(str(key))}
    return {key: "***" if key in secrets else redact_secrets(value) if isinstance(value, dict) else value for key, value in config.items()}


def read_run(outputs: str | Path, name: str) -> tuple[Path, dict]:
    """The folder of a run and its configuration. Raises `UserError` with the existing names if there is none."""
    folder = Path(outputs) / name
    if not (folder / "config.yaml").exists():
        names = sorted(str(path.parent.relative_to(outputs)) for path in Path(outputs).glob("**/config.yaml"))
        raise UserError(f"no run '{name}' in {outputs}/; found {', '.join(names) or 'no run at all'}")
    return folder, read_config(folder)


def trial_failure(folder: Path) -> str | None:
    """The error of a failed trial of a sweep, or None."""
    path = folder / FAILURE_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())["error"]
    except ValueError:
        return f"{path} cannot be read"


class CostMeter:
    """Measures wall time and the peak resident memory of this process and its children together, sampled twice a second.

    `save` is called with every sample, so that the cost of a killed process is not lost.
    """

    def __init__(self, save: Callable[["CostMeter"], None]) -> None:
        self.peak_mb, self._save = 0.0, save
        self._start = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the error that stopped the command is raised instead
            self._save(self)

    def _watch(self) -> None:
        this_process = psutil.Process()
        while True:
            total = 0
            for process in [this_process, *this_process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_mb = max(self.peak_mb, total / 2**20)
            with contextlib.suppress(OSError):  # a full disk stops the command where it writes its results
                self._save(self)
            if self._stop.wait(0.5):
                return


@contextlib.contextmanager
def record(folder: Path, name: str) -> Iterator[dict]:
    """Measures the command `name`. The yielded dict (`metrics`, `data`, ...) is written to `<name>.json`, then to `result.json`.

    The cost of an interrupted command stays in `<name>.partial.json`, so that `seconds` is the sum over restarts.
    """
    if not is_first_rank():
        yield {"metrics": {}}
        return
    partial = folder / f"{name}.partial.json"
    previous = json.loads(partial.read_text()) if partial.exists() else {"seconds": 0.0, "peak_rss_mb": 0.0}
    result: dict = {"metrics": {}}

    def cost(meter: CostMeter) -> dict:
        return {"seconds": previous["seconds"] + meter.seconds, "peak_rss_mb": max(previous["peak_rss_mb"], meter.peak_mb)}

    meter = CostMeter(lambda meter: write_atomically(partial, json.dumps(cost(meter))))
    try:
        yield result
    finally:
        meter.stop()
    command = " ".join(["python -m", f"src.{name}", *sys.argv[1:]])
    origin = {"verb": name, "command": command, "version": __version__, "git": git_commit(), "environment": environment()}
    write_atomically(folder / f"{name}.json", json.dumps({**origin, **cost(meter), **result}, indent=1))
    partial.unlink(missing_ok=True)
    rebuild_result(folder)


def rebuild_result(folder: Path) -> dict:
    """Writes `result.json` from the `<command>.json` files of the run; returns its content."""
    parts = [json.loads((folder / f"{name}.json").read_text()) for name in COMMANDS if (folder / f"{name}.json").exists()]
    result: dict = {
        "name": run_name(folder),
        "commands": [part["command"] for part in parts],
        "version": parts[-1].get("version", "unknown") if parts else __version__,  # results of older runs have none
        "git": parts[-1]["git"] if parts else git_commit(),
        "data": next((part["data"] for part in parts if "data" in part), None),
        "seconds": sum(part["seconds"] for part in parts),
        "peak_rss_mb": max((part["peak_rss_mb"] for part in parts), default=0.0),
        "metrics": {key: value for part in parts for key, value in part["metrics"].items()},
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=1))
    return result


def run_name(folder: Path) -> str:
    """The name by which commands take a run. That of a trial of a sweep has as many parts as the name in its config.yaml."""
    config = folder / "config.yaml"
    stored = yaml.safe_load(config.read_text()).get("name", folder.name) if config.exists() else folder.name
    return "/".join(folder.absolute().parts[-len(Path(stored).parts) :])


def is_first_rank() -> bool:
    """Whether this process writes the files of the run: the only process, or rank 0 of torchrun, Slurm or Lightning.

    RANK counts over all nodes, so the other variables are ignored if it is set: torchrun may run inside any Slurm task.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def git_commit() -> str:
    """The commit of the code, with `+` if the working tree differs from it; 'unknown' outside a checkout."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha + ("+" if status else "")
