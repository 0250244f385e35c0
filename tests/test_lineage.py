"""src/data/lineage.py: a run folder holds the training records of all runs whose weights it continued."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from src.data.lineage import ancestors, lineage, missing_parent, phantoms, write_lineage
from src.inference.query import ModelSource, describe_training_data, trained_on
from src.release.card import PHANTOM


def start_run(outputs: Path, name: str, source: str, *, init: str | None = None, with_lineage: bool = True, phantom: bool = False) -> Path:
    """The folder of a run on one source; without `with_lineage` as older code wrote it."""
    folder = outputs / name
    folder.mkdir(parents=True)
    mix = {"shares": {source: 1.0}, "decontaminate": True}
    config = {"name": name, "init": init, "mix": mix, "data": {"root": str(outputs.parent / "shards")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"licence": f"licence of {source}", "counts": {"train": {"written": 7}}, "phantom": phantom}
    if with_lineage:
        write_lineage(folder, fingerprint={"shards": {source: f"print of {source}"}}, manifests={source: manifest})
        return folder
    shards = outputs.parent / "shards" / source
    shards.mkdir(parents=True)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    (folder / "train.json").write_text(json.dumps({"shards": {source: f"print of {source}"}, "phantoms": [source] * phantom}))
    return folder


def test_lineage_survives_the_removal_of_all_ancestors(tmp_path):
    start_run(tmp_path / "outputs", "grandparent", "a", phantom=True)
    start_run(tmp_path / "outputs", "sweep/seed=1", "b", init="run:grandparent")
    child = start_run(tmp_path / "outputs", "child", "c", init="run:sweep/seed=1")
    for name in ("grandparent", "sweep"):
        shutil.rmtree(tmp_path / "outputs" / name)
    moved = child.rename(tmp_path / "child")
    records = lineage(moved)
    assert missing_parent(records) is None
    assert [record["name"] for record in records] == ["child", "sweep/seed=1", "grandparent"]
    assert [record["sources"][0]["licence"] for record in ancestors(moved)] == ["licence of b", "licence of a"]
    assert [record["fingerprint"]["shards"] for record in ancestors(moved)] == [{"b": "print of b"}, {"a": "print of a"}]
    assert phantoms(records) == ["a"]


def test_lineage_of_older_runs_is_read_from_their_folders(tmp_path):
    outputs = tmp_path / "outputs"
    start_run(outputs, "grandparent", "a", with_lineage=False, phantom=True)
    start_run(outputs, "sweep/seed=1", "b", init="run:grandparent", with_lineage=False)
    child = start_run(outputs, "child", "c", init="run:sweep/seed=1", with_lineage=False)
    from_folders = lineage(child)
    shutil.rmtree(outputs)
    for name, source, init in (("grandparent", "a", None), ("sweep/seed=1", "b", "run:grandparent"), ("child", "c", "run:sweep/seed=1")):
        start_run(outputs, name, source, init=init, phantom=source == "a")
    assert from_folders == lineage(child)


def test_lineage_ends_at_an_older_parent_that_is_missing(tmp_path):
    outputs = tmp_path / "outputs"
    start_run(outputs, "parent", "b", init="run:grandparent", with_lineage=False)
    child = start_run(outputs, "child", "c", init="run:parent")
    assert missing_parent(lineage(child)) == "run:grandparent"
    start_run(outputs, "grandparent", "a")
    assert missing_parent(lineage(child)) is None


def test_copied_records_are_from_the_start_of_the_child(tmp_path):
    outputs = tmp_path / "outputs"
    start_run(outputs, "parent", "a")
    child = start_run(outputs, "child", "c", init="run:parent")
    shutil.rmtree(outputs / "parent")
    start_run(outputs, "parent", "b")
    assert [record["sources"][0]["name"] for record in ancestors(child)] == ["a"]


def test_lineage_stops_at_older_runs_that_name_each_other_as_init(tmp_path):
    outputs = tmp_path / "outputs"
    start_run(outputs, "parent", "a", init="run:child", with_lineage=False)
    child = start_run(outputs, "child", "b", init="run:parent", with_lineage=False)
    records = lineage(child)
    assert [record["name"] for record in records] == ["child", "parent"]
    assert missing_parent(records) == "run:child"


@pytest.mark.parametrize(
    ("phantoms", "sentence"),
    [
        ({"a": True, "b": True}, "Trained on phantoms only, which a program drew: the model has learned nothing about medicine."),
        ({"a": True, "b": False}, "Trained on a, b. Of these, a program drew a."),
        ({"a": None, "b": False}, "Trained on a, b."),
        ({}, ""),
    ],
)
def test_training_data_of_a_model_is_described(phantoms, sentence):
    assert describe_training_data([{"name": name, "phantom": phantom} for name, phantom in phantoms.items()]) == sentence


def test_exported_model_is_described_by_its_card(tmp_path):
    source = ModelSource("exported", tmp_path, None)
    assert trained_on(source) == ""
    (tmp_path / "README.md").write_text("# mini\n\n" + PHANTOM + "\nA vision-language model.\n")
    assert trained_on(source).startswith("Trained on phantoms. A program generated all images")
    assert "*" not in trained_on(source)
