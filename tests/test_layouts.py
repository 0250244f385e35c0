import re

import numpy as np
import pytest
from omegaconf import OmegaConf
from openpyxl import Workbook
from PIL import Image

from src.classification.layouts import ClassificationConfig, folder_layout, npz_array, npz_layout, table_layout
from src.classification.published_layouts import NIH_LABELS, cxr8_layout, medfmc_layout, sicap_layout
from src.runtime.errors import UserError
from src.runtime.paths import CONF
from src.runtime.schema import to_typed

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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz_raises_only_user_errors(tmp_path, save):
    medmnist(tmp_path / "a.npz", save=save)
    data = (tmp_path / "a.npz").read_bytes()
    messages = []
    for at in range(170):  # the header of the first member and its array
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            npz_array(tmp_path / "a.npz", "train_images")
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 40
    expected = "a.npz: cannot be read as npz (", "a.npz: no array", "a.npz: train_images does not fit into memory"
    assert all(any(part in message for part in expected) for message in messages)


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
    path.write_bytes(path.read_bytes()[:60] + bytes(40) + path.read_bytes()[100:])
    with pytest.raises(UserError, match=r"Test\.xlsx: cannot be read as xlsx .*; download it again"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3", "G4", "G5"])))
    write_sheet(path, [("image_name", "NC", "G3"), ("a", "b", 1)])
    (tmp_path / "SICAPv2/images/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"Test\.xlsx: a has a value that is not a number; download it again"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3"])))
    write_sheet(path, [("image_name", "NC", "G3")])
    with pytest.raises(UserError, match=r"Test\.xlsx: no column 'G4'; its columns are: G3, NC, image_name$"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G4", "G5"])))
    path.unlink()
    with pytest.raises(UserError, match=r"Test\.xlsx does not exist"):
        list(sicap_layout(tmp_path, ClassificationConfig("sicap", "SICAPv2", ["NC", "G3", "G4", "G5"])))


NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],"
NIH_HEADER += "OriginalImagePixelSpacing[x,y],"
NIH_CLASSES = list(NIH_LABELS)


def nih_folder(root, labels, *, header=NIH_HEADER, images="images_001/images", visits=1):
    """Patients numbered from 1, with one label text each and `visits` images; number 2 is the test list."""
    rows = [(f"{n:08d}_{visit:03d}.png", n, text) for n, text in enumerate(labels, 1) for visit in range(visits)]
    for name, *_ in rows:
        save_image(root / images / name, side=8)
    lines = [f"{name},{text},0,{n},58,M,PA,2682,2749,0.143,0.143," for name, n, text in rows]
    (root / "Data_Entry_2017_v2020.csv").write_text("\ufeff" + "\n".join([header, *lines]) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(name for name, n, _ in rows if n != 2))
    (root / "test_list.txt").write_text("\n".join(name for name, n, _ in rows if n == 2))


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("images", ["images", "images_001/images", "."])
def test_nih_header_with_brackets_is_read_by_name(tmp_path, images):
    nih_folder(tmp_path, ["Effusion|Hernia", "No Finding", "Mass"], images=images)
    examples = list(cxr8_layout(tmp_path, ClassificationConfig("cxr8", classes=NIH_CLASSES)))
    assert [(e.label, e.group) for e in examples] == [(("Effusion", "Hernia"), "patient 1"), ((), "patient 2"), (("Mass",), "patient 3")]
    assert examples[1].split == "test"
    assert examples[0].image.name == "00000001_000.png"
    eight = list(cxr8_layout(tmp_path, ClassificationConfig("cxr8", classes=NIH_CLASSES[:8])))
    assert [e.label for e in eight] == [("Effusion",), (), ("Mass",)]


