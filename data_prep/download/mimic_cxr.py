"""Checks the files of MIMIC-CXR, which a credentialed user downloads by hand."""

from collections import Counter
from contextlib import closing
from pathlib import Path

from data_prep.download.http import checksum
from data_prep.readers.mimic_cxr import OPTIONS, StudyTables, read_report
from data_prep.readers.mimic_sections import report_text
from data_prep.readers.rows import InvalidRow
from data_prep.readers.zip_members import ZipDirectory
from data_prep.sources import Source
from src.data.record import PHANTOM_MARKER, SPLITS
from src.runtime.errors import UserError
from src.runtime.progress import Progress

SAMPLE = 1000  # images to look for, evenly spaced over the studies


def verify_files(entry: Source, folder: Path, *, every_image: bool) -> None:
    """Compares the files with PhysioNet's checksums, the published counts and each other, and prints what each `section` leaves.

    Tables and the zip of reports are hashed. Images are only looked for, never read: a sample, or all of them with `every_image`.
    Raises `UserError` for a file with another checksum, a split with another number of studies, or missing images.
    """
    _verify_checksums(entry, folder)
    total = sum(entry.expected.values())
    counts = {split: Counter[str]() for split in SPLITS}
    looked_for, missing, example = 0, 0, ""
    with ZipDirectory(folder / "mimic-cxr-reports.zip") as reports, closing(StudyTables(folder, entry, reports)) as tables:
        for split in SPLITS:
            studies = Progress(tables.studies(split), total=entry.expected[split], unit="study", desc=f"{entry.name} {split}")
            for number, study in enumerate(studies):
                report = read_report(study, reports)
                counts[split].update(studies=1, images=len(study.images), unreadable=isinstance(report, InvalidRow))
                if isinstance(report, str):
                    counts[split].update(section for section in OPTIONS["section"] if report_text(report, section))
                if every_image or number % max(1, total // SAMPLE) == 0:
                    absent = [name for name, _ in study.images if not (folder / name).is_file()]
                    looked_for, missing, example = looked_for + len(study.images), missing + len(absent), example or "".join(absent[:1])
        without_images = sum(1 for _ in tables.without_images())
    for split, count in counts.items():
        left = ", ".join(f"section={section} leaves {count[section]:,}" for section in OPTIONS["section"])
        print(f"{entry.name}: {split} has {count['studies']:,} studies with {count['images']:,} images; {left}")
        if count["unreadable"]:
            print(f"{entry.name}: {split} has {count['unreadable']:,} studies without a readable report")
        if count["studies"] != entry.expected[split] and not (folder / PHANTOM_MARKER).exists():
            raise UserError(
                f"source '{entry.name}': {split} has {count['studies']:,} studies instead of {entry.expected[split]:,}; "
                "download mimic-cxr-2.*-split.csv again"
            )
    print(f"{entry.name}: {without_images:,} reports without images; {looked_for:,} images looked for")
    if missing:
        raise UserError(
            f"source '{entry.name}': {missing:,} of {looked_for:,} images are missing in {folder}, such as {example}; "
            "download them, or correct the link"
        )


def _verify_checksums(entry: Source, folder: Path) -> None:
    """Hashes every file at the top of the folder that a `SHA256SUMS*.txt` lists. Each project has such a list, with equal names in both."""
    expected: dict[str, set[str]] = {}
    lists = sorted(folder.glob("SHA256SUMS*.txt"))
    for path in lists:
        with path.open() as lines:
            for line in lines:
                digest, _, name = line.strip().partition(" ")
                if "/" not in (name := name.lstrip(" *")) and (folder / name).is_file():
                    expected.setdefault(name, set()).add(f"sha256:{digest.lower()}")
    if lists and not expected:
        raise UserError(f"{lists[0]}: lists no file at the top of {folder}; copy SHA256SUMS.txt of mimic-cxr and mimic-cxr-jpg here")
    for name, digests in expected.items():
        if (digest := checksum(folder / name)) not in digests:
            raise UserError(f"{folder / name}: has the checksum {digest}, which is not that of SHA256SUMS*.txt; download it again")
    compared = f"{len(expected)} files have the checksums of {', '.join(path.name for path in lists)}"
    print(f"{entry.name}: {compared if lists else 'no SHA256SUMS*.txt in the folder, checksums are not compared'}")
