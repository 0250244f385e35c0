"""The reader of OmniMedVQA and its phantom: every fault of the layout ends where it should, packed and unpacked."""

import json
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep import sources
from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import omnimedvqa
from data_prep.readers import READERS, json_stream
from data_prep.readers.zip_members import ZipMembers
from data_prep.shards import build_all
from src.data.record import Record
from src.data.shards import Shards
from src.runtime.errors import UserError

ROOT = "OmniMedVQA"
OPEN, RESTRICTED = (f"QA_information/{access}-access" for access in ("Open", "Restricted"))


def question(number: int, subset: str = "A set", **changes) -> dict:
    fields = {
        "dataset": subset,
        "question_id": f"{subset}_{number:04d}",
        "question_type": "Disease Diagnosis",
        "question": f"What is shown in image {number}?",
        "gt_answer": "cyst",
        "image_path": f"Images/{subset}/{number} (a).png",
        "option_A": "nodule",
        "option_B": "cyst",
        "modality_type": "MR (Mag-netic Resonance Imaging)",
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


def write_files(raw: Path, files: dict[str, bytes], *, packed: bool) -> Path:
    raw.mkdir(exist_ok=True)
    if packed:
        with zipfile.ZipFile(raw / f"{ROOT}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"{ROOT}/{name}", content)
    for name, content in {} if packed else files.items():
        (raw / ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / ROOT / name).write_bytes(content)
    return raw


def files_of(rows: list[dict], name: str = f"{OPEN}/A set.json", **more: bytes) -> dict[str, bytes]:
    return {name: json.dumps(rows).encode()} | {row["image_path"]: row["image_path"].encode() for row in rows if "image_path" in row} | more


def read(raw: Path) -> list:
    return list(READERS["omnimedvqa"](raw, "train", sources.load_sources()["omnimedvqa"]))


def reasons(rows: list) -> list[tuple[str, str]]:
    return [(type(row).__name__, row.reason.partition(":")[0]) for row in rows if not isinstance(row, Record)]


each_layout = pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])


@each_layout
def test_record_has_the_fields_of_its_question(tmp_path, packed):
    rows = [
        question(0),
        question(1, option_C="polyp", dataset=None, modality_type=None, modality="ct", question_type="Modality Recognition"),
    ]
    first, second = read(write_files(tmp_path / "raw", files_of(rows), packed=packed))
    assert first == Record(
        key="A set_0000",
        source="omnimedvqa",
        split="train",
        images=[b"Images/A set/0 (a).png"],
        turns=[("What is shown in image 0?", "cyst")],
        choices=["nodule", "cyst"],
        type="finding",
        group="Images/A set/0 (a).png",
        meta={"dataset": "A set", "modality": "MR (Mag-netic Resonance Imaging)", "question_type": "Disease Diagnosis"},
    )
    assert (second.choices, second.type) == (["nodule", "cyst", "polyp"], "modality")
    assert second.meta == {
        "dataset": "A set",
        "modality": "ct",
        "question_type": "Modality Recognition",
    }  # the name of the table, and the key of the one odd record


@each_layout
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"option_B": None}, "no such option", id="option missing where gt_answer points"),
        pytest.param({"gt_answer": "Cyst."}, "no such option", id="answer equals no option"),
        pytest.param({"gt_answer": None}, "no such option", id="no answer"),
        pytest.param({"option_A": "cyst"}, "equal options", id="two right options"),
        pytest.param({"option_C": "nodule"}, "equal options", id="two equal wrong options"),
        pytest.param({"image_path": "Images/A set/gone.png"}, "image missing", id="image missing"),
        pytest.param({"image_path": None}, "image missing", id="no image path"),
    ],
)
def test_damaged_question_is_quarantined_alone(tmp_path, packed, changes, reason):
    files = files_of([question(0), question(1), question(2)])
    files[f"{OPEN}/A set.json"] = json.dumps([question(0), question(1, **changes), question(2)]).encode()
    rows = read(write_files(tmp_path / "raw", files, packed=packed))
    assert reasons(rows) == [("InvalidRow", reason)]
    assert [row.key for row in rows] == ["A set_0000", "A set_0001", "A set_0002"]


@each_layout
def test_damaged_table_ends_at_the_damage_and_the_others_follow(tmp_path, packed):
    files = files_of([question(0), question(1)]) | files_of([question(0, "B set")], f"{OPEN}/B set.json")
    name = f"{OPEN}/A set.json"
    files[name] = files[name][: files[name].index(b"A set_0001")]
    rows = read(write_files(tmp_path / "raw", files, packed=packed))
    assert [row.key for row in rows] == ["A set_0000", "A set.json", "B set_0000"]
    assert reasons(rows) == [("InvalidRow", "table damaged")]


@each_layout
def test_images_without_a_table_are_counted(tmp_path, packed):
    files = files_of(
        [question(0)], **{"Images/OCT & X-Ray 2017/a.png": b"1", "Images/OCT & X-Ray 2017/b.png": b"2", "Images/.DS_Store": b""}
    )
    rows = read(write_files(tmp_path / "raw", files, packed=packed))
    assert reasons(rows) == [("InvalidRow", "table missing")]
    assert rows[-1].key == "OmniMedVQA/Images/OCT & X-Ray 2017/"


