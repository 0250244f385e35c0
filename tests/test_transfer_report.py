"""The encoder section of the report: the encoders, and whether a benchmark is unseen."""

import pytest

from src.reporting.blocks import Figure, Folded, Table, Text
from src.reporting.run_data import RunData
from src.reporting.transfer import section
from tests.stored import write_result, write_run

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
    def build(cells: list[dict], **tables) -> list:
        folder = write_run(tmp_path, "one")
        transfer = {"cells": cells, "means": [], "differences": [], "ranks": {}, "few_shot": [], **tables}
        write_result(folder, "transfer", {"metrics": {}, "transfer": transfer})
        return section(RunData("one", folder)).blocks

    return build


def test_encoder_table_has_one_row_per_encoder(blocks):
    encoder_blocks = blocks([cell("x", "run:one", "mean"), cell("y", "run:one", "cls"), cell("x", "clip", "mean")])
    (table,) = (block for block in encoder_blocks if isinstance(block, Table) and "weights" in block.columns)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["encoder"], row["weights"], row["pooling chosen"]) for row in rows] == [
        ("clip", "org/clip", "mean"),
        ("run:one", "org/run:one", "mean, cls"),
    ]
    assert rows[0] | {"parameters": 85798656, "side, pixels": 224, "mean": "0.480, 0.450, 0.400", "std": "0.260, 0.260, 0.270"} == rows[0]


def test_unseen_column_states_the_known_overlap(blocks):
    cases = {
        "a": (None, None),
        "b": ({"found": {}, "trained_on": None, "start": "org/clip"}, "not checked"),
        "c": ({"found": {"s": 3}, "trained_on": True, "start": "org/clip"}, "NO: 3 samples with its images were trained on"),
        "d": ({"found": {"s": 3}, "trained_on": False, "start": None}, "yes: 3 samples with its images were left out"),
        "e": (
            {"found": {}, "trained_on": False, "start": "org/clip"},
            "yes; training data of the initial weights org/clip unknown",
        ),
    }
    (table, *_) = (
        block
        for block in blocks([cell(name, "run:one", "mean", overlap=overlap) for name, (overlap, _) in cases.items()])
        if isinstance(block, Table)
    )
    assert {row[0]: row[-1] for row in table.rows} == {name: answer for name, (_, answer) in cases.items()}


def test_few_shot_caption_names_the_whole_validation_split(blocks):
    points = [{"benchmark": "x", "encoder": "clip", "shots": shots, **SCORE} for shots in (1, 5)]
    (figure,) = (block for block in blocks([cell("x", "clip", "mean")], few_shot=points) if isinstance(block, Figure))
    assert "chosen on the whole validation split" in figure.caption


def test_report_lists_the_results_that_are_left_out(blocks):
    left_out = [{"file": "transfer/x/clip/knn.json", "why": "seeds= of clip changed"}]
    result = blocks([cell("x", "clip", "mean")], left_out=left_out)
    assert Text("transfer/x/clip/knn.json is left out, because seeds= of clip changed.", "gap") in result


def test_multilabel_set_states_what_its_macro_f1_is_averaged_over(blocks):
    labels = {"scored": 3, "labels": 4, "without_positive": ["tumor"]}
    row = {"class": "ulcer", "n": 9, "precision": 0.5, "recall": 0.5, "f1": 0.5, "f1@0.5": 0.4, "auroc": None, "average_precision": 0.3}
    values = {"macro_f1@val": 0.7, "macro_f1@0.5": 0.65, "map": 0.6, "cf1@0.5": 0.61}
    endo = cell("endo", "clip", "mean") | {"multilabel": True, "labels_scored": labels, "per_class": [row]}
    endo |= {name: SCORE | {"value": value} for name, value in values.items()}
    del endo["confusion"], endo["balanced_accuracy"]
    mean = {"encoder": "clip", "protocol": "probe", "benchmarks": ["endo", "x"], **SCORE, "macro_f1@0.5": SCORE | {"value": 0.68}}
    report = blocks([endo, cell("x", "clip", "mean")], means=[mean])
    scores, multilabel, *_ = (block for block in report if isinstance(block, Table))
    rows = [dict(zip(scores.columns, row, strict=True)) for row in scores.rows]
    assert [(row["benchmark"], row["mean over"], row["macro-F1"].value) for row in rows] == [
        ("endo", "3 of 4 labels (not tumor)", 0.7),
        ("x", "2 classes", 0.7),
        ("mean", "2 benchmarks", 0.7),
        ("mean", "2 benchmarks, labels at 0.5", 0.68),
    ]
    (row,) = (dict(zip(multilabel.columns, row, strict=True)) for row in multilabel.rows)
    assert [row[name].value for name in ("macro-F1@val", "macro-F1@0.5", "mAP", "CF1@0.5")] == [0.7, 0.65, 0.6, 0.61]
    folded = {block.title: block.blocks[0] for block in report if isinstance(block, Folded)}
    assert len(folded["Confusion matrices"].plots) == 1
    assert folded["Scores per class"].rows == [["endo", "clip", "probe", "ulcer", 9, 0.5, 0.5, 0.5, 0.4, None, 0.3]]


def test_external_test_stands_beside_the_score_of_its_training_set(blocks):
    external = cell("x_to_y", "run:one", "mean") | {"parts": ["x", "y"], "macro_f1": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}
    parts = blocks([cell("x", "run:one", "mean") | {"parts": ["x"]}, external, cell("x", "clip", "mean")])
    (table,) = (block for block in parts if isinstance(block, Table) and "external test" in block.columns)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert {(row["benchmark"], row["encoder"]): row["external test"] for row in rows} == {
        ("x", "run:one"): "y: 0.500 [0.400, 0.600]",
        ("x", "clip"): None,
        ("x_to_y", "run:one"): None,
    }
