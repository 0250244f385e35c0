"""External test sets: the training images of one classification set, the test images of another one."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from data_prep.audit.evaluation_sets import EvaluationSet, evaluation_sets
from src.classification.dataset import build_dataset
from src.classification.external import external_test
from src.classification.layouts import ClassificationConfig, Example
from src.classification.names import EXTERNAL, FOLDER, dataset_folder
from src.classification.reader import read_dataset
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

SPLITS = ("train", "val", "test")


def dataset(name, labels, classes):
    """A set with an image of each label in each split, all in groups of the same names."""
    return build_dataset(
        name,
        [
            Example(f"{split}{n}", split, label, f"patient {split}{n}", np.full((8, 8), n, np.uint8))
            for split in SPLITS
            for n, label in enumerate(labels)
        ],
        classes=classes,
    )


CHILDREN = dataset("children", ["normal", "pneumonia"], ["normal", "pneumonia"])
ADULTS = dataset("adults", [(), ("Pneumonia",), ("Mass",), ("Mass", "Pneumonia"), ()], ["Mass", "Pneumonia"])
WARDS = dataset("wards", [("mass", "old"), ("pneumonia",), ()], ["mass", "old", "pneumonia"])


def of_split(data, split):
    return [(data.examples[n].key, data.examples[n].label) for n in data.rows(split)]


def test_train_and_val_are_of_one_set_and_test_of_the_other(capsys):
    data = external_test("both", CHILDREN, ADULTS, {"normal": [], "pneumonia": ["Pneumonia"]})
    assert of_split(data, "train") == [("children/train0", "normal"), ("children/train1", "pneumonia")]
    assert of_split(data, "val") == [("children/val0", "normal"), ("children/val1", "pneumonia")]
    expected = [("adults/test0", "normal"), ("adults/test1", "pneumonia"), ("adults/test3", "pneumonia"), ("adults/test4", "normal")]
    assert of_split(data, "test") == expected
    assert data.labels[data.rows("test")].tolist() == [0, 1, 1, 0]
    assert [int(data.examples[n].image[0, 0]) for n in data.rows("test")] == [0, 1, 3, 4]
    assert capsys.readouterr().out == ("both: 1 of 5 test images of adults have none, or several, of the classes and are left out\n")
    assert data.test_set == ("adults", ADULTS.fingerprint)
    assert data.split_note == "train and val of children (given), test of adults (given)"


def test_images_of_several_classes_are_left_out():
    data = external_test("both", CHILDREN, ADULTS, {"normal": ["Mass"], "pneumonia": ["Pneumonia"]})
    assert of_split(data, "test") == [("adults/test1", "pneumonia"), ("adults/test2", "normal")]


def test_multilabel_set_uses_the_labels_of_both_only(capsys):
    data = external_test("both", WARDS, ADULTS, {"mass": ["Mass"], "pneumonia": ["Pneumonia"]})
    assert data.multilabel
    assert data.classes == ["mass", "pneumonia"]
    assert [label for _, label in of_split(data, "train")] == [("mass",), ("pneumonia",), ()]
    assert [label for _, label in of_split(data, "test")] == [(), ("pneumonia",), ("mass",), ("mass", "pneumonia"), ()]
    assert capsys.readouterr().out == ""


def test_fingerprint_depends_on_both_sets_and_the_labels():
    labels = {"normal": [], "pneumonia": ["Pneumonia"]}
    more = dataset("adults", [(), ("Pneumonia",), ("Mass",), ()], ["Mass", "Pneumonia"])
    fewer = dataset("children", ["normal", "pneumonia", "normal"], ["normal", "pneumonia"])
    parts = [
        (CHILDREN, ADULTS, labels),
        (CHILDREN, more, labels),
        (fewer, ADULTS, labels),
        (CHILDREN, ADULTS, labels | {"normal": ["Mass"]}),
    ]
    assert len({external_test("both", *part).fingerprint for part in parts}) == 4


@pytest.mark.parametrize(
    ("train", "test", "labels", "message"),
    [
        (CHILDREN, ADULTS, {"normal": []}, "labels lacks the class 'pneumonia' of children; add it with the labels of adults"),
        (CHILDREN, ADULTS, {"normal": [], "pneumona": []}, "labels has 'pneumona', but children does not; did you mean 'pneumonia'"),
        (CHILDREN, ADULTS, {"normal": [], "pneumonia": ["pneumonia"]}, "'pneumonia', but adults does not; did you mean 'Pneumonia'"),
        (WARDS, CHILDREN, {"mass": [], "pneumonia": ["pneumonia"]}, "[] means an image without any label, but each image of children has"),
        (CHILDREN, ADULTS, {"normal": ["Mass"], "pneumonia": ["Mass"]}, "the test split has no image of 'normal', 'pneumonia'"),
    ],
)
def test_labels_that_do_not_fit_the_sets_are_rejected(train, test, labels, message):
    with pytest.raises(UserError) as error:
        external_test("both", train, test, labels)
    assert message in str(error.value)


def test_each_file_names_labels_of_its_two_sets():
    files = {path.stem: OmegaConf.load(path) for path in FOLDER.glob("*.yaml")}
    external = {name: to_typed(ClassificationConfig, config) for name, config in files.items() if config.get("layout") == EXTERNAL}
    assert external.keys() == {"pneumoniamnist_to_cxr8", "medfmc_chest_to_cxr8"}
    for name, config in external.items():
        assert name == f"{config.train}_to_{config.test}"
        train, test = files[config.train], files[config.test]
        assert set(config.labels) <= set(train.classes)
        assert train.get("multilabel") or set(config.labels) == set(train.classes)
        assert {label for labels in config.labels.values() for label in labels} <= set(test.classes)
        assert test.get("multilabel") or all(config.labels.values())


def test_external_test_is_audited_as_its_test_set(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.audit.evaluation_sets._classification_set", lambda name, raw: EvaluationSet(name))
    sets, _ = evaluation_sets({}, tmp_path, extra=["pneumoniamnist_to_cxr8"])
    assert [one.name for one in sets] == ["cxr8"]


def test_file_without_a_test_set_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "both.yaml").write_text("{layout: external, train: children}")
    monkeypatch.setattr("src.classification.names.FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"both\.yaml: test is missing; name the set of this split"):
        dataset_folder("both", tmp_path)


def test_both_folders_must_exist(tmp_path):
    (tmp_path / "pneumoniamnist").mkdir()
    with pytest.raises(UserError, match=r"benchmark 'cxr8': the folder .*cxr8 does not exist; download it: make download SOURCES=cxr8"):
        dataset_folder("pneumoniamnist_to_cxr8", tmp_path)
    (tmp_path / "cxr8").mkdir()
    dataset_folder("pneumoniamnist_to_cxr8", tmp_path)
    with pytest.raises(UserError, match=r"pneumoniamnist_224\.npz: the file does not exist"):
        read_dataset("pneumoniamnist_to_cxr8", raw=tmp_path)
