"""A `DataLoader` that reports a lost worker process as one kind of error, raised where a batch is fetched."""

import atexit
import contextlib
import errno
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from src.runtime.errors import UserError


class Loader(DataLoader):
    """A `DataLoader` whose iterator raises `UserError` when a worker is lost, and only from `next`.

    PyTorch reports the death of a worker from a SIGCHLD handler, so at an arbitrary line of the training process, for example while it
    writes a checkpoint. It has about ten other exceptions for the same event; which one is raised depends on timing.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._from_workers() if self.num_workers else super().__iter__()

    def _from_workers(self) -> Iterator[Any]:
        workers = _Workers(self.num_workers)
        with workers.watch():
            iterator: Any = super().__iter__()
            workers.processes = iterator._workers
        atexit.register(workers.kill)
        try:
            end = object()
            while True:
                with workers.watch():
                    batch = next(iterator, end)
                if batch is end:
                    return
                yield batch
        finally:
            atexit.unregister(workers.kill)


class _Workers:
    """The worker processes of one iterator."""

    def __init__(self, count: int):
        self.count = count
        self.processes: list = []
        self.active = False

    def kill(self) -> None:
        """Ends all workers. They ignore the SIGTERM with which Python ends its children, so that its exit would wait for them forever."""
        for process in self.processes:
            process.kill()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within this context, the death of a worker, also an earlier one, raises `UserError` instead of the errors of PyTorch.

        The signal handler is needed: without it the training process would wait forever for the rest of a message whose sender died.
        An exception of the worker's own code, which PyTorch raises again, passes unchanged unless the worker lacked memory.
        """
        try:
            handler = signal.signal(signal.SIGCHLD, self._check)
            self.active = True
            try:
                self._check()
                yield
            finally:
                self.active = False  # first, because `signal.signal` runs the handlers of pending signals
                signal.signal(signal.SIGCHLD, handler)
        except Exception as error:
            death = self._death()  # before the workers are killed
            self.kill()
            message = str(error)
            if isinstance(error, UserError) and message.startswith("Caught "):  # PyTorch puts the traceback of the worker in it
                raise UserError(message.strip().splitlines()[-1].partition(": ")[2]) from None
            if message.startswith("Caught ") and not isinstance(error, MemoryError) and "can't allocate memory" not in message:
                raise
            # If this process cannot open another file, a descriptor is dropped from its message: "received 0 items of ancdata".
            if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in message or "ancdata" in message:
                hint = "too many files are open; raise `ulimit -n` or use fewer workers"
            else:
                hint = "usually because the machine or its /dev/shm is out of memory; use fewer workers"
            reason = death or f"{type(error).__name__}: {message}".removesuffix(": ").splitlines()[0]
            raise UserError(f"data.workers={self.count}: a data worker was lost ({reason}), {hint}; the same command resumes") from None

    def _check(self, *_) -> None:
        if self.active and self._death():
            raise ChildProcessError

    def _death(self) -> str | None:
        """How a worker died; None if all are alive or ended with their stream."""
        for process in self.processes:
            if process.exitcode:
                return f"killed by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        return None


def prepare_worker(worker_id: int) -> None:
    """Runs in a worker before its first batch."""
    # Signals that stop a run reach its whole process group, but the training process needs its workers to finish the step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # By default, a queue prints the error and drops the object, and the training process would wait for it forever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_exit_on_send_error)  # type: ignore[attr-defined]


def _exit_on_send_error(error: Exception, batch: object) -> None:
    """Ends the worker when a batch cannot be sent, for example because /dev/shm is full."""
    print(f"a data worker cannot send a batch: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
