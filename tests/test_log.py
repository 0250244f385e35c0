"""src/training/callbacks/csv_log.py: log.csv survives a kill at any moment."""

import csv
import os

import pytest

from src.training.callbacks.csv_log import CSVLog


@pytest.fixture
def log(tmp_path):
    log = CSVLog(tmp_path / "log.csv", sources=["alpha"], parts=["vision"], log_every=1)
    for step in (1, 2, 3):
        log._append({"step": step, "loss": 1 / step, "lr/vision": 1e-5})
    return log


def test_resume_removes_rows_after_the_checkpoint_and_no_others(log):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log._keep_until(2)
    assert log.path.read_bytes() == b"".join(lines[:3])
    log._append({"step": 3, "loss": 1 / 3, "lr/vision": 1e-5})
    assert log.path.read_bytes() == b"".join(lines)


def test_kill_while_rows_are_removed_loses_no_row(log, monkeypatch):
    """The old file stays complete until the new one replaces it."""
    before = log.path.read_bytes()

    def killed(*args):
        assert log.path.read_bytes() == before
        raise InterruptedError

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(InterruptedError):
        log._keep_until(2)
    assert log.path.read_bytes() == before
    monkeypatch.undo()
    log._keep_until(2)
    with log.path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
