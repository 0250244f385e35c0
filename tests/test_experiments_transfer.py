"""experiments/transfer: the lists of the README and the CSV of cells."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import yaml

from experiments.bench.transfer import measure, multilabel_scores
from experiments.transfer.table import COLUMNS, rows, table, unseen
from src.classification.names import EXTERNAL, FOLDER
from src.runtime import paths
from src.runtime.errors import UserError

README = Path(__file__).resolve().parent.parent / "experiments/transfer/README.md"


def test_readme_names_lists_of_benchmarks_of_conf():
    named = set(re.findall(r"benchmark=(\w+_eight)", README.read_text()))
    lists = yaml.safe_load((paths.CONF / "transfer.yaml").read_text())["benchmark_lists"]
    assert named == set(lists)
    files = {path.stem for path in FOLDER.glob("*.yaml") if yaml.safe_load(path.read_text()).get("layout", EXTERNAL) != EXTERNAL}
    assert {name for sets in lists.values() for name in sets} == files - {"cxr8_8"}  # cxr8 with fewer labels


def test_table_states_unseen_and_leaves_missing_cells_empty(tmp_path):
    texts = {None: "unknown", False: "yes", True: "no"}
    assert [unseen(None), *(unseen({"trained_on": one}) for one in texts)] == ["unknown", *texts.values()]
    assert unseen({"trained_on": False, "start": "org/weights"}) == "yes, where it started unknown"
    cell = {"protocol": "probe", "score": "macro_f1", "value": 0.5, "low": 0.25, "high": 0.75}
    text = table([cell | {"benchmark": "a", "encoder": "x"}, cell | {"benchmark": "b", "encoder": "y"}])
    assert text.splitlines()[1].split() == ["a", "0.500", "[0.250,", "0.750]"]
    with pytest.raises(UserError, match=r"src\.transfer first"):
        rows(tmp_path)


def test_csv_has_every_score_and_the_encoder_details(tmp_path):
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    cell = {"benchmark": "a", "encoder": "run:x", "protocol": "probe", "seeds": 1, "pooling": ["mean"], "overlap": None, "parameters": 9}
    cell |= {"input": {"size": 224, "mean": [0.5] * 3, "std": [0.25] * 3}, "weights": {"id": "run:x", "sha256": "0123456789abcdef"}}
    single, multi = (
        ("macro_f1", "balanced_accuracy", "auroc", "ece"),
        ("macro_f1", "auroc", "macro_f1@val", "macro_f1@0.5", "map", "cf1@0.5"),
    )
    labels = cell | {"benchmark": "b", "per_class": []} | dict.fromkeys(multi, score)
    cell |= dict.fromkeys(single, score) | {"per_class": [{"class": "benign", "f1": 0.4, "n": 20}]}
    tables = {
        "cells": [cell, labels],
        "means": [{"encoder": "run:x", "protocol": "probe", **score, "macro_f1@0.5": score | {"value": 0.3}}],
        "ranks": {"probe": {"run:x": 1.5}},
        "differences": [{"benchmark": "a", "protocol": "probe", "ours": "run:x", "other": "y", "p_holm": 0.03, **score}],
        "few_shot": [{"benchmark": "a", "encoder": "run:x", "shots": 5, **score}],
    }
    (tmp_path / "transfer.json").write_text(json.dumps({"git": "abc", "transfer": tables}))
    result = rows(tmp_path)
    assert [(row["benchmark"], row["encoder"], row["protocol"], row["score"], row["value"]) for row in result] == [
        *(("a", "run:x", "probe", score, 0.5) for score in single),
        ("a", "run:x", "probe", "f1/benign", 0.4),
        *(("b", "run:x", "probe", score, 0.5) for score in multi),
        ("mean", "run:x", "probe", "macro_f1", 0.5),
        ("mean", "run:x", "probe", "macro_f1@0.5", 0.3),
        ("mean", "run:x", "probe", "average_rank", 1.5),
        ("a", "run:x - y", "probe", "macro_f1_difference", 0.5),
        ("a", "run:x", "probe_5shot", "macro_f1", 0.5),
    ]
    assert [row["p_holm"] for row in result if row["score"] == "macro_f1_difference"] == [0.03]
    assert {name: result[0][name] for name in COLUMNS[-6:-1]} == {
        "weights": "run:x 0123456789ab",
        "parameters": 9,
        "side": 224,
        "mean": "0.5000 0.5000 0.5000",
        "std": "0.2500 0.2500 0.2500",
    }


@pytest.mark.slow
def test_probe_overhead_is_measured_on_both_sides():
    overhead, grid = islice(measure(25, "vit_tiny_patch16_224"), 2)
    assert overhead.low <= overhead.value <= overhead.high
    assert overhead.n == 5
    assert min(overhead.ours, overhead.peer, grid.value) > 0


def test_multilabel_scores_are_measured():
    assert multilabel_scores(images=100, labels=3, resamples=20).value > 0
