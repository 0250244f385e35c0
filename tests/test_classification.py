import hashlib

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from src.classification import dataset
from src.classification.dataset import FOLDER, build_dataset, image_batches, image_to_pixels, read_dataset
from src.classification.layouts import LAYOUTS, ClassificationConfig, Example
from src.data.image_transform import decode_jpeg
from src.runtime.schema import to_typed

rng = np.random.default_rng(0)


def images(folder, *, per_class=10, classes=("a", "b")):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name / f"{n}.png")


def example(n, *, split="", label="a", group="", image=None):
    return Example(str(n), split, label, group or str(n), np.zeros((8, 8), np.uint8) if image is None else image)


def test_a_folder_of_ones_own_needs_no_configuration(tmp_path):
    images(tmp_path / "mine")
    data = read_dataset("mine", raw=tmp_path)
    assert data.classes == ["a", "b"]
    assert data.counts() == {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    assert data.made


def test_so_does_a_table(tmp_path):
    images(tmp_path / "mine")
    rows = [f"{name}/{n}.png,{name},{split}" for name in "ab" for n, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)]
    (tmp_path / "mine/labels.csv").write_text("\n".join(["image,label,split", *rows]))
    data = read_dataset("mine", raw=tmp_path)
    assert data.counts()["train"] == {"a": 6, "b": 6}
    assert not data.made


def test_a_group_never_stands_on_two_sides_of_a_split_of_ours():
    found = [example(n, label="ab"[n // 3 % 2], group=f"patient {n // 3}") for n in range(90)]
    data = build_dataset("x", found, classes=[])
    sides = {}
    for one in data.examples:
        sides.setdefault(one.group, set()).add(one.split)
    assert all(len(split) == 1 for split in sides.values())
    assert build_dataset("x", found, classes=[]).examples == data.examples


def test_every_file_of_conf_names_a_layout_and_at_least_two_classes():
    files = [path for path in FOLDER.glob("*.yaml") if "layout" in OmegaConf.load(path)]
    assert len(files) == 8
    for path in files:
        config = to_typed(ClassificationConfig, OmegaConf.load(path))
        assert config.layout in LAYOUTS
        assert len(set(config.classes)) == len(config.classes) >= 2


@pytest.mark.parametrize(
    ("found", "classes", "said"),
    [
        ([], [], "holds no image"),
        ([example(n) for n in range(9)], [], r"has one class only \('a'\)"),
        ([example(n, label="b") for n in range(9)], ["a", "b"], r"has one class only \('b'\)"),
        ([example(1), example(2, label="other")], ["a", "b"], "2 has the label 'other'; allowed: a, b"),
        (
            [example(n, split=s, label=k) for n, (s, k) in enumerate([("train", "a"), ("val", "a"), ("test", "b")])],
            [],
            "its train split has no image of 'b'",
        ),
        (
            [example(f"{s}{k}", split=s, label=k, group="p" if k == "a" else "") for s in ("train", "val", "test") for k in "ab"],
            [],
            "group 'p' stands in both train and val",
        ),
        ([example(0, split=s, label=k) for s in ("train", "val", "test") for k in "ab"], [], "group '0' stands in both"),
    ],
)
def test_bad_sets_are_refused_in_one_sentence(found, classes, said):
    with pytest.raises(dataset.UserError, match=said) as told:
        build_dataset("x", found, classes=classes)
    assert "\n" not in str(told.value)


def test_an_unknown_set_and_a_wrong_checksum_are_refused(tmp_path):
    images(tmp_path / "mine")
    with pytest.raises(dataset.UserError, match="did you mean 'mine'"):
        read_dataset("mime", raw=tmp_path)
    file = tmp_path / "mine/a/0.png"
    sums = tmp_path / "mine" / dataset.SUMS
    sums.write_text(f"{hashlib.md5(file.read_bytes()).hexdigest()}  a/0.png\n")
    read_dataset("mine", raw=tmp_path)
    sums.write_text(f"{'0' * 32}  a/0.png\n")
    with pytest.raises(dataset.UserError, match=r"0\.png has the MD5 .* says 0000"):
        read_dataset("mine", raw=tmp_path)


def test_batches_come_in_order_whatever_the_threads(tmp_path):
    images(tmp_path / "mine")
    data = read_dataset("mine", raw=tmp_path)
    rows = rng.permutation(20)
    expected = torch.stack([torch.from_numpy(np.ascontiguousarray(image_to_pixels(data.examples[n].image, size=16))) for n in rows])
    for threads in (1, 4):
        assert torch.equal(torch.cat(list(image_batches(data, rows, size=16, batch=3, threads=threads))), expected)


def test_unreadable_images_are_named_together(tmp_path):
    images(tmp_path / "mine")
    for n in range(4):
        (tmp_path / f"mine/a/{n}.png").write_bytes(b"\x89PNG broken")
    data = read_dataset("mine", raw=tmp_path)
    with pytest.raises(dataset.UserError, match=r"cannot read a/0\.png, a/1\.png, a/2\.png and 1 more as images"):
        list(image_batches(data, np.arange(20), size=16, batch=4, threads=2))


def test_fingerprint_follows_the_version_of_reading(tmp_path, monkeypatch):
    """Results on images that an older version read otherwise are computed again."""
    images(tmp_path / "mine")
    before = read_dataset("mine", raw=tmp_path).fingerprint
    monkeypatch.setattr(dataset, "READING", b"1")
    assert read_dataset("mine", raw=tmp_path).fingerprint != before


def test_arrays_and_files_give_the_same_pixels(tmp_path):
    grey = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(image_to_pixels(grey, size=24), decode_jpeg((tmp_path / "a.png").read_bytes(), size=24))
    assert np.array_equal(image_to_pixels(np.stack([grey] * 3, -1), size=40)[1], grey)


def test_the_fingerprint_follows_the_file_of_arrays_and_the_files_of_images(tmp_path):
    images(tmp_path / "mine")
    before = read_dataset("mine", raw=tmp_path).fingerprint
    assert read_dataset("mine", raw=tmp_path).fingerprint == before
    Image.fromarray(rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)).save(tmp_path / "mine/a/0.png")
    assert read_dataset("mine", raw=tmp_path).fingerprint != before
    (tmp_path / "breastmnist").mkdir()
    found = set()
    for n in range(2):
        arrays = {f"{split}_images": np.zeros((2 + n, 8, 8), np.uint8) for split in ("train", "val", "test")}
        labels = {f"{split}_labels": np.array([[0], [1], [1]], np.uint8)[: 2 + n] for split in ("train", "val", "test")}
        np.savez(tmp_path / "breastmnist/breastmnist_224.npz", **arrays, **labels)
        found.add(read_dataset("breastmnist", raw=tmp_path).fingerprint)
    assert len(found) == 2
