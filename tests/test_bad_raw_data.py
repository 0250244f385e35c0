"""Builds from damaged raw data: each damage is quarantined or rejected with its reason and affects no other record. With repaired
data, the same command gives the same bytes as a clean build."""

import io
import json
import multiprocessing
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
from PIL import Image

from data_prep.build import chunking, encode, shard_writer
from data_prep.build import source as building
from data_prep.build.finalize import COUNTS
from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import WRITERS, medicat
from data_prep.phantom.writers.pmc_oa import FOLDER
from data_prep.readers.hash_set import HashSet
from data_prep.readers.rows import InvalidRow, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.shards import build_all
from data_prep.sources import Licence, Source
from src.data.record import Record
from src.data.shards import Shards
from src.runtime.errors import UserError

SOURCES = ("pmc_oa", "quilt_1m", "medicat", "roco", "pubmedvision", "vqa_med_2019", "medqa", "pubmedqa", "ubench")
NUM = 24  # items per split


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw")
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


def answers(built: Shards) -> dict[str, str]:
    return {record.key: record.answer for record in map(built.__getitem__, range(len(built)))}


def reasons(folder: Path) -> list[str]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line)["reason"].partition(":")[0] for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def single_file(folder: Path, glob: str) -> Path:
    (path,) = folder.glob(glob)
    return path


def truncate(path: Path, fraction: float) -> None:
    os.truncate(path, int(path.stat().st_size * fraction))


def replace_line(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))


