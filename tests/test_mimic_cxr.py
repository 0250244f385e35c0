"""MIMIC-CXR: sections of reports, the reader, its options, damaged files, the phantom and the check after a download by hand."""

import gzip
import hashlib
import json
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import sources
from data_prep.build.source import BuildConfig
from data_prep.download import mimic_cxr as download
from data_prep.download.datasets import DownloadConfig, download_all
from data_prep.phantom.writers import WRITERS
from data_prep.readers import READERS
from data_prep.readers.mimic_sections import parse_sections, report_text
from data_prep.readers.rows import FilteredRow, InvalidRow
from data_prep.shards import build_all
from src.data.record import PHANTOM_MARKER, SPLITS, Record
from src.data.shards import Shards
from src.runtime.errors import UserError

SECRET = "Zebrafish"  # in every report of `STUDIES`; no message may hold it
HEAD = "                                 FINAL REPORT\n EXAMINATION:  CHEST\n \n"
FULL = f"{HEAD} COMPARISON:  None.\n \n FINDINGS:  {SECRET} lungs\n are   clear.\n \n IMPRESSION:  {SECRET} normal.\n"
DICOM = "{:08x}-00000000-00000000-00000000-00000000"
STUDIES = [  # subject, study, split, report, views of the images
    (10000001, 50000001, "train", FULL, ["LATERAL", "", "AP", "PA"]),
    (10000001, 50000002, "train", f"{HEAD} IMPRESSION: {SECRET} only.\n", ["PA"]),
    (10000001, 50000003, "train", f"{SECRET} first.\n \n {SECRET} last.\n", ["PA"]),
    (10000002, 50000004, "train", " \n", ["PA"]),
    (10000002, 50000005, "train", FULL, []),
    (10000002, 50000006, "train", None, ["PA"]),
    (11000003, 50000007, "validate", FULL, ["AP"]),
    (19000004, 50000008, "test", FULL, ["AP"]),
]


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_raw(tmp_path / "mimic_cxr", STUDIES)


def write_raw(folder: Path, studies: list[tuple], *, letters: bool = False, compressed: bool = True) -> Path:
    folder.mkdir()
    splits, metadata = ["dicom_id,study_id,subject_id,split"], ["dicom_id,subject_id,study_id,Rows,ViewPosition"]
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for subject, study, split, report, views in studies:
            patient = f"files/p{str(subject)[:2]}/p{subject}"
            if report is not None:
                archive.writestr(f"{patient}/s{study}.txt", report)
            for n, view in enumerate(views):
                dicom = DICOM.format(16 * study + n)
                path = folder / patient / f"s{study}" / f"{dicom}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{study} {view}".encode())
                splits.append(f"{dicom},{'s' * letters}{study},{'p' * letters}{subject},{split}")
                metadata.insert(1, f"{dicom},{subject},{study},2544,{view}")  # in another order
    for name, lines in (("split", splits), ("metadata", metadata)):
        put_table(folder, name, lines, compressed=compressed)
    return folder


def put_table(folder: Path, name: str, lines: list[str], *, compressed: bool) -> None:
    content = "\n".join(lines).encode() + b"\n"
    path = folder / f"mimic-cxr-2.0.0-{name}.csv{'.gz' * compressed}"
    path.write_bytes(gzip.compress(content) if compressed else content)


def read(raw: Path, split: str = "train", *, section: str = "findings", images: str = "first") -> list:
    entry = replace(sources.load_sources()["mimic_cxr"], options={"section": section, "images": images})
    return list(READERS["mimic_cxr"](raw, split, entry))


def reasons(rows: list) -> dict[str, str]:
    return {row.key: row.reason for row in rows if not isinstance(row, Record)}


BOTH = f"{HEAD} FINDINGS: \n \n Clear.\n \n IMPRESSION: \n Normal.\n"


