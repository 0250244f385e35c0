"""Separates the tests from the user's account, from the machine and from each other.

A login, a Slurm cluster or a variable of the user must not decide whether a test passes, nor must the tests that ran before it.
`isolate` needs only the standard library: torch, wandb and huggingface_hub read the environment when they are imported.
"""

import contextlib
import locale
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Programs that the commands under test start. Everything else on the machine, a batch system above all, is out of sight.
PROGRAMS = ("awk", "bash", "chromium", "chromium-browser", "git", "google-chrome", "grep", "make", "sh", "touch", "uname")
# Variables of the test run itself. The rest is removed, so that a variable that nobody thought of cannot matter.
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
FOREIGN_PATHS = "PYTEST_FOREIGN_PYTHONPATH"  # the user's PYTHONPATH: pytest-xdist hands its entries on to the workers


def isolate() -> Path:
    """Replaces the environment of this process; returns the folder that holds its home folder and its programs."""
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
            "OMP_NUM_THREADS": "1",  # the models are tiny: threads would only wait for each other
            # A checkout that belongs to another user, as in a container, is still a checkout.
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
    )
    with contextlib.suppress(locale.Error):  # a system without this locale keeps its own encoding of files
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    return folder


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restores afterwards what the body changed in the process: environment, working directory, logging, signals, wandb's session."""
    environment, folder = dict(os.environ), Path.cwd()
    handlers, level = list(logging.root.handlers), logging.root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    try:
        yield
    finally:
        _end_wandb()
        os.chdir(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)


def _end_wandb() -> None:
    """wandb keeps the settings and the key of its first use for the whole process."""
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    if setup is not None and setup._singleton is not None:
        setup.teardown()