def test_nih_validation_is_a_fixed_eighth_of_the_patients(tmp_path):
    nih_folder(tmp_path, ["Mass"] * 200, visits=2)
    examples = list(cxr8_layout(tmp_path, ClassificationConfig("cxr8", classes=NIH_CLASSES)))
    splits = {}
    for example in examples:
        splits.setdefault(example.group, set()).add(example.split)
    assert len(examples) == 400
    assert all(len(names) == 1 for names in splits.values())
    assert 15 <= sum(names == {"val"} for names in splits.values()) <= 35
    assert {group for group, names in splits.items() if names == {"test"}} == {"patient 2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "images_001/images/00000001_000.png").unlink(), r"1 of 2 images are not below .*, such as 00000001_000\.png"),
        (
            lambda root: (root / "test_list.txt").write_text(""),
            r"00000002_000\.png is neither in train_val_list\.txt nor in test_list\.txt",
        ),
        (lambda root: (root / "test_list.txt").unlink(), r"test_list\.txt does not exist"),
        (lambda root: (root / "test_list.txt").write_bytes(b"a\xe9"), r"test_list\.txt: not UTF-8 \(byte 1\); download it again"),
        (lambda root: replace_by_folder(root / "test_list.txt"), r"test_list\.txt: cannot be read \(Is a directory\); download it again"),
        (
            lambda root: (root / "Data_Entry_2017_v2020.csv").write_text(f"{NIH_HEADER}\n1.png,{'x' * 200_000},\n"),
            r"cannot be read as csv \(field larger than field limit .*\); download it again",
        ),
        (lambda root: nih_folder(root, ["Mass", "Efusion"]), r"00000002_000\.png has the label 'Efusion'; did you mean 'Effusion'"),
        (
            lambda root: nih_folder(root, ["Mass"], header="Image Index,Labels"),
            r"no column 'Finding Labels'; did you mean 'Labels'",
        ),
        (lambda root: (root / "Data_Entry_2017_v2020.csv").unlink(), r"Data_Entry_2017_v2020\.csv does not exist"),
        (
            lambda root: (root / "Data_Entry_2017_v2020.csv").write_text(f"{NIH_HEADER}\n1.png,Mass\n"),
            "line 2 has 2 columns; download it again",
        ),
    ],
)
def test_invalid_nih_folder_is_reported(tmp_path, change, message):
    nih_folder(tmp_path, ["Mass", "No Finding"])
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        list(cxr8_layout(tmp_path, ClassificationConfig("cxr8", classes=NIH_CLASSES)))


def medfmc(name):
    return to_typed(ClassificationConfig, OmegaConf.load(CONF / f"benchmark/medfmc_{name}.yaml"))


def medfmc_folder(root, name, lists, *, place="MedFMC_train"):
    folder = root / place / name
    for file, lines in lists.items():
        for line in lines:
            save_image(folder / "images" / (line[: line.index(".png")] + ".png"), side=8)
        (folder / file).write_text("\n".join(lines) + "\n")


COLON = "2019-{}-1-1-1_2019-05-28 17_55_39-lv1-47692-11609-5464-5695p{:04d}.png {}"


@pytest.mark.parametrize("place", ["MedFMC_train", "."])
def test_medfmc_lists_are_read_from_the_right(tmp_path, place):
    medfmc_folder(
        tmp_path,
        "colon",
        {"train_20.txt": [COLON.format(1, 7, 1)], "val_20.txt": [], "test_WithLabel.txt": [COLON.format(2, 8, 0)]},
        place=place,
    )
    train, test = medfmc_layout(tmp_path, medfmc("colon"))
    assert train[:4] == (COLON.format(1, 7, 1)[:-2], "train", "tumor", "2019-1-1-1-1_2019-05-28 17_55_39")
    assert (test.split, test.label) == ("test", "no tumor")
    endo = {
        "train_20.txt": ["13333_2021.11_0002_1.png 0 1 0 1"],
        "val_20.txt": [],
        "test_WithLabel.txt": ["13333_2021.12_0002_2.png 0 0 0 0"],
    }
    medfmc_folder(tmp_path, "endo", endo, place=place)
    train, test = medfmc_layout(tmp_path, medfmc("endo"))
    assert (train.label, train.group, test.label) == (("erosion", "tumor"), "13333_2021.11_0002", ())
    labels = ",".join("1" if n in (0, 18) else "0" for n in range(19))
    chest = {"trainval.txt": [f"DX.1.2.{n}.png {labels}" for n in range(40)], "test_WithLabel.txt": [f"5E.png {labels}"]}
    medfmc_folder(tmp_path, "chest", chest, place=place)
    examples = list(medfmc_layout(tmp_path, medfmc("chest")))
    assert {e.label for e in examples} == {("pleural_effusion", "consolidation")}
    assert {e.split for e in examples[:-1]} == {"train", "val"}
    assert examples[-1].group == "5E.png"