@pytest.mark.parametrize(
    ("report", "texts"),  # of findings, impression, both, official
    [
        (BOTH, ("Clear.", "Normal.", "Clear. Normal.", "Normal.")),
        (f"{HEAD} CONCLUSION: Normal.\n", ("", "Normal.", "Normal.", "Normal.")),
        (f"{HEAD} FINDINGS AND IMPRESSION: Clear.\n", ("", "Clear.", "Clear.", "Clear.")),
        (f"{HEAD} FINDINGS/IMPRESSION: Clear.\n", ("", "Clear.", "Clear.", "Clear.")),
        (f"{HEAD} CHEST, TWO VIEWS: Clear.\n", ("Clear.", "", "Clear.", "Clear.")),
        (f"{HEAD} PORTABLE UPRIGHT FILM: Clear.\n", ("Clear.", "", "Clear.", "Clear.")),
        (f"{HEAD} PRELIMINARY IMPRESSION: Normal.\n", ("", "Normal.", "Normal.", "Normal.")),
        (f"{HEAD} FINDINGS:\n IMPRESSION: Normal.\n", ("", "Normal.", "Normal.", "Normal.")),  # an empty section is dropped
        (f"{HEAD} FINDINGS: Old.\n ______________\n \n FINDINGS: New.\n", ("New.", "", "New.", "New.")),  # the last one counts
        (f"{HEAD} FINDINGS: Seen by Dr. ___ on ___.\n", ("Seen by Dr. on.", "", "Seen by Dr. on.", "Seen by Dr. on.")),
        ("FINAL REPORT\n TECHNIQUE: AP.\n \n One.\n \n Two\n lines.\n", ("", "", "", "Two lines.")),
        ("FINAL REPORT\n COMPARISON: ___.\n TECHNIQUE: AP.\n", ("", "", "", "")),
        ("FINAL REPORT\n COMPARISON: Older film.\n TECHNIQUE: AP.\n", ("", "", "", "Older film.")),
        ("No header.\n \n Clear lungs.\n", ("", "", "", "Clear lungs.")),
        ("  FINDINGS: two spaces\n", ("", "", "", "")),
    ],
)
def test_section_of_a_report_follows_the_official_rules(report, texts):
    chest = report.replace(" EXAMINATION:  CHEST\n", " EXAMINATION:  PA\n")
    assert tuple(report_text(chest, section) for section in ("findings", "impression", "both", "official")) == texts


def test_sections_are_named_in_order():
    report = f"{HEAD} HISTORY OF PRESENT ILLNESS: Cough: yes.\n FINDINGS:  \n IMPRESSION: Normal: NO.\n"
    assert [name for name, _ in parse_sections(report)] == ["preamble", "examination", "history", "impression"]
    assert [name for name, _ in parse_sections("Clear.")] == ["full report"]


