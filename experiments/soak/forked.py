"""Runs `python -m` commands in forks of this process, which has imported their libraries: an import of torch takes seconds."""

import atexit
import contextlib
import os
import runpy
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def import_libraries() -> None:
    """Imports what the commands need. They compute with one thread each, because a fork does not inherit the threads of a pool."""
    import src.commands.evaluate
    import src.commands.export
    import src.commands.report
    import src.commands.train
    import src.commands.transfer
    import src.inference.vqa_model  # noqa: F401

    torch.set_num_threads(1)


class Command:
    """A running command: a process group of its own, its output in a file."""

    def __init__(self, words: list[str], folder: Path, log: Path):
        self.words, self.log, self.started = words, log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(lambda: _run_module(words), folder, log)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal; None if the command still runs after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.02)

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the command."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def run(words: list[str], folder: Path, log: Path, *, seconds: float = 1800) -> tuple[int, str]:
    """(exit code, output) of a command in `folder`. Raises `TimeoutError` if it takes longer than `seconds`."""
    command = Command(words, folder, log)
    code = command.wait(seconds)
    if code is None:
        command.kill(signal.SIGKILL)
        command.wait(60)
        raise TimeoutError(f"{' '.join(words)} has not ended after {seconds} s")
    return code, command.output()


def call(work: Callable[[], None], folder: Path) -> None:
    """Calls `work` in a fork, which leaves no threads in this process. Raises `RuntimeError` with its output if it fails."""
    log = folder / "fork.log"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run(work, folder, log)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise RuntimeError(f"exit code {code}: {log.read_text()}")
    log.unlink()


def _run(work: Callable[[], None], folder: Path, log: Path) -> None:
    """The whole life of a fork: the exit handlers of its parent, which remove temporary folders, are forgotten."""
    code = 1
    try:
        os.setpgid(0, 0)
        atexit._clear()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run_module(words: list[str]) -> None:
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
