import re

import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image

from src.classification.layouts import ClassificationConfig, folder_layout, npz_array, npz_layout, sicap_layout, table_layout
from src.runtime.errors import UserError

rng = np.random.default_rng(0)


def save_image(path, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def medmnist(path, *, save=np.savez, labels=None):
    arrays = {}
    for split, n in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None].astype(np.uint8) if labels is None else labels[:n]
    save(path, **arrays)
    return arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_equal_those_of_numpy(tmp_path, save):
    arrays = medmnist(tmp_path / "a.npz", save=save)
    examples = list(npz_layout(tmp_path, ClassificationConfig("npz", "a.npz", ["zero", "one"])))
    assert [example.split for example in examples] == ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    assert [example.label for example in examples[:3]] == ["zero", "one", "zero"]
    assert np.array_equal(np.stack([example.image for example in examples[:6]]), arrays["train_images"])


def test_uncompressed_npz_is_memory_mapped(tmp_path):
    medmnist(tmp_path / "a.npz")
    assert isinstance(npz_array(tmp_path / "a.npz", "train_images").base, np.memmap)


def test_npz_rejects_pickles_and_missing_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.array([{}], object))
    with pytest.raises(UserError, match=r"cannot be read as npz \(it contains Python objects\)"):
        npz_array(tmp_path / "a.npz", "train_images")
    with pytest.raises(UserError, match="no array 'val_images'"):
        npz_array(tmp_path / "a.npz", "val_images")
    with pytest.raises(UserError, match="does not exist"):
        npz_array(tmp_path / "b.npz", "val_images")
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read as npz"):
        npz_array(tmp_path / "c.npz", "train_images")


def test_npz_rejects_several_labels_per_image(tmp_path):
    medmnist(tmp_path / "a.npz", labels=np.zeros((6, 14), np.uint8))
    with pytest.raises(UserError, match="train_labels has 14 labels per image"):
        list(npz_layout(tmp_path, ClassificationConfig("npz", "a.npz", ["zero"])))


def test_folder_ignores_masks_and_other_file_types(tmp_path):
    for name in ("Parasitized/C1P2thinF_a_cell_1.png", "Parasitized/C1P2thinF_a_cell_2.png", "Uninfected/C12N_b_cell_1.png"):
        save_image(tmp_path / "cell_images" / name)
    save_image(tmp_path / "cell_images/Uninfected/benign (1)_mask.png")
    save_image(tmp_path / "cell_images/Uninfected/benign (1)_mask_1.png")
    (tmp_path / "cell_images/Uninfected/Thumbs.db").write_bytes(b"\0")
    examples = list(folder_layout(tmp_path, ClassificationConfig("folder", "cell_images", group=r"^C\d+")))
    assert [(example.label, example.group, example.split) for example in examples] == [
        ("Parasitized", "C1", ""),
        ("Parasitized", "C1", ""),
        ("Uninfected", "C12", ""),
    ]


def test_folder_reads_split_folders(tmp_path):
    for name in ("train/a/1.png", "Validation/a/2.png", "test/b/3.png"):
        save_image(tmp_path / name)
    examples = {example.key: (example.split, example.label) for example in folder_layout(tmp_path, ClassificationConfig("folder"))}
    assert examples == {"train/a/1.png": ("train", "a"), "Validation/a/2.png": ("val", "a"), "test/b/3.png": ("test", "b")}


def test_split_folders_have_several_names(tmp_path):
    for name in ("Training/a/1.png", "valid/a/2.png", "TESTING/b/3.png"):
        save_image(tmp_path / name)
    assert [example.split for example in folder_layout(tmp_path, ClassificationConfig("folder"))] == ["test", "train", "val"]


def test_image_folder_next_to_split_folders_is_rejected(tmp_path):
    save_image(tmp_path / "train/a/1.png")
    save_image(tmp_path / "__MACOSX/._1.png")
    assert len(list(folder_layout(tmp_path, ClassificationConfig("folder")))) == 1
    save_image(tmp_path / "dev/a/2.png")
    with pytest.raises(UserError, match=r"'dev' is not a split, unlike train; use either class folders or split folders$"):
        list(folder_layout(tmp_path, ClassificationConfig("folder")))


