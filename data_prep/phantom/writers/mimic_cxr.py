"""MIMIC-CXR as on PhysioNet: a zip of reports, two tables, and grey JPEG images in folders of patients and studies.

Reproduced faults: one table is plain and one is compressed, and some ids have the prefix of the folders; names and numbers in a
report are `___`; reports without headers, without findings, with findings and impression under one header, or with an addendum
on top; in train also empty reports, reports without images and images without a report; lateral views before frontal ones;
blank view positions.
"""

import csv
import gzip
import io
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg

from data_prep.phantom import draw
from data_prep.phantom.scene.wording import caption, noun, sentence
from data_prep.phantom.scene.world import Scene
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 250, "val": 20, "test": 20}  # studies
SPLITS = {"train": "train", "val": "validate", "test": "test"}
VIEWS = {"frontal": ("PA", "AP"), "lateral": ("LATERAL", "LL")}
SPLIT_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    splits, metadata = [], []
    with zipfile.ZipFile(out / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for start, split in enumerate(SPLITS):
            for n, (scene, rng) in enumerate(scenes(seed, "mimic_cxr", split, num[split], ("xray",))):
                fault = n % 120 if split == "train" else 0
                subject = 10_000_032 + (1_000_000 * start + n // 3) * 137_911 % 9_900_000
                study = 50_000_014 + (1_000_000 * start + n) * 7_919 % 9_999_000
                folder = f"files/p{str(subject)[:2]}/p{subject}"
                if fault != 3:
                    text = "" if fault == 1 else _report(scene, rng, n)
                    archive.writestr(zipfile.ZipInfo(f"{folder}/s{study}.txt"), text, zipfile.ZIP_DEFLATED)
                if fault == 2:
                    continue
                (out / folder / f"s{study}").mkdir(parents=True)
                for plane in ("lateral", "frontal") if n % 3 else ("frontal",):
                    dicom = "-".join(rng.bytes(4).hex() for _ in range(5))
                    pixels = draw.render(replace(scene, plane=plane), rng)[..., :1]
                    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorspace="GRAY")
                    (out / folder / f"s{study}" / f"{dicom}.jpg").write_bytes(jpeg)
                    ids = (f"s{study}", f"p{subject}") if n % 10 == 6 else (study, subject)
                    view = "" if n % 10 == 4 else VIEWS[plane][n % 2]
                    splits.append((dicom, *ids, SPLITS[split]))
                    metadata.append((dicom, subject, study, "CHEST (PA AND LAT)", view, *pixels.shape[:2]))
    (out / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(_csv(SPLIT_COLUMNS, splits), mtime=0))
    (out / "mimic-cxr-2.0.0-metadata.csv").write_bytes(_csv(METADATA_COLUMNS, metadata))


def _csv(columns: tuple[str, ...], rows: list[tuple]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode()


def _report(scene: Scene, rng: np.random.Generator, n: int) -> str:
    """A report in lines of at most 79 characters, each with a leading space; empty lines are one space."""
    findings = f"{caption(replace(scene, plane='frontal'), rng)} The bones of Dr. ___ are intact."
    impression = "No acute abnormality." if scene.normal else f"{sentence(noun(scene))} on the {scene.side}."
    body = {"FINDINGS": findings, "IMPRESSION": impression}
    if n % 20 == 5:
        return _lines(f"{'FINAL REPORT':>44}", f"As compared to ___. {findings}", impression)
    if n % 20 == 7:
        body = {"FINDINGS AND IMPRESSION": f"{findings} {impression}"}
    elif n % 20 == 9:
        body = {"CHEST, TWO VIEWS": findings, "CONCLUSION": impression}
    elif n % 20 == 11:
        body = {"IMPRESSION": impression}
    head = {"EXAMINATION": "CHEST (PA AND LAT)", "INDICATION": "___-year-old with cough", "COMPARISON": "None."}
    report = _lines(f"{'FINAL REPORT':>44}", *(f"{name}:  {text}" for name, text in (head | body).items()))
    addendum = _lines(f"{'FINAL REPORT':>44}", "ADDENDUM:  The report was telephoned to Dr. ___.", "_" * 78)
    return addendum + report if n % 20 == 13 else report


def _lines(*paragraphs: str) -> str:
    wrapped = ("\n ".join(textwrap.wrap(paragraph, 78, drop_whitespace=not paragraph.startswith(" "))) for paragraph in paragraphs)
    return "\n \n ".join(wrapped) + "\n"