def test_medfmc_table_of_the_challenge_is_read_by_name(tmp_path):
    medfmc_folder(tmp_path, "endo", {"unused.txt": ["13333_2021.11_0002_1.png", "x y.png"]})
    header = "img_id,study_id,place,ulcer,erosion,polyp,tumor"
    rows = ["13333_2021.11_0002_1.png,s1,stomach,1,0,0,0", "x y.png,s2,stomach,0,0,0,1"]
    (tmp_path / "MedFMC_train/endo/endo_train.csv").write_text("\n".join([header, *rows]))
    examples = list(medfmc_layout(tmp_path, medfmc("endo")))
    assert [(e.split, e.label, e.group) for e in examples] == [("", ("ulcer",), "13333_2021.11_0002"), ("", ("tumor",), "s2")]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            {"train_20.txt": ["a b.png 1 0 0"], "val_20.txt": [], "test_WithLabel.txt": []},
            r"'a b\.png 1 0 0' does not end with 4 labels 0 or 1",
        ),
        ({"train_20.txt": ["a b.png"], "val_20.txt": [], "test_WithLabel.txt": []}, r"'a b\.png' does not end with 4 labels"),
        ({"endo_train.csv": ["img_id.png,study_id"]}, r"endo_train\.csv: no column 'img_id'"),
        (
            {"val_20.txt": ["a.png 1 0 0 0"]},
            r"neither train_20\.txt, val_20\.txt, test_WithLabel\.txt, nor trainval\.txt and .*, nor endo_train\.csv",
        ),
    ],
)
def test_invalid_medfmc_folder_is_reported(tmp_path, lists, message):
    medfmc_folder(tmp_path, "endo", lists)
    with pytest.raises(UserError, match=message):
        list(medfmc_layout(tmp_path, medfmc("endo")))


def test_medfmc_reports_a_missing_folder_image_and_value(tmp_path):
    with pytest.raises(UserError, match=r"neither endo nor \*/endo is a folder"):
        list(medfmc_layout(tmp_path, medfmc("endo")))
    medfmc_folder(tmp_path, "colon", {"unused.txt": ["a.png"]})
    table = tmp_path / "MedFMC_train/colon/colon_train.csv"
    for row, message in (("a.png,s,2", "a.png has the label value '2'; allowed: 0, 1"), ("b.png,s,1", "the image 'b.png' is not below")):
        table.write_text(f"img_id,study_id,tumor\n{row}\n")
        with pytest.raises(UserError, match=re.escape(message)):
            list(medfmc_layout(tmp_path, medfmc("colon")))


def test_message_about_a_very_long_image_name_can_be_read(tmp_path):
    save_image(tmp_path / "a.png")
    table = tmp_path / "labels.csv"
    for name, quoted in (("[" * 100_000, f"{'[' * 80}[...]"), ("a b " * 25_000, None)):
        table.write_text(f"image,label\n{name},x\n")
        with pytest.raises(UserError) as error:
            list(table_layout(tmp_path, ClassificationConfig("table")))
        message = str(error.value)
        assert message.startswith(f"{table}: the image '{name[:50]}")
        assert message.endswith("; it contains: a, a.png")
        assert len(message) < 4100
        assert quoted is None or message == f"{table}: the image '{quoted}' is not below {tmp_path}; it contains: a, a.png"