def test_table_rejects_an_ambiguous_file_name(tmp_path):
    save_image(tmp_path / "left/1.png")
    save_image(tmp_path / "right/1.png")
    (tmp_path / "labels.csv").write_text("image,label\nright/1.png,x\n1.png,y\n")
    examples = table_layout(tmp_path, ClassificationConfig("csv"))
    assert next(examples).image == tmp_path / "right/1.png"
    with pytest.raises(UserError, match=r"the image '1\.png' may be left/1\.png or right/1\.png; write its path relative to"):
        next(examples)


def test_table_finds_images_by_file_name_in_any_folder(tmp_path):
    save_image(tmp_path / "images/imgs_part_1/PAT_1_2_3.png")
    (tmp_path / "metadata.csv").write_text("patient_id,img_id,diagnostic\nPAT_1,PAT_1_2_3.png,NEV\n")
    config = ClassificationConfig("csv", "metadata.csv", columns={"image": "img_id", "label": "diagnostic", "group": "patient_id"})
    (example,) = table_layout(tmp_path, config)
    assert example[:4] == ("PAT_1_2_3.png", "", "NEV", "PAT_1")
    assert example.image == tmp_path / "images/imgs_part_1/PAT_1_2_3.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,lable\na.png,x\n", "no column 'label' for the label; did you mean 'lable'?"),
        ("image,diagnosis\na.png,x\n", "no column 'label' for the label; its columns are: diagnosis, image"),
        ("", "no column 'image' for the image; its columns are: nothing"),
        ("image,label\nb.png,x\n", "the image 'b.png' is not below"),
        ("image,label,split\na.png,x,dev\n", "the split of a.png is 'dev'; allowed: train, val, test"),
        ("image,label\na.png,\udce9\n", "labels.csv: not UTF-8 (byte 18); download it again"),
    ],
)
def test_invalid_table_is_reported(tmp_path, text, message):
    save_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(message)):
        list(table_layout(tmp_path, ClassificationConfig("csv")))


def write_sheet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def sicap_folder(root):
    names = [f"16B000{n}_Block_Region_1_0_0_xini_1_yini_{n}.jpg" for n in range(3)]
    for n, (name, fold) in enumerate(zip(names, ("Validation/Val1/Train", "Validation/Val1/Test", "Test/Test"), strict=True)):
        save_image(root / "images" / name)
        values = [int(n == 0), int(n == 1), int(n == 2), 0, 0]
        write_sheet(root / "partition" / f"{fold}.xlsx", [("image_name", "NC", "G3", "G4", "G5", "G4C"), (name, *values)])
    return names


def test_sicap_uses_the_first_fold_and_the_highest_column(tmp_path):
    sicap_folder(tmp_path / "SICAPv2")
    write_sheet(tmp_path / "SICAPv2/wsi_labels.xlsx", [("slide_id", "patient_id"), ("16B0000", 7)])
    examples = list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3", "G4", "G5"])))
    assert [(e.split, e.label, e.group) for e in examples] == [
        ("train", "NC", "patient 7"),
        ("val", "G3", "16B0001"),
        ("test", "G4", "16B0002"),
    ]


def test_sicap_reports_a_missing_or_truncated_spreadsheet(tmp_path):
    sicap_folder(tmp_path / "SICAPv2")
    path = tmp_path / "SICAPv2/partition/Test/Test.xlsx"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"Test\.xlsx: cannot be read as xlsx .*; download it again"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3", "G4", "G5"])))
    write_sheet(path, [("image_name", "NC", "G3")])
    with pytest.raises(UserError, match=r"Test\.xlsx: no column 'G4'; its columns are: G3, NC, image_name$"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G4", "G5"])))
    path.unlink()
    with pytest.raises(UserError, match=r"Test\.xlsx does not exist"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3", "G4", "G5"])))
