"""What the report says of encoders: which they are, and whether a benchmark is unseen."""

import pytest

from src.reporting.blocks import Figure, Table, Text
from src.reporting.run_data import RunData
from src.reporting.transfer import section
from tests.stored import write_run, write_verb

SCORE = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40}


def cell(benchmark: str, encoder: str, pooling: str, *, overlap: dict | None = None) -> dict:
    return {
        "benchmark": benchmark,
        "encoder": encoder,
        "protocol": "probe",
        "ours": overlap is not None,
        "classes": ["a", "b"],
        "n": 40,
        "macro_f1": SCORE,
        "balanced_accuracy": SCORE,
        "auroc": SCORE,
        "confusion": [[18, 2], [5, 15]],
        "per_class": [],
        "pooling": [pooling],
        "overlap": overlap,
        "parameters": 85798656,
        "weights": {"id": f"org/{encoder}", "sha256": "0123456789abcdef"},
        "input": {"size": 224, "mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]},
    }


@pytest.fixture
def blocks(tmp_path):
    def made(cells: list[dict], **tables) -> list:
        folder = write_run(tmp_path, "one")
        found = {"cells": cells, "means": [], "differences": [], "ranks": {}, "few_shot": [], **tables}
        write_verb(folder, "transfer", {"metrics": {}, "transfer": found})
        return section(RunData("one", folder)).blocks

    return made


def test_every_encoder_is_one_row_of_what_it_is(blocks):
    found = blocks([cell("x", "run:one", "mean"), cell("y", "run:one", "cls"), cell("x", "clip", "mean")])
    (table,) = (block for block in found if isinstance(block, Table) and "weights" in block.columns)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["encoder"], row["weights"], row["pooling chosen"]) for row in rows] == [
        ("clip", "org/clip", "mean"),
        ("run:one", "org/run:one", "mean, cls"),
    ]
    assert rows[0] | {"parameters": 85798656, "side, pixels": 224, "mean": "0.480, 0.450, 0.400", "std": "0.260, 0.260, 0.270"} == rows[0]


def test_unseen_says_what_is_known_and_what_is_not(blocks):
    said = {
        "a": (None, None),
        "b": ({"found": {}, "trained_on": None, "start": "org/clip"}, "not checked"),
        "c": ({"found": {"s": 3}, "trained_on": True, "start": "org/clip"}, "NO: 3 samples with its images were trained on"),
        "d": ({"found": {"s": 3}, "trained_on": False, "start": None}, "yes: 3 samples with its images were left out"),
        "e": ({"found": {}, "trained_on": False, "start": "org/clip"}, "yes; what org/clip saw, where it started, is unknown"),
    }
    (table, *_) = (
        one
        for one in blocks([cell(name, "run:one", "mean", overlap=overlap) for name, (overlap, _) in said.items()])
        if isinstance(one, Table)
    )
    assert {row[0]: row[-1] for row in table.rows} == {name: answer for name, (_, answer) in said.items()}


def test_few_shot_curves_say_that_the_whole_validation_split_chose(blocks):
    points = [{"benchmark": "x", "encoder": "clip", "shots": shots, **SCORE} for shots in (1, 5)]
    (figure,) = (one for one in blocks([cell("x", "clip", "mean")], few_shot=points) if isinstance(one, Figure))
    assert "chosen on the whole validation split" in figure.caption


def test_report_names_the_results_that_are_left_out(blocks):
    left_out = [{"file": "transfer/x/clip/knn.json", "why": "seeds= of clip changed"}]
    found = blocks([cell("x", "clip", "mean")], left_out=left_out)
    assert Text("transfer/x/clip/knn.json is left out, because seeds= of clip changed.", "gap") in found
