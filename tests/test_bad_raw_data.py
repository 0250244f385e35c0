"""Damaged raw data through the whole build: each damage is quarantined or refused with its reason, harms no other record, and
once the data are right the same command gives what it would have given."""

import json
import os
import resource
import shutil
import signal
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import chunking, shard_writer
from data_prep.build import source as building
from data_prep.build.finalize import COUNTS
from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import WRITERS, medicat
from data_prep.phantom.writers.pmc_oa import FOLDER
from data_prep.shards import build_all
from src.data.shards import Shards
from src.runtime.errors import UserError
from tests.processes import server

SOURCES = ("pmc_oa", "quilt_1m", "medicat", "roco", "pubmedvision", "vqa_med_2019", "medqa", "pubmedqa", "ubench")
NUM = 24  # items of each split


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    for name in SOURCES:
        (out / name).mkdir()
        WRITERS[name].write(out / name, seed=0, num=dict.fromkeys(WRITERS[name].SIZES, NUM))
    return out


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(chunking, "SHARD_ROWS", 10)
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 4)


def build(raw: Path, out: Path, name: str, **settings) -> Shards:
    build_all(BuildConfig(**{"sources": [name], "raw": raw, "out": out, "workers": 1, "quarantine_limit": 0.3, **settings}))
    return Shards(out / name)


def texts(built: Shards) -> dict[str, str]:
    return {record.key: record.answer for record in map(built.__getitem__, range(len(built)))}


def reasons(folder: Path) -> list[str]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line)["reason"].partition(":")[0] for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def only(folder: Path, glob: str) -> Path:
    (path,) = folder.glob(glob)
    return path


def shorten(path: Path, kept: float) -> None:
    os.truncate(path, int(path.stat().st_size * kept))


def replace_line(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))


