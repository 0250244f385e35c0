"""What the comparison says of runs that should not be compared, or are not there yet."""

import csv
from pathlib import Path

import pytest

from src.cli import compose
from src.config import Report, typed
from src.errors import UserError
from src.report import report
from tests.stored import write_run


def made(outputs: Path, *overrides: str) -> str:
    return report(typed(Report, compose("report", [f"outputs={outputs}", "resamples=50", *overrides]))).read_text()


def test_runs_on_different_data_are_shown_and_marked_and_not_averaged(tmp_path):
    for name, seed, print_ in (("a", 0, "x"), ("b", 1, "y")):
        write_run(tmp_path, f"sweep/{name}", seed=seed, shards={"alpha": print_})
    page = made(tmp_path, "runs=sweep/*")
    assert "These runs were trained on different shards of alpha: they are shown side by side, and never averaged." in page
    assert "[data print-0]" in page
    assert "[data print-1]" in page
    with (tmp_path / "sweep" / "report.csv").open() as file:
        assert {row["data"] for row in csv.DictReader(file)} == {"print-0", "print-1"}


def test_an_unfinished_run_is_shown_with_its_step(tmp_path):
    write_run(tmp_path, "sweep/a")
    half = write_run(tmp_path, "sweep/b", seed=1, optim__steps=40)
    for name in ("train.json", "evaluate.json", "result.json"):
        (half / name).unlink()
    assert "unfinished, step 20 of 40" in made(tmp_path, "runs=sweep/*")


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UserError, match=r"^runs=sweep/\* finds no run in .*, which holds none yet$"):
        made(tmp_path, "runs=sweep/*")