@pytest.mark.slow
def test_reader_yields_one_record_per_study_with_frontal_views_first(raw):
    one, *_ = read(raw, images="all", section="both")
    assert (one.key, one.group, one.type, one.turns) == ("s50000001", "p10000001", "caption", [])
    assert one.caption == f"{SECRET} lungs are clear. {SECRET} normal."
    assert one.images == [f"50000001 {view}".encode() for view in ("PA", "AP", "LATERAL", "")]
    assert one.meta == {"views": ["PA", "AP", "LATERAL", ""]}
    (validate,), (test,) = read(raw, "val"), read(raw, "test")
    assert [(row.key, row.split, row.images) for row in (validate, test)] == [
        ("s50000007", "val", [b"50000007 AP"]),
        ("s50000008", "test", [b"50000008 AP"]),
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_ids_with_letters_and_both_kinds_of_tables_give_the_same_rows(raw, tmp_path, compressed):
    other = write_raw(tmp_path / "other", STUDIES, letters=True, compressed=compressed)
    assert read(other, images="all") == read(raw, images="all")


@pytest.mark.parametrize(
    ("section", "left_out"),
    [
        ("findings", {"s50000002": "no text for section=findings", "s50000003": "report without sections"}),
        ("impression", {"s50000003": "report without sections"}),
        ("both", {"s50000003": "report without sections"}),
        ("official", {}),
    ],
)
def test_studies_without_text_or_images_are_counted_by_reason(raw, section, left_out):
    rows = read(raw, section=section)
    invalid = {
        "s50000004": "report is empty",
        "s50000005": "images missing: the split table names no image of this study",
        "s50000006": "report missing: not in mimic-cxr-reports.zip",
    }
    assert reasons(rows) == left_out | invalid
    assert {row.key for row in rows if isinstance(row, FilteredRow)} == left_out.keys()
    assert len(rows) == 6


def test_rules_of_the_user_replace_the_choice_of_the_section(raw):
    start = FULL.index("lungs")
    rules = ["study_id,section,start,end", "s50000001,impression,,", "50000002,,0,0", f"50000007,,{start},{start + 5}"]
    (raw / "mimic-cxr-rules.csv").write_text("\n".join(rules) + "\n")
    rows = read(raw)
    assert rows[0].caption == f"{SECRET} normal."
    assert reasons(rows)["s50000002"] == "no text by mimic-cxr-rules.csv"
    assert [row.caption for row in read(raw, "val")] == ["lungs"]


@pytest.mark.parametrize("line", ["s50000001,,,", "s50000001,impression,0,0", "s50000001,,5,", "x,impression,,", "s50000001,impression"])
def test_invalid_rule_is_an_error(raw, line):
    (raw / "mimic-cxr-rules.csv").write_text(f"study_id,section,start,end\n{line}\n")
    with pytest.raises(UserError, match=r"mimic-cxr-rules\.csv: line 2 is not a rule; give study_id and either section or start and end"):
        read(raw)


def cut(path: Path, missing: int) -> None:
    path.write_bytes(path.read_bytes()[:-missing])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: cut(raw / "mimic-cxr-reports.zip", 40), r"mimic-cxr-reports\.zip: not a complete zip file; download it again"),
        (lambda raw: cut(raw / "mimic-cxr-2.0.0-split.csv.gz", 20), r"split\.csv\.gz of mimic_cxr: cannot be read as csv \(.*\); download"),
        (lambda raw: (raw / "mimic-cxr-2.0.0-split.csv.gz").unlink(), r"holds no mimic-cxr-2\.\*-split\.csv or \.csv\.gz; download it"),
        (lambda raw: (raw / "mimic-cxr-2.0.0-metadata.csv.gz").unlink(), r"holds no mimic-cxr-2\.\*-metadata\.csv or \.csv\.gz; download"),
        (
            lambda raw: put_table(raw, "split", ["dicom_id,study_id,subject_id,split", "0,1,1,validation"], compressed=True),
            r"split\.csv\.gz: unknown split 'validation'; did you mean 'validate'\?; download it again",
        ),
        (
            lambda raw: put_table(raw, "split", ["dicom_id,study,subject_id,split", "0,1,1,train"], compressed=True),
            r"no column 'study_id'; compare its header",
        ),
    ],
)
def test_damaged_file_is_an_error(raw, damage, message):
    damage(raw)
    with pytest.raises(UserError, match=message):
        read(raw)