@each_layout
def test_restricted_table_is_read_if_it_has_an_image_and_skipped_otherwise(tmp_path, packed):
    with_images = files_of([question(n, "here") for n in range(3)], f"{RESTRICTED}/here.json")
    without = {f"{RESTRICTED}/AIDA.json": json.dumps([question(n, "AIDA") for n in range(1200)]).encode()}
    del with_images["Images/here/0 (a).png"]
    rows = read(write_files(tmp_path / "raw", files_of([question(0)]) | with_images | without, packed=packed))
    assert [row.key for row in rows] == ["A set_0000", "AIDA", "here_0000", "here_0001", "here_0002"]
    assert reasons(rows) == [
        ("FilteredRow", "restricted sub-set 'AIDA' of 1,200 questions without images"),
        ("InvalidRow", "image missing"),
    ]


def test_archive_with_a_damaged_table_member_yields_the_other_tables(tmp_path):
    files = files_of([question(n) for n in range(300)]) | files_of([question(0, "B set")], f"{OPEN}/B set.json")
    raw = write_files(tmp_path / "raw", files, packed=True)
    path = raw / f"{ROOT}.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{ROOT}/{OPEN}/A set.json").header_offset
    content = bytearray(path.read_bytes())
    content[start + 1000 : start + 1100] = bytes(100)
    path.write_bytes(content)
    rows = read(raw)
    assert ("InvalidRow", "table damaged") in reasons(rows)
    assert "B set_0000" in [row.key for row in rows if isinstance(row, Record)]


def test_cut_archive_is_an_error(tmp_path):
    raw = write_files(tmp_path / "raw", files_of([question(0)]), packed=True)
    path = raw / f"{ROOT}.zip"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"OmniMedVQA\.zip: not a complete zip file; download it again"):
        read(raw)


def test_stream_of_a_member_is_that_member(tmp_path):
    files = {"a.json": bytes(range(256)) * 5000, "b.json": b"b"}
    with ZipMembers(write_files(tmp_path / "raw", files, packed=True) / f"{ROOT}.zip") as members:
        assert list(members.names()) == [f"{ROOT}/a.json", f"{ROOT}/b.json"]
        with members.open(f"{ROOT}/a.json") as stream:
            start = stream.read(1000)
            assert members.read(f"{ROOT}/b.json", "") == b"b"  # does not move the stream
            assert start + stream.read() == files["a.json"]
        with pytest.raises(UserError, match=r"holds no c\.json that can be read"):
            members.open("c.json")


def peak_bytes(folder: Path, records: int) -> int:
    rows = [question(n, image_path="Images/A set/one.png") for n in range(records)]
    raw = write_files(folder, {f"{OPEN}/A set.json": json.dumps(rows).encode(), "Images/A set/one.png": b"1"}, packed=True)
    del rows
    tracemalloc.start()
    count = sum(1 for _ in READERS["omnimedvqa"](raw, "train", sources.load_sources()["omnimedvqa"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == records
    return peak


@pytest.mark.slow
def test_tables_stream_in_constant_memory(tmp_path, monkeypatch):
    """The tables have 0.1 and 1 MB, so one that is read whole would take 0.9 MB more. `zipfile` holds up to a chunk of compressed data."""
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 14)
    peak_bytes(tmp_path / "warm", 10)
    assert peak_bytes(tmp_path / "large", 3000) < peak_bytes(tmp_path / "small", 300) + 4 * json_stream.CHUNK


def test_open_test_set_leaves_out_restricted_tables_with_images(tmp_path):
    restricted = files_of([question(7, "B set")], f"{RESTRICTED}/B set.json")
    raw = write_files(tmp_path / "raw", files_of([question(0)]) | restricted, packed=False)
    assert len(read(raw)) == 2
    record, filtered = READERS["omnimedvqa"](raw, "test", sources.load_sources()["omnimedvqa_open"])
    assert (record.key, record.split, record.source) == ("A set_0000", "test", "omnimedvqa_open")
    assert filtered.reason == "restricted sub-set 'B set' of 1 questions"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Shards, dict]:
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    (raw / "omnimedvqa").mkdir()
    omnimedvqa.write(raw / "omnimedvqa", seed=0, num={"train": 40})
    manifest = build_all(BuildConfig(sources=["omnimedvqa"], raw=raw, out=out, workers=1))["omnimedvqa"]
    return Shards(out / "omnimedvqa"), manifest


@pytest.mark.slow
def test_phantom_has_every_fault_of_the_original(built):
    shards, manifest = built
    counts = manifest["counts"]["train"]
    assert counts["in"] == counts["written"] + 3 == len(shards) + 3
    lines = [json.loads(line) for line in (shards.folder / "quarantine.jsonl").read_text().splitlines()]
    assert Counter(line["reason"].partition(":")[0] for line in lines) == {"no such option": 1, "equal options": 1}
    assert manifest["filtered"] == {"restricted sub-set 'AIDA' of 3 questions without images": 1}
    records = [shards.text(row) for row in range(len(shards))]
    assert {len(record.choices) for record in records} == {2, 3, 4}
    assert all(record.answer in record.choices for record in records)
    assert {record.type for record in records} == {"finding", "modality", "organ"}
    assert {"CT(Computed Tomography)", "MR (Mag-netic Resonance Imaging)"} < {record.meta["modality"] for record in records}
    assert set(manifest["subsets"]["records"]) == set(omnimedvqa.SUBSETS) == {record.meta["dataset"] for record in records}


def test_entry_states_the_sub_sets_of_the_open_part():
    entry = sources.load_sources()["omnimedvqa"]
    assert len(entry.subsets) == 42
    assert sum(entry.subsets.values()) == 88_984  # 88,996 in all; some counts are read off a chart
    assert entry.expected == {"train": 88_996}
    assert set(omnimedvqa.SUBSETS) <= set(entry.subsets)
