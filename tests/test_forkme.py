"""The files of experiments/forkme work as they are, and have the keys of the files that they are copied beside."""

import json
import shutil

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from data_prep.readers.rows import InvalidRow
from data_prep.sources import Source
from experiments.forkme import metric, reader
from src.classification.layouts import ClassificationConfig
from src.classification.reader import read_dataset
from src.config.train import TrainConfig, VisionConfig
from src.evaluation.benchmark import BenchmarkConfig
from src.metrics.vqa import score_item
from src.model.vision import load_vision
from src.runtime import cli
from src.runtime.cli import compose
from src.runtime.paths import CONF, REPOSITORY
from src.runtime.schema import to_typed
from tests.fixtures import jpeg

RNG = np.random.default_rng(0)
FOLDER = REPOSITORY / "experiments" / "forkme"


def load(name: str) -> DictConfig:
    return DictConfig(OmegaConf.load(FOLDER / f"{name}.yaml"))


def test_reader_yields_records_and_sets_incomplete_rows_aside(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(RNG))
    row = {"id": 1, "file": "a.jpg", "question": "where is it?", "answer": "left", "patient": 7}
    rows = [row, {**row, "file": "b.jpg"}, {key: row[key] for key in ("id", "file", "question", "answer")}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, *others = reader.read(tmp_path, "train", Source("mine", "mine", {"train": ["train.jsonl"]}))
    assert (first.question, first.answer, first.group, first.type) == ("where is it?", "left", "7", "location")
    assert [type(other) for other in others] == [InvalidRow, InvalidRow]


def test_metric_is_a_scorer():
    scores = [score_item(metric.first_word, {"prediction": text, "references": ["Left lung"]}) for text in ("left", "the left", "")]
    assert scores == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "schema"), [("benchmark", BenchmarkConfig), ("classification", ClassificationConfig), ("encoder", VisionConfig)]
)
def test_configuration_has_the_keys_of_its_schema(name, schema):
    assert to_typed(schema, load(name))


def test_classification_set_is_read_by_its_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr("src.classification.reader.FOLDER", tmp_path)
    shutil.copy(FOLDER / "classification.yaml", tmp_path / "mine.yaml")
    (tmp_path / "raw" / "mine").mkdir(parents=True)
    lines = ["file,finding,split,patient"]
    for number, (label, split) in enumerate((label, split) for label in ("normal", "abnormal") for split in ("train", "val", "test")):
        (tmp_path / "raw" / "mine" / f"{number}.jpg").write_bytes(jpeg(RNG))
        lines.append(f"{number}.jpg,{label},{split},{number}")
    (tmp_path / "raw" / "mine" / "labels.csv").write_text("\n".join(lines))
    assert read_dataset("mine", raw=tmp_path / "raw").counts()["val"] == {"normal": 1, "abnormal": 1}


def test_encoder_builds(tmp_path):
    config = to_typed(VisionConfig, load("encoder"))
    config.format = "scratch"  # the weights are on the hub
    config.image_size = 32
    assert load_vision(config).size == 32


def test_experiment_composes(tmp_path, monkeypatch):
    shutil.copytree(CONF, tmp_path / "conf")
    shutil.copy(FOLDER / "experiment.yaml", tmp_path / "conf" / "experiment" / "mine.yaml")
    monkeypatch.setattr(cli, "CONF", tmp_path / "conf")
    config = to_typed(TrainConfig, compose("train", ["+experiment=mine"]))
    assert (config.name, config.optim.steps, config.mix.leave_out) == ("my_experiment", 100, ["pubmedqa"])
