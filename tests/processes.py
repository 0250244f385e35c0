"""A verb in processes of its own: to be killed, or to be one of several ranks.

They are forked from a server that has imported the libraries once, which saves some ten seconds each.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from src.runtime.errors import UserError
from src.training.callbacks.checkpoint import CheckpointCallback

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["src.train"])


def start(
    config: Any, log: Path, environment: dict[str, str] | None = None, *, verb: str = "train", stop: tuple[int, int] | None = None
) -> BaseProcess:
    """`src.<verb>.<verb>(config)`. With `stop` = (step, signal) a training sends the signal to itself and its workers after that step."""
    process = server.Process(target=_run, args=(config, log, environment or {}, verb, stop))
    process.start()
    return process


def _run(config: Any, log: Path, environment: dict[str, str], verb: str, stop: tuple[int, int] | None) -> None:
    os.environ.update(environment)
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in a process that a shell started
    _redirect(log)
    if stop:
        _signal_after(*stop)
    try:
        getattr(importlib.import_module(f"src.{verb}"), verb)(config)
    except UserError as mistake:
        print(f"error: {mistake}", flush=True)
        raise SystemExit(2) from None


def command(module: str, words: list[str], log: Path, environment: dict[str, str]) -> BaseProcess:
    """`python -m <module> <words>`; stdout and stderr go to `log`."""
    process = server.Process(target=_main, args=(module, words, log, environment))
    process.start()
    return process


def _main(module: str, words: list[str], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _redirect(log)
    sys.argv = [module, *words]
    importlib.import_module(module).main()


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def _signal_after(step: int, number: int) -> None:
    """A signal from outside could arrive after the last step of a short run."""
    usual, sent = CheckpointCallback.on_train_batch_end, []

    def on_train_batch_end(self, trainer, *rest) -> None:
        usual(self, trainer, *rest)
        if trainer.global_step == step and not sent:
            sent.append(number)
            os.killpg(0, number)

    CheckpointCallback.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]


def wait(processes: list[BaseProcess], *, seconds: float = 150) -> list[int | None]:
    """Their exit codes; None for one that had to be killed because it hung."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def ranks(config: Any, log: Path, *, world: int, verb: str = "train", stops: dict[int, tuple[int, int]] | None = None) -> list[BaseProcess]:
    """One process per rank, as torchrun starts them; `stops` has the `stop` of a rank."""
    stop = stops or {}
    return [
        start(config, log.with_suffix(f".{rank}"), environment, verb=verb, stop=stop.get(rank))
        for rank, environment in enumerate(environments(world=world))
    ]


def environments(*, world: int) -> list[dict[str, str]]:
    """The variables that torchrun sets, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def until(condition: Callable[[], bool], process: BaseProcess, *, seconds: float = 150) -> None:
    """Waits for `condition` while `process` lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"exit code {process.exitcode}"
        assert time.monotonic() < end
        time.sleep(0.005)
