"""The phantoms of classification sets, written in the layout of the set that each stands for."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers import UNSEEN, octmnist, organcmnist, pneumoniamnist, retinamnist, sicapv2
from src.classification import dataset
from src.classification.dataset import image_to_pixels
from src.classification.layouts import SUFFIXES

SMALL = {"breastmnist": 24, "organcmnist": 22, "sicapv2": 80, "pad_ufes_20": 120}


def write(name, root, *, seed=0):
    folder = root / name
    folder.mkdir(parents=True)
    num = {split: min(size, SMALL.get(name, 60)) for split, size in UNSEEN[name].SIZES.items()}
    UNSEEN[name].write(folder, seed=seed, num=num)
    return folder


def digests(folder):
    """Of every file; npz and xlsx by content, since their archives carry the time."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found[path.name] = {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays}
        elif path.suffix != ".xlsx":
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_a_phantom_is_read_as_the_real_set_would_be(tmp_path, name):
    folder = write(name, tmp_path)
    data = dataset.read_dataset(name, raw=tmp_path)
    assert min(count for counts in data.counts().values() for count in counts.values()) >= 1
    assert data.generated_split == (name in ("pad_ufes_20", "malaria"))
    for example in data.examples[:3]:
        assert image_to_pixels(example.image, size=32).shape == (3, 32, 32)
    write(name, tmp_path / "again")
    assert digests(tmp_path / "again" / name) == digests(folder)
    write(name, tmp_path / "other", seed=1)
    assert digests(tmp_path / "other" / name) != digests(folder)


def test_shapes_are_none_that_the_mix_shows_in_that_technique():
    named = {name: {finding.shape for finding in kind.findings.values()} for name, kind in MODALITIES.items()}
    for module, modality, shapes in (
        (retinamnist, "fundus", {"rod"}),
        (pneumoniamnist, "xray", {"ring"}),
        (organcmnist, "ct", {"rod", "crescent", "star", "spiculated"}),
        (sicapv2, "histology", {"crescent"}),
    ):
        looks = module.LOOKS.values() if isinstance(module.LOOKS, dict) else module.LOOKS
        assert shapes <= {look.shape for look in looks}
        assert not shapes & named[modality]
    assert "oct" not in MODALITIES
    assert octmnist.write.keywords["modality"] == "oct"


@pytest.mark.slow
def test_the_warts_are_there(tmp_path):
    folders = {name: write(name, tmp_path) for name in ("pad_ufes_20", "malaria", "sicapv2")}
    assert (folders["malaria"] / "cell_images/Uninfected/Thumbs.db").exists()
    assert list(folders["sicapv2"].rglob("masks/*.png"))
    pictures = [path for folder in folders.values() for path in folder.rglob("*") if path.suffix in SUFFIXES]
    sides = [max(Image.open(path).size) for path in pictures]
    assert min(sides) < 80
    assert max(sides) == 2000
    assert {Image.open(path).mode for path in folders["pad_ufes_20"].rglob("*.png")} == {"RGB", "RGBA"}
    data = dataset.read_dataset("pad_ufes_20", raw=tmp_path)
    assert len(set(data.groups(np.arange(len(data.examples))))) < len(data.examples)
