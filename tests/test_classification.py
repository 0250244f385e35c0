import hashlib

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from src.classification import dataset
from src.classification.dataset import build_dataset, image_batches, image_to_pixels
from src.classification.layouts import ClassificationConfig, Example
from src.classification.names import EXTERNAL, FOLDER
from src.classification.published_layouts import LAYOUTS
from src.classification.reader import CHECKSUMS, read_dataset
from src.data.image_transform import decode_image
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

rng = np.random.default_rng(0)


def images(folder, *, per_class=10, classes=("a", "b")):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name / f"{n}.png")


def example(n, *, split="", label="a", group="", image=None):
    return Example(str(n), split, label, group or str(n), np.zeros((8, 8), np.uint8) if image is None else image)


def test_class_folders_need_no_configuration(tmp_path):
    images(tmp_path / "own")
    data = read_dataset("own", raw=tmp_path)
    assert data.classes == ["a", "b"]
    assert data.counts() == {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    assert data.generated_split


def test_labels_csv_needs_no_configuration(tmp_path):
    images(tmp_path / "own")
    rows = [f"{name}/{n}.png,{name},{split}" for name in "ab" for n, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)]
    (tmp_path / "own/labels.csv").write_text("\n".join(["image,label,split", *rows]))
    data = read_dataset("own", raw=tmp_path)
    assert data.counts()["train"] == {"a": 6, "b": 6}
    assert not data.generated_split


def test_generated_split_keeps_groups_together():
    examples = [example(n, label="ab"[n // 3 % 2], group=f"patient {n // 3}") for n in range(90)]
    data = build_dataset("x", examples, classes=[])
    splits = {}
    for assigned in data.examples:
        splits.setdefault(assigned.group, set()).add(assigned.split)
    assert all(len(names) == 1 for names in splits.values())
    assert build_dataset("x", examples, classes=[]).examples == data.examples


def test_config_files_have_a_layout_and_at_least_two_classes():
    files = [path for path in FOLDER.glob("*.yaml") if OmegaConf.load(path).get("layout", EXTERNAL) != EXTERNAL]
    assert len(files) == 14
    for path in files:
        config = to_typed(ClassificationConfig, OmegaConf.load(path))
        assert config.layout in LAYOUTS
        assert len(set(config.classes)) == len(config.classes) >= 2


@pytest.mark.parametrize(
    ("examples", "classes", "message"),
    [
        ([], [], "no image found"),
        ([example(n) for n in range(9)], [], r"there is only one class \('a'\)"),
        ([example(n, label="b") for n in range(9)], ["a", "b"], r"there is only one class \('b'\)"),
        ([example(1), example(2, label="other")], ["a", "b"], "2 has the label 'other'; allowed: a, b"),
        (
            [example(n, split=s, label=k) for n, (s, k) in enumerate([("train", "a"), ("val", "a"), ("test", "b")])],
            [],
            "the train split has no image of 'b'",
        ),
        (
            [example(f"{s}{k}", split=s, label=k, group="p" if k == "a" else "") for s in ("train", "val", "test") for k in "ab"],
            [],
            "group 'p' is in both train and val",
        ),
        ([example(0, split=s, label=k) for s in ("train", "val", "test") for k in "ab"], [], "group '0' is in both"),
    ],
)
def test_invalid_set_is_reported_in_one_line(examples, classes, message):
    with pytest.raises(UserError, match=message) as error:
        build_dataset("x", examples, classes=classes)
    assert "\n" not in str(error.value)


def test_unknown_set_and_wrong_checksum_are_rejected(tmp_path):
    images(tmp_path / "own")
    with pytest.raises(UserError, match="did you mean 'own'"):
        read_dataset("onw", raw=tmp_path)
    file = tmp_path / "own/a/0.png"
    sums = tmp_path / "own" / CHECKSUMS
    sums.write_text(f"{hashlib.md5(file.read_bytes()).hexdigest()}  a/0.png\n")
    read_dataset("own", raw=tmp_path)
    sums.write_text(f"{'0' * 32}  a/0.png\n")
    with pytest.raises(UserError, match=r"0\.png: the MD5 is .* has 0000"):
        read_dataset("own", raw=tmp_path)


def test_image_batches_are_in_order_with_any_number_of_threads(tmp_path):
    images(tmp_path / "own")
    data = read_dataset("own", raw=tmp_path)
    rows = rng.permutation(20)
    expected = torch.stack([torch.from_numpy(np.ascontiguousarray(image_to_pixels(data.examples[n].image, size=16))) for n in rows])
    for threads in (1, 4):
        assert torch.equal(torch.cat(list(image_batches(data, rows, size=16, batch=3, threads=threads))), expected)


def test_unreadable_images_are_reported_together(tmp_path):
    images(tmp_path / "own")
    for n in range(4):
        (tmp_path / f"own/a/{n}.png").write_bytes(b"\x89PNG broken")
    data = read_dataset("own", raw=tmp_path)
    with pytest.raises(UserError, match=r"cannot read a/0\.png, a/1\.png, a/2\.png and 1 more as images"):
        list(image_batches(data, np.arange(20), size=16, batch=4, threads=2))


def test_fingerprint_depends_on_the_reader_version(tmp_path, monkeypatch):
    """Results on images that an older version read differently are computed again."""
    images(tmp_path / "own")
    before = read_dataset("own", raw=tmp_path).fingerprint
    monkeypatch.setattr(dataset, "READER_VERSION", b"1")
    assert read_dataset("own", raw=tmp_path).fingerprint != before


def test_arrays_and_files_give_equal_pixels(tmp_path):
    grey = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(image_to_pixels(grey, size=24), decode_image((tmp_path / "a.png").read_bytes(), size=24))
    assert np.array_equal(image_to_pixels(np.stack([grey] * 3, -1), size=40)[1], grey)


def test_fingerprint_depends_on_array_and_image_files(tmp_path):
    images(tmp_path / "own")
    before = read_dataset("own", raw=tmp_path).fingerprint
    assert read_dataset("own", raw=tmp_path).fingerprint == before
    Image.fromarray(rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)).save(tmp_path / "own/a/0.png")
    assert read_dataset("own", raw=tmp_path).fingerprint != before
    (tmp_path / "breastmnist").mkdir()
    fingerprints = set()
    for n in range(2):
        arrays = {f"{split}_images": np.zeros((2 + n, 8, 8), np.uint8) for split in ("train", "val", "test")}
        labels = {f"{split}_labels": np.array([[0], [1], [1]], np.uint8)[: 2 + n] for split in ("train", "val", "test")}
        np.savez(tmp_path / "breastmnist/breastmnist_224.npz", **arrays, **labels)
        fingerprints.add(read_dataset("breastmnist", raw=tmp_path).fingerprint)
    assert len(fingerprints) == 2
