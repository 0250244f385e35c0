"""The run folder: `outputs/<name>/`, a function of the run's name, never of the clock.

    config.yaml  log.csv  checkpoints/  predictions/*.jsonl  <verb>.json ...  result.json

Each verb writes its own `<verb>.json` last and rebuilds `result.json` from all that exist.
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

from src.runtime.environment import environment
from src.runtime.errors import UserError
from src.runtime.renamed_keys import translate

# Keys that may differ when a run is continued: they change neither the order of the data nor the update.
MAY_CHANGE: tuple[str, ...] = ("outputs", "data.root", "data.cache", "data.workers", "trainer.devices", "trainer.nodes")
MAY_CHANGE += ("trainer.accumulate", "trainer.accelerator", "trainer.log_every", "trainer.val_every", "trainer.keep_last")
MAY_CHANGE += ("trainer.activation_checkpointing", "trainer.on_nonfinite", "trainer.strategy", "trainer.extra", "logger", "callbacks")
MAY_CHANGE += ("language.fast",)
SECRET = re.compile(r"(^|_)(password|secret|api_key|token)$")


def open_run(folder: Path, config: dict) -> None:
    """Creates the folder and its config.yaml, or checks that the folder belongs to this configuration."""
    path = folder / "config.yaml"
    if path.exists():
        changed = {
            key: said for key, said in diff_configs(read_config(folder), redact_secrets(config)).items() if not key.startswith(MAY_CHANGE)
        }
        if changed:
            said = "; ".join(list(changed.values())[:3])
            onward = f" with init=run:{config['name']} to train on from it" if all(key.startswith("optim.") for key in changed) else ""
            raise UserError(f"{folder} holds a different configuration ({said}); choose another name=...{onward}, or remove the folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_first_rank():
            write_atomically(path, yaml.safe_dump(redact_secrets(config), sort_keys=False))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another outputs=...") from None


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Raises `UserError` where another process trains in this folder: both would write every checkpoint and line of the log.

    The lock is this process's alone, so that data workers which outlive it for seconds do not keep it.
    """
    with (folder / ".train.lock").open("w") as file:
        try:
            if is_first_rank():
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # else the file system knows no locks
                raise UserError(f"another process is training in {folder}; wait for it, stop it, or choose another name=...") from None
        yield


def read_config(folder: Path) -> dict:
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read as a configuration; restore it, or remove the folder to begin anew")
    return translate(found)


def flatten(config: dict, prefix: str = "") -> dict:
    out: dict = {}
    for key, value in config.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def diff_configs(then: dict, now: dict) -> dict[str, str]:
    """Keys that differ, each with what it was and is, for people."""
    then, now = flatten(then), flatten(now)
    changed = (key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key))
    return {key: f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in changed}


def redact_secrets(config: dict) -> dict:
    """The configuration with the values of keys that hold secrets starred out."""
    hidden = {key for key, value in config.items() if value and not isinstance(value, dict) and SECRET.search(str(key))}
    return {key: "***" if key in hidden else redact_secrets(value) if isinstance(value, dict) else value for key, value in config.items()}


def read_run(outputs: str | Path, name: str) -> tuple[Path, dict]:
    """The folder of a run and its configuration."""
    folder = Path(outputs) / name
    if not (folder / "config.yaml").exists():
        known = sorted(str(path.parent.relative_to(outputs)) for path in Path(outputs).glob("**/config.yaml"))
        raise UserError(f"no run '{name}' in {outputs}/; found {', '.join(known) or 'no run at all'}")
    return folder, read_config(folder)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file to write that takes the name `path` when it is complete, and is removed on failure: a full disk gets its room back."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a machine that goes down may leave the name on an empty file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text)


FAILURE_FILE = "failed.json"  # in the folder of a trial of a sweep


def trial_failure(folder: Path) -> str | None:
    """Why a trial of a sweep failed, if it did."""
    path = folder / FAILURE_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())["error"]
    except ValueError:
        return f"{path} cannot be read"


class Meter:
    """Wall time and the peak of the summed resident memory of this process and its children, sampled twice a second.

    `save` is called with every sample, so that what a killed process has cost is not lost.
    """

    def __init__(self, save: Callable[["Meter"], None]) -> None:
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
        self._save(self)

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_mb = max(self.peak_mb, total / 2**20)
            self._save(self)
            if self._stop.wait(0.5):
                return


@contextlib.contextmanager
def record(folder: Path, name: str) -> Iterator[dict]:
    """Measures a verb: what it puts into the yielded dict (`metrics`, `data`, ...) becomes `<name>.json`, then `result.json`.

    The cost of an interrupted verb stays in `<name>.partial.json`, so that `seconds` sums restarts.
    """
    if not is_first_rank():
        yield {"metrics": {}}
        return
    partial = folder / f"{name}.partial.json"
    before = json.loads(partial.read_text()) if partial.exists() else {"seconds": 0.0, "peak_rss_mb": 0.0}
    said: dict = {"metrics": {}}

    def cost(meter: Meter) -> dict:
        return {"seconds": before["seconds"] + meter.seconds, "peak_rss_mb": max(before["peak_rss_mb"], meter.peak_mb)}

    meter = Meter(lambda meter: write_atomically(partial, json.dumps(cost(meter))))
    try:
        yield said
    finally:
        meter.stop()
    command = " ".join(["python -m", f"src.{name}", *sys.argv[1:]])
    about = {"verb": name, "command": command, "git": git_commit(), "environment": environment()}
    write_atomically(folder / f"{name}.json", json.dumps({**about, **cost(meter), **said}, indent=1))
    partial.unlink(missing_ok=True)
    rebuild_result(folder)


def rebuild_result(folder: Path) -> dict:
    """`result.json` from every `<verb>.json` of the run."""
    parts = [json.loads((folder / f"{name}.json").read_text()) for name in COMMANDS if (folder / f"{name}.json").exists()]
    result: dict = {
        "name": _run_name(folder),
        "commands": [part["command"] for part in parts],
        "git": parts[-1]["git"] if parts else git_commit(),
        "data": next((part["data"] for part in parts if "data" in part), None),
        "seconds": sum(part["seconds"] for part in parts),
        "peak_rss_mb": max((part["peak_rss_mb"] for part in parts), default=0.0),
        "metrics": {key: value for part in parts for key, value in part["metrics"].items()},
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=1))
    return result


def _run_name(folder: Path) -> str:
    """The run's own name: of a trial of a sweep `<name>/<overrides>`."""
    config = folder / "config.yaml"
    return yaml.safe_load(config.read_text()).get("name", folder.name) if config.exists() else folder.name


COMMANDS = ("train", "evaluate", "transfer", "export")


def is_first_rank() -> bool:
    """Whether this process writes the run's files: the only one, or the first of those that torchrun, Slurm or Lightning started.

    RANK counts over all nodes, so nothing else matters where it is set: torchrun may run inside of any task of Slurm.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def git_commit() -> str:
    """Commit of the code, with `+` when the tree differs from it; 'unknown' outside a checkout."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha + ("+" if dirty else "")
