"""Input of the data benchmarks: images of a given size, raw folders of them, and an index as large as the full mix."""

import gzip
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from data_prep.build.index import write_index
from data_prep.build.shard_writer import column
from src.data.shards import SCHEMA, Shards

FULL_MIX_RECORDS = 3_350_000
ANSWERS = ("yes", "no", "left lung", "no abnormality is seen in the upper lobe")


def make_jpeg(rng: np.random.Generator, *, height: int, width: int, grain: float = 2.5) -> bytes:
    """A JPEG of quality 90 with soft shapes and noise.

    The standard deviation `grain` of the noise, in grey levels, determines the bytes per pixel, which determine the decoding time:
    0.21 at 2.5 and 0.27 at 4. The published blood smears of BCCD have 0.07.
    """
    soft = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, grain, (height, width, 1))
    return simplejpeg.encode_jpeg((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8), quality=90, colorsubsampling="420")


def write_raw(folder: Path, count: int, *, size: tuple[int, int] | None = None, grain: float = 2.5) -> Path:
    """Writes `count` rows of a user's own dataset, each with its own image of `size` (height, width) if given."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "train.jsonl").open("w") as file:
        for n in range(count):
            row: dict[str, Any] = {"question": f"what is shown in picture {n} of {folder.name}?", "answer": ANSWERS[n % 4], "id": f"r{n}"}
            if size:
                row["image"] = f"{n}.jpg"
                (folder / row["image"]).write_bytes(make_jpeg(rng, height=size[0], width=size[1], grain=grain))
            file.write(json.dumps(row) + "\n")
    return folder


def findings(n: int) -> str:
    """53 words, the mean length in MIMIC-CXR's training split."""
    return f"study {n} " + " ".join(f"word{n * 7_919 * (k + 1) % 997}" for k in range(51))


def write_mimic_cxr(folder: Path, count: int, *, jpegs: Sequence[bytes] = ()) -> Path:
    """Writes `count` training studies of MIMIC-CXR: with one of `jpegs` each, or with 1.65 images each whose files are left out."""
    folder.mkdir()
    with (
        zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as reports,
        gzip.open(folder / "mimic-cxr-2.0.0-split.csv.gz", "wt") as splits,
        gzip.open(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "wt") as metadata,
    ):
        splits.write("dicom_id,study_id,subject_id,split\n")
        metadata.write("dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n")
        rng = np.random.default_rng(0)
        for n in range(count):
            subject, study = 10_000_000 + n // 3 * 131, 50_000_000 + n * 17_011 % 9_999_000
            patient = f"files/p{str(subject)[:2]}/p{subject}"
            head = f"FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  {findings(n + count)[:250]}\n \n"
            reports.writestr(f"{patient}/s{study}.txt", f"{head} FINDINGS:  {findings(n)}\n \n IMPRESSION:  {findings(n)[:60]}\n")
            for k in range(1 if jpegs or n % 20 > 12 else 2):
                dicom = rng.bytes(20).hex("-", 4)
                splits.write(f"{dicom},{study},{subject},train\n")
                metadata.write(f"{dicom},{subject},{study},CHEST (PA AND LAT),{('PA', 'LATERAL')[k]},3056,2544\n")
                if jpegs:
                    (folder / patient / f"s{study}").mkdir(parents=True)
                    (folder / patient / f"s{study}" / f"{dicom}.jpg").write_bytes(jpegs[n])
    return folder


def write_omnimedvqa(folder: Path, jpegs: Sequence[bytes], *, tables: int = 42) -> Path:
    """Writes the same images, with the texts as questions, as the zip of OmniMedVQA with one table per sub-set."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "OmniMedVQA.zip", "w") as archive:
        for table in range(tables):
            rows = []
            for n in range(table, len(jpegs), tables):
                path = f"Images/set {table}/{n}.jpg"
                archive.writestr(f"OmniMedVQA/{path}", jpegs[n])
                fields = {
                    "dataset": f"set {table}",
                    "question_id": f"set{table}_{n}",
                    "question_type": "Disease Diagnosis",
                    "image_path": path,
                }
                options = {f"option_{letter}": answer for letter, answer in zip("ABCD", ANSWERS, strict=True)}
                rows.append(fields | options | {"question": findings(n), "gt_answer": ANSWERS[n % 4], "modality_type": "X-Ray"})
            archive.writestr(f"OmniMedVQA/QA_information/Open-access/set {table}.json", json.dumps(rows, indent=4))
    return folder


def write_roco(folder: Path, jpegs: Sequence[bytes]) -> Path:
    """Writes the same images and texts in the layout of ROCO."""
    (folder / "data").mkdir(parents=True)
    rows = [{"image": {"bytes": jpeg, "path": None}, "caption": findings(n), "image_id": f"ROCO_{n}"} for n, jpeg in enumerate(jpegs)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-0.parquet")
    return folder


def replicate_shards(folder: Path, source: Shards, *, rows: int = FULL_MIX_RECORDS, shards: int = 818) -> Path:
    """Writes a source of `rows` records in `shards` tars; it repeats the index rows of `source`, and its tars are links to the only tar."""
    folder.mkdir(parents=True)
    times = -(-rows // len(source))
    columns = {field.name: pa.concat_arrays([source.arrow(field.name)] * times)[:rows] for field in SCHEMA}
    columns["shard"] = column(np.arange(rows) * shards // rows, pa.int32())
    write_index(folder, columns)
    tar = source.manifest["shards"][0]
    tars = [tar | {"name": f"train-{n:06d}.tar"} for n in range(shards)]
    for link in tars:
        os.link(source.folder / tar["name"], folder / link["name"])
    (folder / "manifest.json").write_text(json.dumps(source.manifest | {"shards": tars}))
    return folder


def run_in_process(function, *arguments):
    """The result of `function` in a new process, so that its memory is measured alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mb(name: str) -> float:
    """MB of this process for a field of /proc/self/status: VmHWM (peak), VmRSS, or RssAnon (private, without mapped files)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)
