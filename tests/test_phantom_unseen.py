"""The phantoms of classification sets, written in the layout of the set that each stands for."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers import UNSEEN, octmnist, organcmnist, pneumoniamnist, retinamnist, sicapv2
from data_prep.phantom.writers.unseen import MULTILABEL_LOOKS
from src.classification.dataset import image_to_pixels
from src.classification.layouts import SUFFIXES
from src.classification.reader import read_dataset

SMALL = {"cxr8": 180, "medfmc_chest": 120, "medfmc_endo": 90} | {"breastmnist": 24, "organcmnist": 22, "sicapv2": 60, "pad_ufes_20": 90}


def write(name, root, *, seed=0, most=None):
    folder = root / name
    folder.mkdir(parents=True)
    num = {split: min(size, most or SMALL.get(name, 60)) for split, size in UNSEEN[name].SIZES.items()}
    UNSEEN[name].write(folder, seed=seed, num=num)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """`phantoms(*names)` returns the folder of these phantoms; each is written once."""
    root = tmp_path_factory.mktemp("phantoms")

    def write_missing(*names):
        for name in names:
            if not (root / name).exists():
                write(name, root)
        return root

    return write_missing


def digests(folder):
    """Of every file; npz and xlsx by content, since their archives carry the time."""
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                result[path.name] = {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays}
        elif path.suffix != ".xlsx":
            result[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_a_phantom_is_read_as_the_real_set_would_be(phantoms, name):
    data = read_dataset(name, raw=phantoms(name))
    assert min(count for counts in data.counts().values() for count in counts.values()) >= 1
    assert data.generated_split == (name in ("pad_ufes_20", "malaria", "medfmc_endo", "busi"))
    for example in data.examples[:3]:
        assert image_to_pixels(example.image, size=32).shape == (3, 32, 32)


@pytest.mark.parametrize("name", UNSEEN)
def test_bytes_of_a_phantom_are_a_function_of_the_seed(tmp_path, name):
    first, again, other = (digests(write(name, tmp_path / f"{n}", seed=seed, most=6)) for n, seed in enumerate((0, 0, 1)))
    assert first == again
    assert first != other


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
def test_the_warts_are_there(phantoms):
    root = phantoms("pad_ufes_20", "malaria", "sicapv2")
    folders = {name: root / name for name in ("pad_ufes_20", "malaria", "sicapv2")}
    assert (folders["malaria"] / "cell_images/Uninfected/Thumbs.db").exists()
    assert list(folders["sicapv2"].rglob("masks/*.png"))
    pictures = [path for folder in folders.values() for path in folder.rglob("*") if path.suffix in SUFFIXES]
    sides = [max(Image.open(path).size) for path in pictures]
    assert min(sides) < 80
    assert max(sides) == 2000
    assert {Image.open(path).mode for path in folders["pad_ufes_20"].rglob("*.png")} == {"RGB", "RGBA"}
    data = read_dataset("pad_ufes_20", raw=root)
    assert len(set(data.groups(np.arange(len(data.examples))))) < len(data.examples)


@pytest.mark.slow
def test_the_warts_of_the_paper_sets_are_there(phantoms, capsys):
    root = phantoms("cxr8", "medfmc_colon", "medfmc_endo", "busi")
    folders = {name: root / name for name in ("cxr8", "medfmc_colon", "medfmc_endo", "busi")}
    assert "OriginalImage[Width,Height]" in next(folders["cxr8"].glob("Data_Entry_2017*.csv")).read_text().splitlines()[0]
    assert {Image.open(path).mode for path in folders["cxr8"].rglob("*.png")} == {"L", "RGBA"}
    colon, endo = (folders[f"medfmc_{name}"] / "MedFMC_train" / name for name in ("colon", "endo"))
    assert all(" " in path.name for path in (colon / "images").iterdir())
    assert {line[-1] for line in (endo / "test_WithLabel.txt").read_text().splitlines()} == {"0"}
    assert any(line[-1] == "1" for line in (endo / "train_20.txt").read_text().splitlines())
    patients = [
        {line[:18] for line in (endo / name).read_text().splitlines()} for name in ("train_20.txt", "val_20.txt", "test_WithLabel.txt")
    ]
    assert patients[0] & patients[1]
    assert not patients[0] & patients[2]
    read_dataset("medfmc_colon", raw=root)
    assert "medfmc_colon: left out 12 of 60 val images, 12 of 60 test images" in capsys.readouterr().out
    assert list(folders["busi"].rglob("*_mask_1.png"))
    data = read_dataset("busi", raw=root)
    assert not any("_mask" in example.key for example in data.examples)
    assert (
        "busi: 8 of 64 images are near-identical to another one, in 4 groups that each stay in one split; 1 of" in capsys.readouterr().out
    )


def test_looks_of_multilabel_phantoms_are_distinct_and_unnamed():
    assert len(set(MULTILABEL_LOOKS)) == len(MULTILABEL_LOOKS) >= 19
    named = {finding.shape for name in ("xray", "dermoscopy") for finding in MODALITIES[name].findings.values()}
    assert not named & {look.shape for look in MULTILABEL_LOOKS}
