"""Near-identical images of a classification set are one group, and images of shared groups leave the later split."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.classification import groups
from src.classification.groups import apply_group_rules, merge_groups, near_identical_pairs
from src.classification.layouts import ClassificationConfig, Example
from src.runtime.errors import UserError

PHASH = ClassificationConfig("folder", duplicates="phash")


def scene(seed, side=160):
    """Smooth random grey shapes, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def saved(folder, images, *, split="", labels="ab"):
    """One example per image, in its own group, with the labels in turn."""
    examples = []
    for n, image in enumerate(images):
        image.save(folder / f"{n}.png")
        examples.append(Example(f"{n}.png", split, labels[n % len(labels)], f"{n}.png", folder / f"{n}.png"))
    return examples


COPIES = {
    "smaller": lambda image: image.resize((110, 120)),
    "mirrored": ImageOps.mirror,
    "RGBA": lambda image: image.convert("RGBA"),
    "cropped": lambda image: image.crop((4, 4, image.width - 4, image.height - 4)),
}


def test_copies_and_nothing_else_are_near_identical(tmp_path):
    originals = [scene(n) for n in range(12)]
    examples = saved(tmp_path, originals + [copy(originals[n]) for n, copy in enumerate(COPIES.values())])
    assert near_identical_pairs(examples).tolist() == [[n, 12 + n] for n in range(len(COPIES))]
    assert near_identical_pairs(examples[:12]).shape == (0, 2)
    arrays = [example._replace(image=np.asarray(Image.open(example.image).convert("L"))) for example in examples]
    assert near_identical_pairs(arrays).tolist() == [[n, 12 + n] for n in range(len(COPIES))]


def test_groups_of_copies_merge_and_mixed_labels_are_counted(capsys):
    examples = [Example(str(n), "", "ab"[n % 2], f"patient {n // 2}", np.zeros((8, 8), np.uint8)) for n in range(8)]
    merged = merge_groups("set", examples, np.array([[1, 4], [4, 7]]))
    assert [example.group for example in merged] == ["patient 0"] * 2 + ["patient 1"] * 2 + ["patient 0"] * 4
    assert "3 of 8 images are near-identical to another one, in 1 groups" in capsys.readouterr().out
    merge_groups("set", examples, np.array([[0, 2], [1, 4]]))
    assert capsys.readouterr().out.endswith("1 of these groups have images with different labels\n")


def test_pairs_are_computed_once_for_the_same_images(tmp_path, monkeypatch):
    examples = saved(tmp_path, [scene(0), scene(1), scene(0)])
    cache = tmp_path / ".set-duplicates.json"
    grouped = apply_group_rules("set", examples, PHASH, origin="one", cache=cache)
    assert [example.group for example in grouped] == ["0.png", "1.png", "0.png"]
    with monkeypatch.context() as patch:
        patch.setattr(groups, "near_identical_pairs", None)
        assert apply_group_rules("set", examples, PHASH, origin="one", cache=cache) == grouped
    cache.write_text(json.dumps({"origin": "one"}))
    assert apply_group_rules("set", examples, PHASH, origin="one", cache=cache) == grouped
    scene(5).save(tmp_path / "2.png")
    assert apply_group_rules("set", examples, PHASH, origin="two", cache=cache) == examples

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(groups, "atomic_file", refuse)  # a read-only folder
    assert apply_group_rules("set", examples, PHASH, origin="three", cache=cache) == examples


def test_unreadable_image_is_named(tmp_path):
    examples = saved(tmp_path, [scene(0), scene(1)])
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"1\.png: cannot be read as an image; repair or remove it"):
        near_identical_pairs(examples)


def test_disjoint_splits_leave_out_images_of_shared_groups(tmp_path, capsys):
    rows = [("train", "s1"), ("val", "s2"), ("val", "s1"), ("test", "s3"), ("test", "s2"), ("test", "s1")]
    examples = [Example(str(n), split, "a", group, tmp_path) for n, (split, group) in enumerate(rows)]

    def keys(rule):
        config = ClassificationConfig("folder", splits=rule)
        return [(e.key, e.split) for e in apply_group_rules("set", examples, config, origin="", cache=tmp_path / "unused")]

    assert keys("disjoint") == [("0", "train"), ("1", "val"), ("3", "test")]
    assert "left out 1 of 2 val images, 2 of 3 test images" in capsys.readouterr().out
    assert keys("official") == [(str(n), split) for n, (split, _) in enumerate(rows)]
    assert {split for _, split in keys("generated")} == {""}
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("duplicates", "md5"), ("splits", "random")])
def test_unknown_rule_is_rejected(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"benchmark 'set': {key}='{value}'; allowed: "):
        apply_group_rules("set", [], ClassificationConfig("folder", **{key: value}), origin="", cache=tmp_path)
