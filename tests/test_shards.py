"""Shard builds: tars, index, quarantine and manifest are readable, their counts add up, and the bytes depend on the rows alone."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import pickle
import re
import tarfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from data_prep import sources
from data_prep.build import chunking, shard_writer, slurm
from data_prep.build import source as building
from data_prep.build.source import BuildConfig
from data_prep.build.state import BYTE_MODULES
from data_prep.readers import READERS
from data_prep.readers.hash_set import HashSet
from data_prep.shards import build_all, main
from src.data.record import PHANTOM_MARKER, QUESTION_TYPES, SPLITS, Record, tar_bytes, to_json
from src.data.shards import SCHEMA, Shards
from src.runtime.errors import UserError
from tests.fixtures import jpeg


@pytest.fixture
def raw(tmp_path) -> Path:
    """150 questions on 30 images; each question has no, one or two images."""
    folder = tmp_path / "raw" / "own"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for n in range(30):
        (folder / f"{n}.jpg").write_bytes(jpeg(rng, height=24, width=32))
    images = [lambda n: f"{n % 30}.jpg", lambda n: [], lambda n: [f"{n % 30}.jpg", f"{(n + 1) % 30}.jpg"]]
    lines = [{"id": f"q{n}", "image": images[n % 3](n), "question": f"What is number {n}?", "answer": "a cell"} for n in range(150)]
    for split, part in (("train", lines[:100]), ("val", lines[100:120]), ("test", lines[120:])):
        put_lines(folder, split, part)
    return tmp_path / "raw"


def put_lines(folder: Path, split: str, lines: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def build(raw: Path, out: Path, **settings) -> Shards:
    build_all(BuildConfig(**{"sources": ["own"], "raw": raw, "out": out, "workers": 1, **settings}))
    return Shards(out / "own")


@contextlib.contextmanager
def interrupted(monkeypatch, at: str) -> Iterator[None]:
    """Interrupts the build inside the block (Ctrl-C) while it writes the shard `at`."""

    def write_shard(folder, shard, chunks):
        if shard == at:
            next(chunks)
            raise KeyboardInterrupt
        return shard_writer.write_shard(folder, shard, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            yield


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(chunking, "SHARD_ROWS", 40)
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 7)


def test_records_round_trip_through_shards(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    assert len(built) == 150
    assert [len(built.rows(split)) for split in SPLITS] == [100, 20, 30]
    for row in (0, 1, 2, 99, 100, 149):
        record = built[row]
        assert (record.key, record.source, record.turns) == (f"q{row}", "own", [(f"What is number {row}?", "a cell")])
        assert record.split == SPLITS[built.column("split")[row]]
        assert len(record.images) == built.column("num_images")[row] == (1, 0, 2)[row % 3]
        text = built.text(row)
        assert text.images == []
        assert vars(text) == {**vars(record), "images": []}
    raw_image = (raw / "own" / "0.jpg").read_bytes()
    np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (raw_image, built[0].images[0])))


def test_index_describes_the_records(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    assert built.column("key")[7] == "q7"
    assert QUESTION_TYPES[built.column("type")[0]] == "other"
    assert built.column("text_length")[12] == len("What is number 12?") + len("\n") + len("a cell")
    assert (built.column("width")[0], built.column("height")[0], built.column("width")[1]) == (32, 24, 0)
    assert (built.column("image_hash") == 0).tolist() == [n % 3 == 1 for n in range(150)]
    assert built.column("group")[0] == built.column("group")[30]  # both show 0.jpg
    assert len(set(built.column("text_hash"))) == 150
    rows, hashes = built.image_hashes()
    assert Counter(rows.tolist()) == {n: (1, 0, 2)[n % 3] for n in range(150) if n % 3 != 1}
    assert set(hashes[rows == 2].tolist()) == {int(built.column("image_hash")[n]) for n in (2, 3)}  # 2.jpg and 3.jpg
    assert not built.column("offset").flags.owndata  # it is a view of the file


@pytest.mark.parametrize("reader", ["webdataset", "datasets"])
def test_other_libraries_read_the_same_samples(raw, tmp_path, reader, small_shards):
    built = build(raw, tmp_path / "out")
    tars = [str(tmp_path / "out" / "own" / shard["name"]) for shard in built.manifest["shards"]]
    assert len(tars) == 5
    if reader == "webdataset":
        samples = webdataset.WebDataset(tars, shardshuffle=False)
        members = {sample["__key__"]: [sample[name] for name in ("json", "jpg", "1.jpg") if name in sample] for sample in samples}
        read = {key: [json.loads(text), *images] for key, (text, *images) in members.items()}
    else:
        read = read_with_datasets(tars)
    expected = {record.key: record for record in (built[row] for row in range(len(built)))}
    assert read.keys() == expected.keys()
    for key, (text, *images) in read.items():
        assert text["turns"] == [list(turn) for turn in expected[key].turns]
        assert images == expected[key].images


def test_documented_webdataset_lines_stream_the_same_shards(raw, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data" / "phantom" / "shards"
    build(raw, root)
    shards = Shards((root / "own").rename(root / "pathvqa"))
    block = re.search(r"(?:    .*\n)*    import glob, webdataset.*\n(?:    .*\n)+", Path("docs/data.md").read_text()).group()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(textwrap.dedent(block), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shards)
    assert set(lines) == {f"{record.key} {json.loads(to_json(record))}" for record in (shards[row] for row in range(len(shards)))}


def read_with_datasets(tars: list[str]) -> dict:
    """The features are explicit because `datasets` infers them from the first samples and expects all samples to be alike."""
    members = {
        "__key__": datasets.Value("string"),
        "json": datasets.Json(),
        "jpg": datasets.Image(decode=False),
        "1.jpg": datasets.Image(decode=False),
    }
    rows = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True, features=datasets.Features(members))
    return {row["__key__"]: [row["json"], *(row[name]["bytes"] for name in ("jpg", "1.jpg") if row.get(name))] for row in rows}


def test_meta_that_is_not_json_serialisable_is_rejected():
    record = Record("q", "own", "train", turns=[("What is shown?", "a cell")], meta={"depth": 2**70, "of": [1.5, None, "ü"]})
    assert chunking.record_fault(record) == ""
    record.meta = {1: "a key that is not text"}
    assert chunking.record_fault(record).startswith("meta cannot be written as JSON: ")


def test_tars_equal_those_of_tarfile(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    tar = tmp_path / "out" / "own" / "train-000000.tar"
    out = io.BytesIO()
    with tarfile.open(tar) as ours, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as theirs:
        for member in ours:
            info = tarfile.TarInfo(member.name)
            info.size = member.size
            theirs.addfile(info, ours.extractfile(member))
    assert out.getvalue().rstrip(b"\0") == tar.read_bytes().rstrip(b"\0")
    assert tar_bytes(built[2]) in tar.read_bytes()


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_or_interruptions(raw, tmp_path, monkeypatch, small_shards):
    build(raw, tmp_path / "one")
    build(raw, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with interrupted(monkeypatch, "train-000002"):
        build(raw, tmp_path / "interrupted")
    partial = contents(tmp_path / "interrupted" / "own")
    assert {name for name in partial if name.endswith(".tar")} == {"train-000000.tar", "train-000001.tar"}
    with pytest.raises(UserError, match=r"no manifest\.json, so no finished shards"):
        Shards(tmp_path / "interrupted" / "own")
    written = []
    monkeypatch.setattr(building, "write_shard", lambda *args: written.append(args[1]) or shard_writer.write_shard(*args))
    build(raw, tmp_path / "interrupted")
    assert written == ["train-000002", "val-000000", "test-000000"]
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "one")
    written.clear()
    build(raw, tmp_path / "interrupted")
    assert written == []


def test_missing_or_truncated_shards_are_rewritten(raw, tmp_path, small_shards):
    build(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    for name in ("manifest.json", "train-000001.tar"):
        (tmp_path / "out" / "own" / name).unlink()
    (tmp_path / "out" / "own" / "val-000000.tar").write_bytes(b"short")
    build(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["settings", "raw"])
@pytest.mark.slow
def test_changed_state_triggers_a_rebuild(raw, tmp_path, change, small_shards):
    old = build(raw, tmp_path / "out").manifest["fingerprint"]
    if change == "settings":
        built = build(raw, tmp_path / "out", max_side=16)
        assert max(Image.open(io.BytesIO(built[0].images[0])).size) == 16
    else:
        lines = (raw / "own" / "train.jsonl").read_text().splitlines()
        (raw / "own" / "train.jsonl").write_text("\n".join(lines[:30]) + "\n")
        built = build(raw, tmp_path / "out")
        assert [shard["name"] for shard in built.manifest["shards"]] == ["train-000000.tar", "val-000000.tar", "test-000000.tar"]
    assert built.manifest["fingerprint"] != old
    assert not (tmp_path / "out" / "own" / "train-000002.tar").exists() or change == "settings"


def test_state_covers_the_helper_modules_of_the_readers():
    modules = {path.stem for path in Path("data_prep/readers").glob("*.py")}
    readers = {reader.__module__.rpartition(".")[2] for reader in READERS.values()}
    assert modules - readers - {"__init__"} == {Path(module.__file__).stem for module in BYTE_MODULES if "readers" in module.__name__}


FAULTS = [
    ({"id": "no-answer", "question": "What?", "answer": " "}, "empty answer"),
    ({"id": "no-question", "question": "", "answer": "yes"}, "empty question"),
    ({"id": "no-image", "image": "x.jpg", "question": "What?", "answer": "yes"}, "image missing: x.jpg"),
    ({"id": "no-path", "image": {"bytes": "x"}, "question": "What?", "answer": "yes"}, "image is neither a path, a data URI nor bytes"),
    ({"id": "broken", "image": "broken.jpg", "question": "What?", "answer": "yes"}, "broken image: image file is truncated"),
    ({"id": "dot", "image": "dot.png", "question": "What?", "answer": "yes"}, "image of less than 8 pixels: 1 x 1"),
    ({"id": "words", "image": "words.jpg", "question": "What?", "answer": "yes"}, "not an image that can be read"),
    ({"id": "q0", "question": "Another question?", "answer": "yes"}, "duplicate key"),
    ({"id": "odd", "question": "half a \ud800 letter", "answer": "yes"}, "text is not valid Unicode"),
]


def test_unusable_rows_are_quarantined_with_reasons_and_counts_add_up(raw, tmp_path):
    folder = raw / "own"
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-200])
    (folder / "words.jpg").write_text("not an image")
    Image.new("L", (1, 1)).save(folder / "dot.png")
    near_duplicates = [
        {"id": "twin", "image": "0.jpg", "question": "what is  NUMBER 0?", "answer": "A cell"},  # equals q0 after normalisation
        {"id": "cousin", "image": "1.jpg", "question": "What is number 0?", "answer": "a cell"},  # another image
    ]
    put_lines(folder, "train", [line for line, _ in FAULTS] + near_duplicates)
    put_lines(folder, "test", [{"id": "q0", "image": "0.jpg", "question": "What is number 0?", "answer": "a cell"}])
    built = build(raw, tmp_path / "out", quarantine_limit=0.1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "own" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {(line["key"], line["split"]): line["reason"] for line in lines}
    expected = {(line["id"], "train"): reason for line, reason in FAULTS}
    assert {key: reason[: len(expected[key])] for key, reason in reasons.items()} == expected
    assert built.manifest["counts"]["train"] == {"in": 111, "written": 101, "quarantined": 9, "duplicates": 1, "filtered": 0}
    assert "cousin" in built.column("key")
    assert "twin" not in built.column("key")


def test_a_key_of_another_split_gets_its_split_in_front(raw, tmp_path):
    """Ids begin anew in the files of some data. The same content in another split is a leak, not a duplicate."""
    lines = [{"id": "q0", "image": "0.jpg", "question": "What is number 0?", "answer": "a cell"}]
    lines += [{"id": "q1", "image": "1.jpg", "question": "Where is it?", "answer": "left"}]
    put_lines(raw / "own", "test", [*lines, lines[0] | {"answer": "another cell"}])
    built = build(raw, tmp_path / "out")
    records = {record.key: record for record in (built[row] for row in built.rows("test").tolist())}
    assert {"test-q0", "test-q1"} <= set(records)
    assert (records["test-q1"].meta["id"], records["test-q1"].turns) == ("q1", [("Where is it?", "left")])
    assert built.manifest["counts"]["test"]["quarantined"] == 1
    assert built.manifest["notes"] == {chunking.REPEATED_KEY: 2}
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "own" / "quarantine.jsonl").read_text().splitlines()]
    assert (line["key"], line["split"], line["reason"]) == ("q0", "test", "duplicate key")


@pytest.mark.slow
def test_manifest_counts_licences_of_written_records(raw, tmp_path, small_shards):
    assert build(raw, tmp_path / "none").manifest["licences"] == {"": 150}
    fields = {"image": "0.jpg", "answer": "yes", "licence": "CC BY"}
    lines = [{**fields, "id": f"l{n}", "question": f"Is it {n}?"} for n in range(20)]
    broken = {**fields, "id": "no-image", "image": "x.jpg", "question": "What?"}
    put_lines(raw / "own", "val", [*lines, broken])
    assert build(raw, tmp_path / "out", workers=2).manifest["licences"] == {"": 150, "CC BY": 20}


def test_build_fails_above_the_quarantine_limit(raw, tmp_path):
    put_lines(raw / "own", "train", [{"id": f"x{n}", "image": f"x{n}.jpg", "question": "What?", "answer": "y"} for n in range(30)])
    with pytest.raises(UserError) as error:
        build(raw, tmp_path / "out")
    out = tmp_path / "out" / "own"
    assert str(error.value) == (
        "source 'own': 30 of 180 rows (16.7%) are quarantined, quarantine_limit=0.05 allows 5%; the most frequent reason is "
        f"'image missing' (30 rows), all are listed in {out / 'quarantine.jsonl'}; fix the raw data, or raise quarantine_limit=, "
        "and run the same command again"
    )
    assert not (out / "manifest.json").exists()
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 30
    for n in range(30):
        (raw / "own" / f"x{n}.jpg").write_bytes((raw / "own" / "0.jpg").read_bytes())
    assert build(raw, tmp_path / "out").manifest["counts"]["train"]["written"] + 29 == 130  # same text and image: 29 duplicates


@pytest.mark.parametrize("phantom", [False, True])
def test_missing_rows_are_reported(raw, tmp_path, monkeypatch, capsys, phantom):
    """A truncated JSON lines file is still valid, so that only the number of rows shows it."""
    own = sources.Source(
        "own", "jsonl", {split: [f"{split}.jsonl"] for split in SPLITS}, counts={"train": 200, "val": 20, "from": "a page"}
    )
    monkeypatch.setattr(sources, "load_sources", lambda: {"own": own})
    if phantom:
        (raw / "own" / PHANTOM_MARKER).touch()
    build(raw, tmp_path / "out")
    message = "own: train has 100 rows instead of 200; check that its raw files are complete\n"
    assert (message in capsys.readouterr().out) == (not phantom)


def test_missing_or_empty_raw_folder_is_an_error(raw, tmp_path):
    with pytest.raises(UserError, match=r"source 'pathvqa': the raw folder .*/raw/pathvqa does not exist; create it, or"):
        build(raw, tmp_path / "out", sources=["pathvqa"])
    (raw / "pathvqa").mkdir()
    with pytest.raises(UserError, match=r"source 'pathvqa': .* holds no rows; put files there that match one of data/train-\*\.parquet, "):
        build(raw, tmp_path / "out", sources=["pathvqa"])
    with pytest.raises(UserError, match=r"source 'nowhere' is not in sources\.yaml"):
        build(raw, tmp_path / "out", sources=["own", "nowhere"])
    assert not (tmp_path / "out" / "own").exists()  # all sources are checked before the first build


def test_settings_out_of_range_are_rejected(raw, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["sources=own", f"raw={raw}", f"out={tmp_path / 'out'}", "quality=0"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: quality=0: out of range; allowed: 1 to 100\n"
    with pytest.raises(UserError, match=r"out=.*: same folder as raw=; give another one"):
        build(raw, raw)


def test_folder_with_foreign_tars_is_not_touched(raw, tmp_path):
    (tmp_path / "out" / "own").mkdir(parents=True)
    (tmp_path / "out" / "own" / "foreign.tar").write_bytes(b"content")
    with pytest.raises(UserError, match="contains tars that this command did not build"):
        build(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == {"own/foreign.tar": b"content"}


def test_full_disk_leaves_no_partial_files(raw, tmp_path, monkeypatch, small_shards):
    build(raw, tmp_path / "whole")
    fsync, calls = os.fsync, Counter()

    def fail_at_sixth_call(descriptor):
        calls["fsync"] += 1
        if calls["fsync"] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at_sixth_call)
        with pytest.raises(UserError, match=r"no space is left for .*; free some and run the same command again"):
            build(raw, tmp_path / "out")
    files = contents(tmp_path / "out" / "own")
    assert not any(name.endswith(".tmp") for name in files)
    assert all(files[name] == contents(tmp_path / "whole" / "own")[name] for name in files)
    build(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_worker_is_reported_and_the_build_resumes(raw, tmp_path, monkeypatch, small_shards):
    def write_and_kill(folder, shard, chunks):
        if shard == "train-000001":
            for child in multiprocessing.active_children():  # processes of other tests may be among them
                child.kill()  # not os.kill: after the first kill, the pool itself ends the others
        return shard_writer.write_shard(folder, shard, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_shard", write_and_kill)
        with pytest.raises(UserError, match="a worker process was killed, most likely because memory ran out"):
            build(raw, tmp_path / "out", workers=2)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "own" / "manifest.json").exists()
    build(raw, tmp_path / "out", workers=2)
    build(raw, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_slurm_jobs_write_the_same_bytes(raw, tmp_path, small_shards):
    build(raw, tmp_path / "whole")
    config = BuildConfig(sources=["own"], raw=raw, out=tmp_path / "out", workers=1, jobs=2)
    (tmp_path / "out").mkdir()
    slurm.write_shards([sources.find_source("own", raw)], config, None, cluster="debug")
    tars = {path.name for path in (tmp_path / "out" / "own").glob("*.tar")}
    assert tars == {f"{name}.tar" for name in ("train-000000", "train-000001", "train-000002", "val-000000", "test-000000")}
    assert not (tmp_path / "out" / "own" / "manifest.json").exists()
    build_all(config)
    assert contents(tmp_path / "out" / "own") == contents(tmp_path / "whole" / "own")


def test_missing_or_unknown_executor_is_an_error(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="executor=slurm: sbatch is not installed on this machine; use executor=process"):
        build(raw, tmp_path / "out", executor="slurm")
    with pytest.raises(UserError, match="executor='slrum': unknown executor; did you mean 'slurm'"):
        build(raw, tmp_path / "out", executor="slrum")


def test_tar_keys_are_valid_and_distinct():
    assert chunking.tar_key("abc-1_X") == "abc-1_X"
    names = [chunking.tar_key(key) for key in ("a.b", "a/b", "a b", "ä", "x" * 200, "x" * 201, "../../etc")]
    assert len(set(names)) == len(names)
    assert all(len(name) <= chunking.KEY_LENGTH and name.replace("-", "").replace("_", "").isalnum() for name in names)


def test_original_key_is_kept_in_meta(raw, tmp_path):
    put_lines(raw / "own", "val", [{"id": "scan/1.png", "question": "q", "answer": "a"}])
    built = build(raw, tmp_path / "out")
    record = built[built.rows("val")[-1]]
    assert record.meta == {"id": "scan/1.png"}
    assert record.key.startswith("scan_1_png-")


def test_hash_set_behaves_like_a_set():
    rng = np.random.default_rng(0)
    values = [0, 1, 2**64 - 2, *rng.integers(0, 2000, 4000).tolist()]
    hash_set, reference = HashSet(), set()
    for value in values:
        assert hash_set.add(value or 1) == ((value or 1) not in reference)
        reference.add(value or 1)


def test_shards_pickle_as_their_path(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    again = pickle.loads(pickle.dumps(built))
    assert again[3].key == "q3"
    assert len(pickle.dumps(built)) < 300


def test_number_of_open_files_is_bounded(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "SHARD_ROWS", 5)
    monkeypatch.setattr("src.data.shards.OPEN_FILES", 3)
    built = build(raw, tmp_path / "out")
    assert len(built.manifest["shards"]) == 30
    before = len(os.listdir("/proc/self/fd"))
    assert [built.text(row).key for row in range(0, 150, 4)] == [f"q{n}" for n in range(0, 150, 4)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_missing_and_changed_shards_are_named_in_errors(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    tar = tmp_path / "out" / "own" / "val-000000.tar"
    with tar.open("r+b") as file:  # another sample at the indexed position
        content = file.read()
        file.seek(0)
        file.write(content.replace(b'"key":"q100"', b'"key":"x100"'))
    with pytest.raises(UserError, match=r"val-000000\.tar: does not match its index; build it again"):
        built[100]
    os.truncate(tar, 512)
    with pytest.raises(UserError, match="does not match its index"):
        built.text(101)
    (tmp_path / "out" / "own" / "test-000000.tar").unlink()
    with pytest.raises(UserError, match=r"test-000000\.tar: listed in the manifest but missing"):
        built[149]
    (tmp_path / "out" / "own" / "index.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match="broken index or manifest"):
        Shards(tmp_path / "out" / "own")


def test_decontaminate_excludes_leaks(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    path = tmp_path / "out" / "own" / "index.arrow"
    columns = {name: built._index.column(name) for name in SCHEMA.names}
    columns["leaks_into"] = pa.array(["pathvqa" if n % 10 == 0 else "" for n in range(len(built))])
    with pa.OSFile(str(path.with_suffix(".new")), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA))
    path.with_suffix(".new").replace(path)
    again = Shards(tmp_path / "out" / "own")
    assert len(again.rows("train", decontaminate=True)) == 90
    assert len(again.rows("train")) == 100


def test_shards_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(chunking, "SHARD_BYTES", 1000)
    records = [Record(f"k{n}", "s", "train", [bytes([n]) * size], [("q", "a")]) for n, size in enumerate((300, 300, 300, 300, 5000, 10))]
    chunks = list(chunking.to_chunks(iter(records), split="train", keys=HashSet()))
    sizes: dict[str, list[int]] = {}
    for chunk in chunks:
        sizes.setdefault(chunk.shard, []).extend(len(record.images[0]) for record in chunk.records)
    assert list(sizes.values()) == [[300, 300, 300], [300], [5000], [10]]
    assert [chunk.shard for chunk in chunks if chunk.last] == list(sizes)