def test_damaged_rows_and_members_are_quarantined_by_key(raw):
    content = (raw / "mimic-cxr-reports.zip").read_bytes()
    with zipfile.ZipFile(raw / "mimic-cxr-reports.zip") as archive:
        at = archive.infolist()[1].header_offset + 80
    (raw / "mimic-cxr-reports.zip").write_bytes(content[:at] + bytes(8) + content[at + 8 :])
    lines = gzip.decompress((raw / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()).decode().splitlines()
    put_table(raw, "split", [*lines, "0f,,10000001,train", "../x,50000009,10000001,train", "0f,50000009"], compressed=True)
    (raw / f"files/p10/p10000001/s50000003/{DICOM.format(16 * 50000003)}.jpg").unlink()
    reasons_by_key = reasons(read(raw, section="official"))
    assert reasons_by_key["s50000002"].startswith("zip member damaged: files/p10/p10000001/s50000002.txt")
    assert reasons_by_key["s50000003"].startswith("image missing: files/p10/p10000001/s50000003/")
    assert reasons_by_key["-0f"] == reasons_by_key["50000009-../x"] == "id is not valid: a row of mimic-cxr-2.0.0-split.csv.gz"
    assert sum(reason.startswith("wrong number of fields") for reason in reasons_by_key.values()) == 1


def build(raw: Path, out: Path, source: str = "mimic_cxr", **options: str) -> Shards:
    build_all(BuildConfig(["mimic_cxr"], raw, out, workers=1, quarantine_limit=0.3, options={source: options} if options else {}))
    return Shards(out / "mimic_cxr")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "mimic_cxr"
    folder.mkdir()
    WRITERS["mimic_cxr"].write(folder, seed=0, num={"train": 24, "val": 3, "test": 3})
    (folder / PHANTOM_MARKER).touch()
    return folder


@pytest.mark.slow
def test_another_option_is_another_build_with_its_own_counts(phantom, tmp_path):
    """A build with the same options is resumed. The manifest states what each choice leaves out."""
    one = build(phantom.parent, tmp_path)
    assert one.manifest["settings"]["options"] == {"section": "both", "images": "first"}
    assert one.manifest["filtered"] == {"report without sections": 1}
    assert build(phantom.parent, tmp_path).manifest == one.manifest
    other = build(phantom.parent, tmp_path, section="findings", images="all")
    assert other.manifest["settings"]["options"] == {"section": "findings", "images": "all"}
    assert other.manifest["filtered"] == {"no text for section=findings": 2, "report without sections": 1}
    assert other.manifest["fingerprint"] != one.manifest["fingerprint"]
    assert other.column("num_images").max() == 2
    for counts in (one.manifest["counts"], other.manifest["counts"]):
        assert {split: counts[split]["in"] for split in SPLITS} == {"train": 24, "val": 3, "test": 3}
        assert counts["train"]["quarantined"] == 3


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mimic_cxr", {"secton": "both"}, r"options\.mimic_cxr\.secton: unknown option; did you mean 'section'\?"),
        ("mimic_cxr", {"section": "finding"}, r"options\.mimic_cxr\.section=finding: unknown value; did you mean 'findings'\?"),
        ("slake", {"section": "both"}, r"options\.slake: not a source in sources=; allowed: mimic_cxr"),
    ],
)
def test_unknown_option_is_an_error_before_the_build(raw, tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        build(raw.parent, tmp_path / "out", source, **options)
    assert not (tmp_path / "out").exists()


def test_no_output_of_a_failed_build_contains_text_of_a_report(raw, tmp_path, capfd):
    """The images of `raw` cannot be decoded, so every study is quarantined."""
    with pytest.raises(UserError, match="are quarantined") as error:
        build(raw.parent, tmp_path / "out", section="official")
    quarantine = (tmp_path / "out/mimic_cxr/quarantine.jsonl").read_text()
    assert {json.loads(line)["key"] for line in quarantine.splitlines()} == {f"s{study}" for _, study, *_ in STUDIES}
    written = "".join(path.read_bytes().decode(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert SECRET not in "".join([*capfd.readouterr(), str(error.value), written])


def test_phantom_reproduces_the_faults(phantom):
    rows = read(phantom, section="official", images="all")
    kinds = Counter(type(row).__name__ for row in rows)
    assert kinds == {"Record": 21, "InvalidRow": 3}
    assert {row.reason.partition(":")[0] for row in rows if isinstance(row, InvalidRow)} == {
        "report is empty",
        "report missing",
        "images missing",
    }
    records = [row for row in rows if isinstance(row, Record)]
    assert all(row.meta["views"][0] in ("PA", "AP", "") for row in records)
    assert len({row.group for row in records}) < len(records)
    with zipfile.ZipFile(phantom / "mimic-cxr-reports.zip") as archive:
        reports = [archive.read(name).decode() for name in archive.namelist()]
    assert max(len(line) for report in reports for line in report.splitlines()) <= 79
    for mark in ("ADDENDUM:", "FINDINGS AND IMPRESSION:", "CHEST, TWO VIEWS:", "___"):
        assert any(mark in report for report in reports), mark


def verify(raw: Path) -> None:
    download_all(DownloadConfig(["mimic_cxr"], raw.parent, accept=["mimic_cxr"], images="all"))


def test_download_prints_the_steps(tmp_path):
    with pytest.raises(UserError, match=r"not redistributable and for credentialed users only .*give accept=mimic_cxr"):
        download_all(DownloadConfig(["mimic_cxr"], tmp_path))
    with pytest.raises(
        UserError, match=r"download it by hand into .*CITI course .* missing: mimic-cxr-reports\.zip, mimic-cxr-2\.\*-split"
    ):
        verify(tmp_path / "mimic_cxr")


@pytest.fixture
def complete(phantom, tmp_path) -> Path:
    """A copy of the phantom with the lists of checksums of both projects."""
    folder = tmp_path / "mimic_cxr"
    shutil.copytree(phantom, folder)
    for project, glob in (("cxr", "*.zip"), ("jpg", "*.csv*")):
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n" for path in folder.glob(glob)]
        (folder / f"SHA256SUMS-{project}.txt").write_text("".join([*lines, f"{'0' * 64} LICENSE.txt\n", f"{'0' * 64} files/x.jpg\n"]))
    return folder


def test_download_by_hand_is_verified_and_counted(complete, capsys):
    verify(complete)
    printed = capsys.readouterr().out
    assert "mimic_cxr: 3 files have the checksums of SHA256SUMS-cxr.txt, SHA256SUMS-jpg.txt" in printed
    assert (
        "train has 23 studies with 38 images; section=findings leaves 18, section=impression leaves 20, "
        "section=both leaves 20, section=official leaves 21" in printed
    )
    assert "mimic_cxr: train has 2 studies without a readable report" in printed
    assert "mimic_cxr: 1 reports without images; 48 images looked for" in printed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: (raw / "mimic-cxr-2.0.0-metadata.csv").write_text("x"),
            r"metadata\.csv: has the checksum sha256:.*; download it again",
        ),
        (lambda raw: next(raw.glob("files/*/*/*/*.jpg")).unlink(), r"1 of 48 images are missing in .*, such as files/p.*; download them"),
        (
            lambda raw: (raw / PHANTOM_MARKER).unlink(),
            r"train has 23 studies instead of 222,758; download mimic-cxr-2\.\*-split\.csv again",
        ),
    ],
)
def test_download_by_hand_with_wrong_files_is_an_error(complete, damage, message):
    damage(complete)
    with pytest.raises(UserError, match=message):
        verify(complete)


def test_sample_of_images_is_found_through_a_link(complete, monkeypatch, capsys):
    """The images are read in place from the folder of another download."""
    (complete / "files").rename(complete.parent / "elsewhere")
    (complete / "files").symlink_to(complete.parent / "elsewhere")
    monkeypatch.setattr(download, "SAMPLE", 227_835 // 10)  # every tenth study
    download_all(DownloadConfig(["mimic_cxr"], complete.parent, accept=["mimic_cxr"]))
    looked_for = int(capsys.readouterr().out.partition(" images looked for")[0].rsplit(maxsplit=1)[1])
    assert 5 <= looked_for < 15
    assert len(read(complete, section="official")) == 24
