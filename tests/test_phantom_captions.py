"""The phantoms of the caption datasets, each through the reader of the dataset that it stands for, with that dataset's faults."""

import csv
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import sources
from data_prep.build.chunking import record_fault
from data_prep.phantom.writers import WRITERS, medicat
from data_prep.readers import READERS
from data_prep.readers.rows import FilteredRow, InvalidRow
from src.data.record import SPLITS, Record
from tests.test_phantom import files

NUM = {
    "quilt_1m": {"train": 100},
    "medicat": {"train": 100},
    "roco": {"train": 25, "val": 3, "test": 4},
    "iu_xray": {"train": 120},
    "pubmedvision": {"train": 100},
    "rocov2": {"train": 20, "val": 3, "test": 4},
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("captions")
    for name, num in NUM.items():
        put(out / name, name, num=num)
    return out


def put(folder: Path, name: str, *, num: dict[str, int], seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    WRITERS[name].write(folder, seed=seed, num=num)
    return folder


def rows(raw: Path, name: str, split: str = "train") -> list:
    entry = sources.load_sources()[name]
    return list(READERS[entry.reader](raw / name, split, entry))


def records(raw: Path, name: str, split: str = "train") -> list[Record]:
    return [row for row in rows(raw, name, split) if isinstance(row, Record) and not record_fault(row)]


def refused(raw: Path, name: str) -> Counter:
    """How many rows the build would leave out, by reason."""
    reasons = [row.reason if isinstance(row, InvalidRow | FilteredRow) else record_fault(row) for row in rows(raw, name)]
    return Counter(reason.partition(":")[0] for reason in reasons if reason)


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NUM)
@pytest.mark.slow
def test_the_bytes_are_a_function_of_the_seed(raw, tmp_path, name):
    few = dict.fromkeys(NUM[name], 4)
    same, other = (files(put(tmp_path / folder, name, num=few)) for folder in "ab")
    assert same == other
    assert files(put(tmp_path / "c", name, num=few, seed=1)) != same


@pytest.mark.parametrize("name", NUM)
@pytest.mark.slow
def test_the_reader_finds_what_was_written_and_the_build_would_accept_it(raw, name):
    splits = [split for split in SPLITS if rows(raw, name, split)]
    assert splits == [split for split in SPLITS if split in NUM[name]]
    entry = sources.load_sources()[name]
    assert all(any((raw / name).glob(glob)) for glob in entry.patterns)
    everything, wrong = rows(raw, name), refused(raw, name) - Counter({"not histology": 100})
    assert wrong.total() < 0.05 * len(everything)
    assert len({row.key for row in everything}) == len(everything)
    for record in records(raw, name):
        assert record.images
        assert min(min(Image.open(io.BytesIO(image)).size) for image in record.images) >= 96
        assert record.answer == record.answer.strip()


@pytest.mark.slow
def test_quilt_1m_has_several_captions_per_picture_and_frames_of_something_else(raw):
    lookup = table(raw / "quilt_1m/quilt_1M_lookup.csv")
    captions = Counter(row["image_path"] for row in lookup)
    assert set(captions.values()) == {1, 2}
    assert refused(raw, "quilt_1m") == {"not histology": 1, "image missing": 2}
    assert all("histology" in record.caption.lower() for record in records(raw, "quilt_1m"))
    videos = Counter(record.group for record in records(raw, "quilt_1m"))
    assert len(videos) == 20


@pytest.mark.slow
def test_medicat_is_mostly_compound_and_licensed_by_article(raw):
    lines = [json.loads(line) for line in (raw / "medicat/release" / medicat.TABLE).read_text().splitlines()]
    result = {record.key: record for record in records(raw, "medicat")}
    assert refused(raw, "medicat") == {"image missing": 1}
    assert {line["oa_info"]["oa"]["license"] for line in lines} == {"CC BY", "CC BY-NC", "CC BY-NC-ND", None}
    assert {record.licence for record in result.values()} == {"CC BY", "CC BY-NC", "CC BY-NC-ND", ""}
    papers = {(record.group, record.licence) for record in result.values()}
    assert len(papers) == len({record.group for record in result.values()}) == 33
    assert any(not line["s2_caption"] for line in lines)
    assert all(record.caption.startswith("Figure") for record in result.values())
    compound = [record for record in result.values() if "(b)" in record.caption]
    assert len(compound) == 75
    assert all(pixels(record.images[0]).shape[1] == 260 for record in compound)


@pytest.mark.parametrize(("name", "ids"), [("roco", "ROCO_000"), ("rocov2", "ROCOv2_2023_train_0000")])
def test_roco_tables_are_those_of_the_hub(raw, name, ids):
    (path,) = (raw / name / "data").glob("train-*.parquet")
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["caption"]["_type"] == "Value"
    assert all(record.key.startswith(ids) for record in records(raw, name))
    keys = [record.key for split in SPLITS for record in records(raw, name, split)]
    assert len(set(keys)) == len(keys) == sum(NUM[name].values())


def test_captions_of_roco_begin_with_a_blank_until_they_are_read(raw):
    stored = pq.read_table(next((raw / "roco/data").glob("train-*.parquet"))).to_pylist()
    assert all(row["caption"].startswith(" ") and row["caption"].endswith("\n") for row in stored)
    assert [record.caption for record in records(raw, "roco")] == [row["caption"].strip() for row in stored]


@pytest.mark.parametrize(("name", "says"), [("medicat", "Figure 2: {}"), ("rocov2", "{}")])
def test_every_20th_figure_is_one_of_roco(raw, name, says):
    theirs, ours = records(raw, name)[19], records(raw, "roco")[19]
    assert theirs.caption == says.format(ours.caption)
    assert pixels(theirs.images[0]).shape == pixels(ours.images[0]).shape
    assert np.abs(pixels(theirs.images[0]).astype(int) - pixels(ours.images[0])).mean() < 6  # ROCO's is a JPEG
    assert records(raw, name)[18].caption != says.format(records(raw, "roco")[18].caption)


def test_iu_xray_reports_have_two_views_and_holes(raw):
    reports = table(raw / "iu_xray/indiana_reports.csv")
    views = Counter(row["uid"] for row in table(raw / "iu_xray/indiana_projections.csv"))
    assert set(views.values()) == {1, 2}
    assert refused(raw, "iu_xray") == {"neither question nor caption": 1, "image missing": 1}
    assert any("XXXX" in row["findings"] for row in reports)
    assert any(not row["findings"] and row["impression"] for row in reports)
    result = records(raw, "iu_xray")
    assert not any("XXXX" in record.caption for record in result)
    assert len({record.group for record in result}) == len(result)


def test_iu_xray_shows_the_frontal_view_first(raw):
    frontal = {row["filename"]: row["projection"] == "Frontal" for row in table(raw / "iu_xray/indiana_projections.csv")}
    bytes_of = {path.read_bytes(): path.name for path in (raw / "iu_xray/images/images_normalized").iterdir()}
    both = [record for record in records(raw, "iu_xray") if len(record.images) == 2]
    assert both
    assert all([frontal[bytes_of[image]] for image in record.images] == [True, False] for record in both)


def test_pubmedvision_has_rows_of_several_pictures_and_pictures_in_no_archive(raw):
    result = records(raw, "pubmedvision")
    several = [record for record in result if len(record.images) > 1]
    assert 0.1 < len(several) / len(result) < 0.35
    assert refused(raw, "pubmedvision") == {"image missing": 1}
    assert all(record.answer.count("Image ") == len(record.images) for record in several)
    assert {record.meta["modality"] for record in result} >= {"x-ray", "histology"}
    folders = set()
    for path in (raw / "pubmedvision").glob("images_*.zip"):
        with zipfile.ZipFile(path) as archive:
            folders |= {Path(name).parent.name for name in archive.namelist()}
    assert folders == {"images_0", "images_1"}
