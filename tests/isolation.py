"""Separates the tests from the user's account, from the machine and from each other.

The result of a test must not depend on a login, a Slurm cluster, a variable of the user or on earlier tests.
This module imports only the standard library: torch, wandb and huggingface_hub read the environment when they are imported.
"""

import contextlib
import csv
import locale
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Programs that the commands under test start. No other program of the machine is on the PATH, a batch system in particular.
PROGRAMS = ("awk", "bash", "chromium", "chromium-browser", "git", "google-chrome", "grep", "make", "sh", "touch", "uname")
# Variables that configure the test run itself. All others are removed.
INHERITED = (
    "ATEN_CPU_CAPABILITY",
    "CHROMIUM",
    "LD_LIBRARY_PATH",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "PYTHONDONTWRITEBYTECODE",
    "TERM",
    "TMPDIR",
)
FOREIGN_PATHS = "PYTEST_FOREIGN_PYTHONPATH"  # the user's PYTHONPATH, whose entries pytest-xdist passes to its workers


def isolate() -> Path:
    """Replaces the environment of this process; returns the folder with its new home folder and programs."""
    folder = Path(tempfile.mkdtemp(prefix="openmedq-tests-"))
    home, programs = folder / "home", folder / "bin"
    home.mkdir()
    programs.mkdir()
    for name in PROGRAMS:
        path = shutil.which(name)
        if path:
            (programs / name).symlink_to(path)
    foreign = os.environ.get(FOREIGN_PATHS, "") or os.environ.get("PYTHONPATH", "")
    sys.path[:] = [path for path in sys.path if not path or path not in foreign.split(os.pathsep)]
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("PYTEST_")}
    os.environ.clear()
    os.environ.update(
        inherited
        | {
            FOREIGN_PATHS: foreign,
            "PATH": str(programs),
            "HOME": str(home),
            "USER": "tester",
            "LOGNAME": "tester",
            "LC_ALL": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",  # more threads slow down tiny models
            # Git also reads a checkout that belongs to another user, as in a container.
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
    )
    with contextlib.suppress(locale.Error):  # the system may not have this locale
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    return folder


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restores environment, working directory, logging, signal handlers, the limit of csv and the session of wandb after the body."""
    environment, folder = dict(os.environ), Path.cwd()
    handlers, level, limit = list(logging.root.handlers), logging.root.level, csv.field_size_limit()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    try:
        yield
    finally:
        _end_wandb_session()
        os.chdir(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.environ.pop("WANDB_SERVICE", None)  # the address of the service that has just ended
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        csv.field_size_limit(limit)
        for number, handler in signals.items():
            signal.signal(number, handler)


def _end_wandb_session() -> None:
    """wandb keeps the settings and the API key of its first use for the whole process."""
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    if setup is not None and setup._singleton is not None:
        setup.teardown()
