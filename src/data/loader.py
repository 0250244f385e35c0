"""Batches from worker processes, of which the loss of one is a single kind of error, raised where a batch is fetched."""

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
    """A `DataLoader` whose iterator raises `UserError` when a worker is lost, and raises it from `next` only.

    PyTorch raises the death of a worker from a SIGCHLD handler, thus at an arbitrary line of the training process, for example while it
    writes a checkpoint. It also has some ten other exceptions for the same event; which one is raised depends on timing.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._from_workers() if self.num_workers else super().__iter__()

    def _from_workers(self) -> Iterator[Any]:
        workers = _Workers(self.num_workers)
        with workers.watched():
            iterator: Any = super().__iter__()
            workers.processes = iterator._workers
        end = object()
        while True:
            with workers.watched():
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch


class _Workers:
    """The worker processes of one iterator."""

    def __init__(self, count: int):
        self.count = count
        self.processes: list = []
        self.active = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which the death of a worker raises, also if it died before, and every error of PyTorch for it is a `UserError`.

        The signal is needed: without it the training process would wait forever for the rest of a message whose sender died.
        An exception of the worker's own code, which PyTorch raises again, is left as it is unless the worker lacked memory.
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
            said = str(error)
            if said.startswith("Caught ") and not isinstance(error, MemoryError) and "can't allocate memory" not in said:
                raise
            # A file descriptor for which this process has no room is dropped from its message: "received 0 items of ancdata".
            if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in said or "ancdata" in said:
                hint = "too many files are open: raise `ulimit -n`, or set"
            else:
                hint = "mostly because the machine or its /dev/shm is out of memory: set"
            reason = self._death() or f"{type(error).__name__}: {said}".removesuffix(": ").splitlines()[0]
            for process in self.processes:
                process.kill()  # the others ignore the SIGTERM with which Python ends its children, and it would wait forever
            raise UserError(
                f"a data worker was lost ({reason}), {hint} fewer than data.workers={self.count}; the same command resumes"
            ) from None

    def _check(self, *_) -> None:
        if self.active and self._death():
            raise ChildProcessError

    def _death(self) -> str | None:
        """How a worker ended that did not end with its stream; None while all live."""
        for process in self.processes:
            if process.exitcode:
                return f"killed by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        return None


def prepare_worker(number: int) -> None:
    """Runs in a worker before its first batch."""
    # Signals that stop a run reach its whole process group: the training process still needs its workers to finish the step.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    # A queue prints the error and drops the object, for which the training process would wait forever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: object) -> None:
    """A batch cannot be sent, for example because /dev/shm is full."""
    print(f"a data worker cannot send a batch: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