def change_row(path: Path, number: int, change: Callable[[dict], dict]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[number] = change(rows[number])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def huge_png(_: bytes) -> bytes:
    """A PNG of a few bytes whose header states 3,600 megapixels."""
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def overwrite_zip_member(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip") as archive:
        offset = archive.infolist()[3].header_offset
    with (folder / "images.zip").open("r+b") as file:
        file.seek(offset + 200)
        file.write(bytes(500))


def add_member_outside(folder: Path) -> None:
    """Adds a member with a path outside the folder to `images.zip` and to a row."""
    with zipfile.ZipFile(folder / "images.zip", "a") as archive:
        archive.writestr(f"{FOLDER}/../../x", b"not an image")
    replace_line(folder / "pmc_oa.jsonl", 3, lambda line: json.dumps(json.loads(line) | {"image": "../../x"}).encode() + b"\n")


def latin_1_in_parquet(folder: Path) -> None:
    path = single_file(folder, "data/train-*")
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


def append_array(folder: Path) -> None:
    with (folder / "PubMedVision_Alignment_VQA.json").open("a") as file:
        file.write("[]\n")


def overwrite_offsets(folder: Path) -> None:
    """Makes the offsets of a string column point out of the file."""
    path = single_file(folder, "perception/*/*-00000-*")
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        column = next(iter(stream)).column("image_id")
        offsets = column.buffers()[1].to_pybytes()[:16]
    content = path.read_bytes()
    path.write_bytes(content.replace(offsets, struct.pack("<4i", -9, 1 << 30, -5, 7), 1))


def in_row(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    return lambda folder: change_row(single_file(folder, "data/train-*"), 5, change)


def in_image(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
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
    "overwritten zip member": ("pmc_oa", overwrite_zip_member, "zip member damaged"),
    "zip member outside the folder": ("pmc_oa", add_member_outside, "not an image that can be read"),
    "truncated jpeg": ("roco", in_image(lambda data: data[: len(data) // 2]), "broken image"),
    "empty jpeg": ("roco", in_image(lambda data: b""), "image missing"),
    "png of 60,000 x 60,000": ("roco", in_image(huge_png), "image of more than 50 megapixels"),
    "truncated json line": ("medicat", in_line(FIGURES, lambda line: line[:60] + b"\n"), "not valid JSON"),
    "deeply nested json": ("medicat", in_line(FIGURES, lambda line: b"[" * 200_000 + b"\n"), "not valid JSON"),
    "json field of another type": ("medicat", in_line(FIGURES, with_fields(oa_info=[1])), "unexpected field type"),
    "latin-1 in json": ("pmc_oa", in_line("pmc_oa.jsonl", latin_1), "not UTF-8"),
    "latin-1 in a json array": ("pubmedvision", latin_1_in_array, "text is not valid Unicode"),
    "latin-1 in csv": ("quilt_1m", in_line(LOOKUP, latin_1), "text is not valid Unicode"),
    "latin-1 in text": ("vqa_med_2019", in_line(QUESTIONS, latin_1), "not UTF-8"),
    "latin-1 in parquet": ("roco", latin_1_in_parquet, "not UTF-8"),
    "duplicated key": ("roco", in_row(lambda row: row | {"image_id": "ROCO_00001"}), "duplicate key"),
    "no image": ("roco", in_row(lambda row: row | {"image": None}), "image missing"),
    "truncated csv line": ("quilt_1m", in_line(LOOKUP, lambda line: line[:20] + b"\n"), "wrong number of fields"),
    "comma without quotes": ("quilt_1m", in_line(LOOKUP, lambda line: b"a, " + line), "wrong number of fields"),
    "path outside the folder": (
        "quilt_1m",
        in_line(LOOKUP, lambda line: b"a,../../b.jpg" + b"," * 9 + b"\n"),
        "image path is not inside the raw folder",
    ),
    "name too long": ("quilt_1m", in_line(LOOKUP, lambda line: b"a," + b"b" * 300 + b"," * 9 + b"\n"), "image missing"),
}


@pytest.mark.parametrize("damage", QUARANTINED)
@pytest.mark.slow
def test_damaged_row_is_quarantined_alone(raw, tmp_path, damage):
    name, apply_damage, reason = QUARANTINED[damage]
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    clean = build(tmp_path / "raw", tmp_path / "clean", name)
    apply_damage(tmp_path / "raw" / name)
    built = build(tmp_path / "raw", tmp_path / "out", name)
    new = Counter(reasons(tmp_path / "out" / name)) - Counter(reasons(tmp_path / "clean" / name))
    assert dict(new) == {reason: 1}
    expected, remaining = answers(clean), answers(built)
    assert remaining.items() <= expected.items()
    assert len(remaining) == len(expected) - 1
    for counts in built.manifest["counts"].values():
        assert counts["in"] == sum(counts[name] for name in COUNTS[1:])
    assert not list(tmp_path.rglob("x"))  # nothing was unpacked
    shutil.rmtree(tmp_path / "raw" / name)
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "out", name)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def truncated(glob: str, fraction: float = 0.6) -> Callable[[Path], None]:
    return lambda folder: truncate(single_file(folder, glob), fraction)


REJECTED = {
    "zip": ("pmc_oa", truncated("images.zip"), r"images\.zip: not a complete zip file; download it again"),
    "one of several zips": ("pubmedvision", truncated("images_1.zip"), r"images_1\.zip: not a complete zip file; download it again"),
    "parquet": ("roco", truncated("data/train-*"), r"train-00000-of-00001\.parquet of roco: cannot be read as parquet"),
    "last parquet": (
        "roco",
        truncated("data/test-*"),
        r"test-00000-of-00001\.parquet .* as parquet .*; download it again",
    ),
    "arrow": ("ubench", truncated("perception/*/*-00001-*"), r"\.arrow of ubench: cannot be read as arrow .*; download it again"),
    "arrow with overwritten offsets": ("ubench", overwrite_offsets, r"\.arrow of ubench: cannot be read as arrow .*; download it again"),
    "json lines for an array": (
        "pubmedvision",
        append_array,
        r"VQA\.json: not complete, valid JSON: more text follows its end, starting with '\['; download it again",
    ),
    "unclosed quote": (
        "quilt_1m",
        in_line(LOOKUP, lambda line: b'"' + line),
        r"lookup\.csv of quilt_1m: cannot be read as csv .*; download it again",
    ),
    "json array": ("pubmedvision", truncated("*.json"), r"VQA\.json: not complete, valid JSON: the file ends too early; download it again"),
    "json object": ("pubmedqa", truncated("data/ori_pqal.json"), r"ori_pqal\.json: not complete, valid JSON: .*; download it again"),
}


@pytest.mark.parametrize("damage", REJECTED)
@pytest.mark.slow
def test_truncated_file_is_rejected_and_the_build_resumes_with_the_complete_one(raw, tmp_path, damage):
    name, apply_damage, message = REJECTED[damage]
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "clean", name)
    apply_damage(tmp_path / "raw" / name)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "raw", tmp_path / "out", name)
    assert not (tmp_path / "out" / name / "manifest.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    shutil.rmtree(tmp_path / "raw" / name)
    shutil.copytree(raw / name, tmp_path / "raw" / name)
    build(tmp_path / "raw", tmp_path / "out", name)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_tar_is_rewritten(raw, tmp_path, damage):
    build(raw, tmp_path, "medqa")
    before = contents(tmp_path)
    index = tmp_path / "medqa" / "index.arrow"
    written_at = index.stat().st_mtime_ns
    tar = tmp_path / "medqa" / "train-000001.tar"
    truncate(tar, 0.5) if damage == "truncated" else tar.unlink()
    build(raw, tmp_path, "medqa")
    assert contents(tmp_path) == before
    assert index.stat().st_mtime_ns == written_at  # not rewritten: it may contain the results of an audit


@pytest.mark.parametrize("limit", [300, 20_000])
def test_file_size_limit_is_reported_as_full_disk(raw, tmp_path, limit):
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
    """Kills its own process in the middle of the second shard."""
    chunking.SHARD_ROWS, chunking.CHUNK_ROWS = 10, 4

    def write_or_die(folder, shard, chunks):
        if shard == "train-000001":
            chunks = chain([next(chunks)], (os.kill(os.getpid(), signal.SIGKILL) for _ in "x"))
        return shard_writer.write_shard(folder, shard, chunks)

    building.write_shard = write_or_die
    build(raw, out, "roco")


@pytest.mark.slow
def test_killed_build_is_resumed(raw, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(raw, tmp_path / "out"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    files = {path.name for path in (tmp_path / "out" / "roco").iterdir()}
    assert files == {"parts", "train-000000.tar", "train-000001.tar.tmp"}
    build(raw, tmp_path / "out", "roco")
    build(raw, tmp_path / "clean", "roco")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_folder_in_place_of_a_table_is_an_error(tmp_path):
    (tmp_path / "raw" / "own" / "train.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"source 'own': .*train\.jsonl cannot be used \(Is a directory\); correct it"):
        build(tmp_path / "raw", tmp_path / "out", "own")


def test_field_of_another_type_is_listed_with_its_type():
    @row_errors_as_invalid
    def make_record(entry, fields):
        return fields["text"].strip() + fields["number"]

    fields = {"text": ["a"], "number": 1, "empty": None}
    row = make_record(Source("own", "jsonl", {}), fields)
    assert row.reason == "unexpected field type: text is list, number is number, empty is null"


@pytest.mark.parametrize(("image", "type_name"), [("text", "text"), (7, "number"), (None, "null")])
def test_image_that_is_no_bytes_is_quarantined(image, type_name):
    record = Record("a", "own", "train", images=[image], turns=[("What?", "A scan")])
    (chunk,) = chunking.to_chunks([record], split="train", keys=HashSet())
    assert chunk.rejected == [("a", f"unexpected field type: image is {type_name}, not bytes")]


def test_reason_of_a_quarantined_row_is_one_line():
    rows = [InvalidRow("a", "image missing: line\nbreak.jpg"), InvalidRow("b", "empty answer")]
    (chunk,) = chunking.to_chunks(rows, split="train", keys=HashSet())
    assert chunk.rejected == [("a", "image missing: line break.jpg"), ("b", "empty answer")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("image file is truncated"), "broken image: image file is truncated"),
        (IndexError("list index out of range"), "broken image: it cannot be decoded"),
    ],
)
def test_reason_of_a_broken_image_has_no_text_of_an_exception(monkeypatch, error, reason):
    def fail(image):
        raise error

    monkeypatch.setattr(encode, "to_rgb", fail)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    with pytest.raises(encode.InvalidImage, match=reason):
        encode.open_image(buffer.getvalue())


@pytest.mark.parametrize(("credentialed", "reason"), [("yes", "the message is withheld"), ("no", "unexpected end of data")])
def test_message_about_a_broken_table_quotes_nothing_of_a_credentialed_one(tmp_path, credentialed, reason):
    path = tmp_path / "train.csv"
    path.write_text('id\n"a\n')
    entry = Source("own", "jsonl", {}, licence=Licence(credentialed=credentialed))
    with pytest.raises(UserError, match=rf"cannot be read as csv \(({reason})\); download it again"):
        list(table_rows(path, entry, required=["id"]))
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        list(table_rows(path, entry, required=["id"]))
