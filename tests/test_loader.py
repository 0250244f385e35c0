"""src/data/loader.py: every way to lose a data worker gives the same error, raised where a batch is fetched."""

import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from src.data.loader import Loader, prepare_worker
from src.runtime.errors import UserError

LOST = (
    r"data.workers=1: a data worker was lost \({}\), usually because the machine or its /dev/shm is out of memory; use fewer workers; the"
)


class Numbers(IterableDataset):
    """Yields the numbers up to `end` as tensors. Before number `at`, it calls `act`, whose result replaces the number."""

    def __init__(self, act: Callable[[], object] = lambda: None, *, at: int = 1, end: int = 100):
        self.act, self.at, self.end = act, at, end

    def __iter__(self) -> Iterator:
        for number in range(self.end):
            replacement = self.act() if number == self.at else None
            yield torch.tensor(number) if replacement is None else replacement


def loader(data: Numbers, *, workers: int = 1, prefetch: int = 1) -> Loader:
    return Loader(data, batch_size=None, num_workers=workers, prefetch_factor=prefetch, worker_init_fn=prepare_worker)


def die(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (die(signal.SIGKILL), r"killed by SIGKILL"),
        (die(signal.SIGSEGV), r"killed by SIGSEGV"),
        (die(signal.SIGBUS), r"killed by SIGBUS"),  # /dev/shm is full
        (lambda: os._exit(3), r"exit code 3"),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_loader_names_the_signal_of_a_worker_that_died(act, reason, at):
    batches = iter(loader(Numbers(act, at=at)))
    assert [next(batches).item() for _ in range(at)] == list(range(at))
    with pytest.raises(UserError, match=LOST.format(f"({reason}|[A-Za-z]+Error.*)")):
        next(batches)  # the error of the connection may be raised before the exit code is known


def kill(iterator: Iterator) -> None:
    """Kills the workers of an iterator that has yielded a batch, and returns when they are dead."""
    for worker in iterator.gi_frame.f_locals["workers"].processes:
        worker.kill()
        multiprocessing.connection.wait([worker.sentinel])
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # SIGCHLD has been sent


def test_loader_raises_only_where_a_batch_is_fetched():
    """The SIGCHLD handler of PyTorch would raise in `kill`, as it would while a checkpoint is written."""
    batches = iter(loader(Numbers()))
    next(batches)
    kill(batches)
    with pytest.raises(UserError, match=LOST.format("killed by SIGKILL")):
        next(batches)


def test_loader_leaves_the_signal_handler_of_the_process_alone():
    """For a second loader as well, since PyTorch installs its handler once per process."""
    handler = signal.getsignal(signal.SIGCHLD)
    for _ in range(2):
        batches = iter(loader(Numbers(end=2)))
        for _ in batches:
            assert signal.getsignal(signal.SIGCHLD) == handler


def test_loader_does_not_wait_for_the_rest_of_a_message():
    """A worker that dies while it writes holds the lock of the queue, and the training process is reading its message."""

    def act() -> None:
        def send(self, data) -> None:
            os.write(self._handle, bytes(data[:10]))
            os.kill(os.getpid(), signal.SIGKILL)

        multiprocessing.connection.Connection._send = send

    batches = iter(loader(Numbers(act)))
    next(batches)
    with pytest.raises(UserError, match=LOST.format("killed by SIGKILL")):
        next(batches)


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")


def test_loader_does_not_wait_for_a_batch_that_cannot_be_sent(capfd):
    """By default, the queue of a worker drops such a batch."""
    batches = iter(loader(Numbers(Unsendable)))
    next(batches)
    with pytest.raises(UserError, match=LOST.format(".*")):
        next(batches)
    assert "a data worker cannot send a batch: RuntimeError: unable to write to file </torch_1>: No space left" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid 12) exited unexpectedly with exit code 1. Details are lost due to multiprocessing."),
        RuntimeError("Pin memory thread exited unexpectedly"),
        ConnectionResetError(104, "Connection reset by peer"),
        ConnectionRefusedError(111, "Connection refused"),
        BrokenPipeError(32, "Broken pipe"),
        FileNotFoundError(2, "No such file or directory"),
        EOFError(),
        OSError("got end of file during message"),
        multiprocessing.AuthenticationError("digest sent was rejected"),
        pickle.UnpicklingError("pickle data was truncated"),
        MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n... DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_loader_reports_every_error_of_pytorch_as_a_lost_worker(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", fail)
    others = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=LOST.format(".*")):
        next(iter(loader(Numbers())))
    for worker in set(multiprocessing.active_children()) - others:  # Python waits for them when it ends
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_loader_names_the_limit_of_open_files(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", fail)
    with pytest.raises(
        UserError, match=r"data.workers=1: .* lost \(.*\), too many files are open; raise `ulimit -n` or use fewer workers;"
    ):
        next(iter(loader(Numbers())))


@pytest.mark.parametrize("error", [BlockingIOError(11, "Resource temporarily unavailable"), OSError(12, "Cannot allocate memory")])
def test_loader_reports_a_worker_that_cannot_be_started(monkeypatch, error):
    def start(self):
        raise error

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    with pytest.raises(UserError, match=LOST.format(".*")):
        next(iter(loader(Numbers())))


def test_loader_passes_an_error_of_the_dataset_unchanged_and_ends_its_workers():
    def act() -> None:
        raise ValueError("not a record")

    batches = iter(loader(Numbers(act)))
    next(batches)
    workers = batches.gi_frame.f_locals["workers"].processes
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process 0"):
        next(batches)
    for worker in workers:
        worker.join()
        assert worker.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_process_exits_although_an_iterator_of_the_loader_is_still_open():
    """The workers ignore SIGTERM, and Python waits at its exit until they have ended."""
    command = "from tests.test_loader import Numbers, loader; batches = iter(loader(Numbers())); next(batches)"
    subprocess.run([sys.executable, "-c", command], cwd=Path(__file__).parent.parent, check=True, timeout=200)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_yields_the_batches_of_its_workers_in_order(workers):
    numbers = [batch.item() for batch in loader(Numbers(end=4), workers=workers, prefetch=2 if workers else None)]
    assert numbers == [number for number in range(4) for _ in range(max(workers, 1))]


def test_loader_passes_a_user_error_of_a_worker_without_its_traceback():
    def act() -> None:
        raise UserError("s3://a/b.tar: access was refused; check the credentials")

    with pytest.raises(UserError, match=r"^s3://a/b\.tar: access was refused; check the credentials$"):
        list(loader(Numbers(act)))
