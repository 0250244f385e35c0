"""Runs commands in separate processes, which a test can kill or start as ranks.

The processes are forked from a server that has imported the libraries, which saves about ten seconds each.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from src.runtime.errors import UserError
from src.training.lightning_module import VLMLightningModule

server = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Forks the server from this process, which has imported the libraries; multiprocessing would start another one.

    A process that has run a backward pass cannot hand autograd to a fork, so call this before the first test.
    """

    def fork(path: bytes, args: list[str], descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                for low, high in pairwise([2, *sorted(descriptors), 1 << 16]):
                    os.closerange(low + 1, high)  # the server ends when the tests have closed their end of a pipe
                exec(args[-1], {})  # runs the server until this process ends
            finally:
                os._exit(0)
        return pid

    importlib.import_module("src.commands.train")
    resource_tracker.ensure_running()
    with mock.patch("multiprocessing.util.spawnv_passfds", fork):
        forkserver.ensure_running()


def start(
    config: Any, log: Path, environment: dict[str, str] | None = None, *, command: str = "train", stop: tuple[int, int] | None = None
) -> BaseProcess:
    """Starts `src.<command>.<command>(config)`. `stop` = (step, signal): a training signals itself and its workers after that step."""
    process = server.Process(target=_run, args=(config, log, environment or {}, command, stop))
    process.start()
    return process


def _run(config: Any, log: Path, environment: dict[str, str], command: str, stop: tuple[int, int] | None) -> None:
    os.environ.update(environment)
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in a process started by a shell
    _redirect(log)
    if stop:
        _signal_after(*stop)
    try:
        getattr(importlib.import_module(f"src.{command}"), command)(config)
    except UserError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(2) from None


def start_command(module: str, overrides: list[str], log: Path, environment: dict[str, str]) -> BaseProcess:
    """Runs `python -m <module> <overrides>`; stdout and stderr go to `log`."""
    process = server.Process(target=_main, args=(module, overrides, log, environment))
    process.start()
    return process


def _main(module: str, overrides: list[str], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _redirect(log)
    sys.argv = [module, *overrides]
    importlib.import_module(module).main()


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def _signal_after(step: int, number: int) -> None:
    """Sends the signal when the validation and the checkpoint of `step` are done. One from outside could arrive after the last step."""
    usual, sent = VLMLightningModule.on_train_batch_start, []

    def on_train_batch_start(self, batch, batch_idx) -> None:
        if self.trainer.global_step == step and not sent:
            sent.append(number)
            os.killpg(0, number)
        usual(self, batch, batch_idx)

    VLMLightningModule.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]


def wait(processes: list[BaseProcess], *, seconds: float = 150) -> list[int | None]:
    """Waits for all processes; returns their exit codes, None for a process that was killed because it did not end in time."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def ranks(
    config: Any, log: Path, *, world: int, command: str = "train", stops: dict[int, tuple[int, int]] | None = None
) -> list[BaseProcess]:
    """One process per rank, as torchrun starts them; `stops` has the `stop` of a rank."""
    stop = stops or {}
    return [
        start(config, log.with_suffix(f".{rank}"), environment, command=command, stop=stop.get(rank))
        for rank, environment in enumerate(environments(world=world))
    ]


def environments(*, world: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each rank."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def until(condition: Callable[[], bool], process: BaseProcess, *, seconds: float = 150) -> None:
    """Waits until `condition()` is true; `process` must stay alive until then."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"exit code {process.exitcode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