def change_row(path: Path, number: int, change: Callable[[dict], dict]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[number] = change(rows[number])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def huge(_: bytes) -> bytes:
    """A PNG of a few bytes whose header promises 3,600 megapixels."""
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def hole_in_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip") as archive:
        third = archive.infolist()[3].header_offset
    with (folder / "images.zip").open("r+b") as file:
        file.seek(third + 200)
        file.write(bytes(500))


def member_that_leads_out(folder: Path) -> None:
    """Into `images.zip`, and named by a row."""
    with zipfile.ZipFile(folder / "images.zip", "a") as archive:
        archive.writestr(f"{FOLDER}/../../x", b"not a picture")
    replace_line(folder / "pmc_oa.jsonl", 3, lambda line: json.dumps(json.loads(line) | {"image": "../../x"}).encode() + b"\n")


def latin_1_in_parquet(folder: Path) -> None:
    path = only(folder, "data/train-*")
    table = pq.read_table(path)
    captions = table["caption"].cast(pa.binary()).to_pylist()
    captions[5] = b"\xe9" + captions[5]
    column = pa.array(captions, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", column), path)


def latin_1_in_array(folder: Path) -> None:
    path = folder / "PubMedVision_Alignment_VQA.json"
    items = json.loads(path.read_text())
    items[5]["conversations"][1]["value"] += "@"
    path.write_bytes(json.dumps(items, indent=1).encode().replace(b"@", b"\xe9"))


def another_array(folder: Path) -> None:
    with (folder / "PubMedVision_Alignment_VQA.json").open("a") as file:
        file.write("[]\n")


def offsets_overwritten(folder: Path) -> None:
    """Of a column of texts, so that they point out of the file."""
    path = only(folder, "perception/*/*-00000-*")
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        column = next(iter(stream)).column("image_id")
        offsets = column.buffers()[1].to_pybytes()[:16]
    content = path.read_bytes()
    path.write_bytes(content.replace(offsets, struct.pack("<4i", -9, 1 << 30, -5, 7), 1))


def in_row(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    return lambda folder: change_row(only(folder, "data/train-*"), 5, change)


def in_picture(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return in_row(lambda row: row | {"image": {"bytes": change(row["image"]["bytes"]), "path": None}})


def in_line(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: replace_line(folder / name, 3, change)


def with_fields(**fields) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | fields).encode() + b"\n"


def latin_1(line: bytes) -> bytes:
    return b"\xe9" + line


FIGURES, LOOKUP = f"release/{medicat.TABLE}", "quilt_1M_lookup.csv"
QUESTIONS = "ImageClef-2019-VQA-Med-Training/All_QA_Pairs_train.txt"
QUARANTINED = {
    "hole in a zip": ("pmc_oa", hole_in_archive, "zip member damaged"),
    "zip member that leads out": ("pmc_oa", member_that_leads_out, "not an image that can be read"),
    "cut jpeg": ("roco", in_picture(lambda data: data[: len(data) // 2]), "broken image"),
    "empty jpeg": ("roco", in_picture(lambda data: b""), "image missing"),
    "png of 60,000 x 60,000": ("roco", in_picture(huge), "image of more than 50 megapixels"),
    "cut json line": ("medicat", in_line(FIGURES, lambda line: line[:60] + b"\n"), "not valid JSON"),
    "json nested without end": ("medicat", in_line(FIGURES, lambda line: b"[" * 200_000 + b"\n"), "not valid JSON"),
    "json of another shape": ("medicat", in_line(FIGURES, with_fields(oa_info=[1])), "row of another shape"),
    "latin-1 in json": ("pmc_oa", in_line("pmc_oa.jsonl", latin_1), "not UTF-8"),
    "latin-1 in a json array": ("pubmedvision", latin_1_in_array, "text is not valid Unicode"),
    "latin-1 in csv": ("quilt_1m", in_line(LOOKUP, latin_1), "text is not valid Unicode"),
    "latin-1 in text": ("vqa_med_2019", in_line(QUESTIONS, latin_1), "not UTF-8"),
    "latin-1 in parquet": ("roco", latin_1_in_parquet, "not UTF-8"),
    "duplicated key": ("roco", in_row(lambda row: row | {"image_id": "ROCO_00001"}), "duplicate key"),
    "no picture": ("roco", in_row(lambda row: row | {"image": None}), "image missing"),
    "cut csv line": ("quilt_1m", in_line(LOOKUP, lambda line: line[:20] + b"\n"), "not as many fields as columns"),
    "comma without quotes": ("quilt_1m", in_line(LOOKUP, lambda line: b"a, " + line), "not as many fields as columns"),
    "path that leads out": (
        "quilt_1m",
        in_line(LOOKUP, lambda line: b"a,../../b.jpg" + b"," * 9 + b"\n"),
        "image path is not inside the raw folder",
    ),
    "name too long": ("quilt_1m", in_line(LOOKUP, lambda line: b"a," + b"b" * 300 + b"," * 9 + b"\n"), "image missing"),
}


@pytest.mark.parametrize("damage", QUARANTINED)
def test_a_damaged_row_is_quarantined_alone(raw, tmp_path, damage):
    name, harm, reason = QUARANTINED[damage]
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    clean = build(tmp_path / "raw", tmp_path / "clean", name)
    harm(tmp_path / "raw" / name)
    built = build(tmp_path / "raw", tmp_path / "out", name)
    new = Counter(reasons(tmp_path / "out" / name)) - Counter(reasons(tmp_path / "clean" / name))
    assert dict(new) == {reason: 1}
    whole, left = texts(clean), texts(built)
    assert left.items() <= whole.items()
    assert len(left) == len(whole) - 1
    for found in built.manifest["counts"].values():
        assert found["in"] == sum(found[one] for one in COUNTS[1:])
    assert not list(tmp_path.rglob("x"))  # nothing was unpacked anywhere
    shutil.rmtree(tmp_path / "raw" / name)
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "out", name)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def cut_short(glob: str, kept: float = 0.6) -> Callable[[Path], None]:
    return lambda folder: shorten(only(folder, glob), kept)


REFUSED = {
    "zip": ("pmc_oa", cut_short("images.zip"), r"images\.zip is not a complete zip file; fetch it again"),
    "one of several zips": ("pubmedvision", cut_short("images_1.zip"), r"images_1\.zip is not a complete zip file; fetch it again"),
    "parquet": ("roco", cut_short("data/train-*"), r"train-00000-of-00001\.parquet of roco cannot be read as parquet"),
    "last parquet": (
        "roco",
        cut_short("data/test-*"),
        r"test-00000-of-00001\.parquet .* as parquet .*; fetch it again",
    ),
    "arrow": ("ubench", cut_short("perception/*/*-00001-*"), r"\.arrow of ubench cannot be read as arrow .*; fetch it again"),
    "arrow, overwritten": ("ubench", offsets_overwritten, r"\.arrow of ubench cannot be read as arrow .*; fetch it again"),
    "json lines for an array": (
        "pubmedvision",
        another_array,
        r"VQA\.json is not complete, valid JSON: '\[' follows where it ends; fetch it again",
    ),
    "quote left open": (
        "quilt_1m",
        in_line(LOOKUP, lambda line: b'"' + line),
        r"lookup\.csv of quilt_1m cannot be read as csv .*; fetch it again",
    ),
    "json array": ("pubmedvision", cut_short("*.json"), r"VQA\.json is not complete, valid JSON: it ends in the middle; fetch it again"),
    "json object": ("pubmedqa", cut_short("data/ori_pqal.json"), r"ori_pqal\.json is not complete, valid JSON: .*; fetch it again"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_truncated_file_is_refused_and_the_whole_one_continues(raw, tmp_path, damage):
    name, harm, sentence = REFUSED[damage]
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "clean", name)
    harm(tmp_path / "raw" / name)
    with pytest.raises(UserError, match=sentence):
        build(tmp_path / "raw", tmp_path / "out", name)
    assert not (tmp_path / "out" / name / "manifest.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    shutil.rmtree(tmp_path / "raw" / name)
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "out", name)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_tar_that_is_damaged_after_the_build_is_written_again(raw, tmp_path, damage):
    build(raw, tmp_path, "medqa")
    before = contents(tmp_path)
    index = tmp_path / "medqa" / "index.arrow"
    touched = index.stat().st_mtime_ns
    tar = tmp_path / "medqa" / "train-000001.tar"
    shorten(tar, 0.5) if damage == "cut" else tar.unlink()
    build(raw, tmp_path, "medqa")
    assert contents(tmp_path) == before
    assert index.stat().st_mtime_ns == touched  # an audit may have filled it


@pytest.mark.parametrize("limit", [300, 20_000])
def test_a_file_that_may_not_grow_is_a_full_disk(raw, tmp_path, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(UserError, match=r"no space is left for .*; free some and run the same command again, what is finished is kept"):
            build(raw, tmp_path / "out", "roco")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.tmp"))
    build(raw, tmp_path / "out", "roco")
    build(raw, tmp_path / "clean", "roco")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def build_and_die(raw: Path, out: Path) -> None:
    """Killed in the middle of the second shard."""
    chunking.SHARD_ROWS, chunking.CHUNK_ROWS = 10, 4

    def dying(folder, shard, packed):
        if shard == "train-000001":
            packed = chain([next(packed)], (os.kill(os.getpid(), signal.SIGKILL) for _ in "x"))
        return shard_writer.write_shard(folder, shard, packed)

    building.write_shard = dying
    build(raw, out, "roco")


@pytest.mark.slow
def test_a_build_that_is_killed_is_continued(raw, tmp_path):
    process = server.Process(target=build_and_die, args=(raw, tmp_path / "out"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    there = {path.name for path in (tmp_path / "out" / "roco").iterdir()}
    assert there == {"parts", "train-000000.tar", "train-000001.tar.tmp"}
    build(raw, tmp_path / "out", "roco")
    build(raw, tmp_path / "clean", "roco")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
