"""MIMIC-CXR: chest X-ray studies of MIMIC-CXR-JPG with the reports of MIMIC-CXR. One record per study, grouped by patient.

Files: `mimic-cxr-reports.zip` (members `files/p10/p10000032/s50414267.txt`), `mimic-cxr-2.*-split.csv` and
`mimic-cxr-2.*-metadata.csv`, plain or compressed by gzip, and the images `files/p10/p10000032/s50414267/<dicom_id>.jpg`. Ids in
the tables may carry `p` and `s`. An optional table `mimic-cxr-rules.csv` holds rules for single studies (`mimic_sections.py`).

Options: `section`, the part of the report that becomes the caption (findings, impression, both or official), and `images` of a
study: all, or the first only. Frontal views come first. A study whose report lacks the section is filtered.

The tables are joined in a temporary SQLite database on disk, whose cache of 2 MB bounds the memory. No message holds text of a report.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data_prep.readers.mimic_sections import HEADER, PRIORITY, Rule, read_rules, report_text
from data_prep.readers.raw_files import all_images, image_file
from data_prep.readers.rows import FilteredRow, InvalidRow, Row
from data_prep.readers.tables import table_rows
from data_prep.readers.zip_members import ZipDirectory
from data_prep.sources import Source
from src.data.record import Record
from src.runtime.errors import UserError, suggest

OPTIONS = {"section": tuple(PRIORITY), "images": ("first", "all")}
SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
RULES = "mimic-cxr-rules.csv"
# In the order of ViLMedic. Views that are not in this list come last.
VIEWS = ["PA", "AP", "LATERAL", "LL", "AP AXIAL", "AP LLD", "AP RLD", "PA RLD", "PA LLD", "LAO", "RAO", "LPO", "XTABLE LATERAL", "SWIMMERS"]


@dataclass(frozen=True)
class Study:
    subject: int
    study: int
    images: list[tuple[str, str]]  # (file below the raw folder, view), frontal views first
    position: int | None  # of the report in the zip file

    @property
    def key(self) -> str:
        return f"s{self.study}"


class StudyTables:
    """The joined tables of a raw folder. Use within `contextlib.closing`."""

    def __init__(self, raw: Path, entry: Source, reports: ZipDirectory):
        """Raises `UserError` for a table that is missing or damaged, or names an unknown split."""
        self.invalid: list[InvalidRow] = []
        self.database = sqlite3.connect("", isolation_level=None)  # a temporary file
        try:
            self._fill(raw, entry, reports)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.database.close()

    def _fill(self, raw: Path, entry: Source, reports: ZipDirectory) -> None:
        key = "PRIMARY KEY (subject, study, dicom)) WITHOUT ROWID"
        self.database.execute(f"CREATE TABLE images (subject INTEGER, study INTEGER, dicom TEXT, split TEXT, view TEXT DEFAULT '', {key}")
        self.database.execute("CREATE TABLE reports (study INTEGER PRIMARY KEY, position INTEGER)")
        self.database.execute("BEGIN")
        insert = "INSERT OR IGNORE INTO images (split, subject, study, dicom) VALUES (?, ?, ?, ?)"
        self.database.executemany(insert, self._rows(find_table(raw, entry, "split"), entry, "split"))
        update = "UPDATE images SET view = ? WHERE subject = ? AND study = ? AND dicom = ?"
        self.database.executemany(update, self._rows(find_table(raw, entry, "metadata"), entry, "ViewPosition"))
        members = ((re.search(rb"(?:^|/)s(\d{1,18})\.txt$", name), position) for name, position in reports.entries())
        numbers = ((int(match[1]), position) for match, position in members if match)
        self.database.executemany("INSERT OR REPLACE INTO reports VALUES (?, ?)", numbers)

    def _rows(self, path: Path, entry: Source, column: str) -> Iterator[tuple[str, int, int, str]]:
        """(value of `column`, subject, study, dicom) of each row of a table; its invalid rows go to `invalid`."""
        for row in table_rows(path, entry, required=["dicom_id", "study_id", "subject_id", column]):
            if isinstance(row, InvalidRow):
                self.invalid.append(row)
                continue
            subject, study = re.fullmatch(r"p?(\d{1,18})", row["subject_id"]), re.fullmatch(r"s?(\d{1,18})", row["study_id"])
            if not (subject and study and re.fullmatch(r"[0-9a-f-]+", row["dicom_id"])):
                key = f"{row['study_id']}-{row['dicom_id']}"[:80]
                self.invalid.append(InvalidRow(key, f"id is not valid: a row of {path.name}"))
            elif column == "split" and row["split"] not in SPLIT_NAMES:
                raise UserError(f"{path}: unknown split '{row['split']}'{suggest(row['split'], SPLIT_NAMES)}; download it again")
            else:
                yield row[column], int(subject[1]), int(study[1]), row["dicom_id"]

    def studies(self, split: str) -> Iterator[Study]:
        """The studies of a split that have images, ordered by patient and study."""
        query = "SELECT subject, study, position, view, dicom FROM images LEFT JOIN reports USING (study) WHERE split = ?"
        official = next(name for name, ours in SPLIT_NAMES.items() if ours == split)
        rows = self.database.execute(f"{query} ORDER BY subject, study", (official,))
        for (subject, study, position), images in groupby(rows, key=lambda row: row[:3]):
            views = sorted((VIEWS.index(view) if view in VIEWS else len(VIEWS), dicom, view) for *_, view, dicom in images)
            folder = f"files/p{str(subject)[:2]}/p{subject}/s{study}"
            yield Study(subject, study, [(f"{folder}/{dicom}.jpg", view) for _, dicom, view in views], position)

    def without_images(self) -> Iterator[InvalidRow]:
        """The studies that have a report and no image."""
        for (study,) in self.database.execute("SELECT study FROM reports WHERE study NOT IN (SELECT study FROM images)"):
            yield InvalidRow(f"s{study}", "images missing: the split table names no image of this study")


def find_table(raw: Path, entry: Source, name: str) -> Path:
    """The newest `mimic-cxr-2.*-<name>.csv`, plain or compressed."""
    paths = sorted([*raw.glob(f"mimic-cxr-2.*-{name}.csv"), *raw.glob(f"mimic-cxr-2.*-{name}.csv.gz")])
    if not paths:
        raise UserError(f"source '{entry.name}': {raw} holds no mimic-cxr-2.*-{name}.csv or .csv.gz; download it from MIMIC-CXR-JPG")
    return paths[-1]


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    """The rows of a split. What belongs to no split (invalid rows of a table, studies without images) is in train."""
    rules = read_rules(raw / RULES, entry) if (raw / RULES).exists() else {}
    for path in entry.tables(raw, split):
        with ZipDirectory(path) as reports, closing(StudyTables(raw, entry, reports)) as tables:
            for study in tables.studies(split):
                yield _make_record(raw, split, entry, study, reports, rules.get(study.study))
            if split == "train":
                yield from tables.invalid
                yield from tables.without_images()


def read_report(study: Study, reports: ZipDirectory) -> str | InvalidRow:
    """The report of a study, or an `InvalidRow` if it is missing, empty or damaged."""
    if study.position is None:
        return InvalidRow(study.key, f"report missing: not in {reports.path.name}")
    content = reports.read_at(study.position, study.key)
    if isinstance(content, InvalidRow):
        return content
    try:
        report = content.decode()
    except UnicodeDecodeError as error:
        return InvalidRow(study.key, f"report is not UTF-8: byte {error.start}")
    return report if report.strip() else InvalidRow(study.key, "report is empty")


def _make_record(raw: Path, split: str, entry: Source, study: Study, reports: ZipDirectory, rule: Rule | None) -> Row:
    report = read_report(study, reports)
    if isinstance(report, InvalidRow):
        return report
    section = entry.options["section"]
    caption = report_text(report, section, rule)
    if not caption:
        reason = f"no text for section={section}" if HEADER.search(report) else "report without sections"
        return FilteredRow(study.key, reason if rule is None else f"no text by {RULES}")
    chosen = study.images[:1] if entry.options["images"] == "first" else study.images
    images = all_images(image_file(raw, name, study.key) for name, _ in chosen)
    if isinstance(images, InvalidRow):
        return images
    views = [view for _, view in chosen]
    group, meta = f"p{study.subject}", {"views": views}
    return Record(key=study.key, source=entry.name, split=split, images=images, caption=caption, type="caption", group=group, meta=meta)
