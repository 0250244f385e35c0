"""Preparing the data: shards against PIL and webdataset's ShardWriter, and what memory and searching cost at full size."""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import webdataset
from PIL import Image

from data_prep import sources
from data_prep.audit import hamming_search
from data_prep.build import serialize
from data_prep.build.chunking import SHARD_ROWS, Chunk
from data_prep.build.encode import EncodedImage
from data_prep.build.process_pool import Map, process_map
from data_prep.build.shard_writer import write_shard
from data_prep.build.source import BuildConfig, build_source
from data_prep.shards import build_all
from experiments.bench.made import FULL, alone, memory, tiled, write_raw
from experiments.bench.measured import ROUNDS, Measured, in_turn, ratio, single
from src.data.record import Record
from src.data.shards import Shards

LARGE, SMALL = (768, 1024), (384, 288)  # pixels of a picture as it comes (height, width) and in the shards (width, height)
QUALITY = 90
TWO_PROCESSES = 4000  # pictures


def measure() -> Iterator[Measured]:
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        yield from one_core(folder)
        yield two_processes(folder)
        yield from writing(folder)
        yield growth(folder, "shards_memory_growth_text", 20_000, None)
        yield growth(folder, "shards_memory_growth_image", 5_000, (64, 64))
        yield from index(folder)
    yield search()


def one_core(folder: Path) -> Iterator[Measured]:
    """The whole build of a source against the usual script on the same files, in CPU seconds of one process."""
    for name, grain, count in (("shards_one_core", 1.5, 600), ("shards_one_core_grainy", 4.0, 600)):
        raw = write_raw(folder / name, count, size=LARGE, grain=grain)
        ours, peer = in_turn(partial(quietly, raw, folder / "ours"), partial(usual_way, raw, folder / "peer"))
        before = np.mean([path.stat().st_size for path in raw.glob("*.jpg")]) / 1024
        unit = f"images/s of 1024x768, {before:.0f} KiB, to 384x288; {psnr(folder / 'ours' / name, folder / 'peer'):.1f} dB apart"
        yield ratio(name, [count / s for s in ours], [count / s for s in peer], unit, target=">= 3.0")


def quietly(raw: Path, out: Path, *, mapped: Map | None = None, max_side: int = 384) -> Shards:
    """`make shards` of one source into an empty folder, without its table."""
    shutil.rmtree(out, ignore_errors=True)
    config = BuildConfig(sources=[raw.name], raw=raw.parent, out=out, workers=1, max_side=max_side, quality=QUALITY)
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.dict(os.environ, TQDM_DISABLE="1"):
        if mapped:
            build_source(sources.find_source(raw.name, raw.parent), config, mapped)
        else:
            build_all(config)
    return Shards(out / raw.name)


def usual_way(raw: Path, out: Path) -> None:
    """PIL decodes, resizes and encodes; webdataset writes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink, (raw / "train.jsonl").open() as lines:
        for line in lines:
            fields = json.loads(line)
            image = Image.open(raw / fields.pop("image")).convert("RGB").resize(SMALL, Image.Resampling.BICUBIC)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=QUALITY)
            sink.write({"__key__": fields["id"], "jpg": jpeg.getvalue(), "json": fields})


def psnr(ours: Path, peer: Path) -> float:
    """Mean over the pictures of both, decibels."""
    shards = Shards(ours)
    records = {record.key: record.images[0] for record in (shards[row] for row in range(len(shards)))}
    found = []
    for sample in webdataset.WebDataset([str(path) for path in sorted(peer.glob("*.tar"))], shardshuffle=False):
        a, b = (np.asarray(Image.open(io.BytesIO(data)), np.float64) for data in (sample["jpg"], records[sample["__key__"]]))
        assert a.shape == b.shape
        found.append(10 * math.log10(255**2 / np.square(a - b).mean()))
    return float(np.mean(found))


def two_processes(folder: Path) -> Measured:
    """Wall seconds with a pool of two that has started against one process; the raw files are links to the same pictures."""
    raw, few = folder / "two", folder / "shards_one_core"
    raw.mkdir()
    names = sorted(path.name for path in few.glob("*.jpg"))
    with (raw / "train.jsonl").open("w") as file:
        for n in range(TWO_PROCESSES):
            os.link(few / names[n % len(names)], raw / f"{n}.jpg")
            file.write(json.dumps({"image": f"{n}.jpg", "question": f"what is {n}?", "answer": "yes", "id": f"r{n}"}) + "\n")
    with process_map(2) as mapped:
        quietly(few, folder / "started", mapped=mapped)
        with process_map(1) as single_process:
            works = [partial(quietly, raw, folder / "out", mapped=one) for one in (mapped, single_process)]
            two, one = in_turn(*works, clock=time.perf_counter)
    unit = "images/s of 1024x768, two processes against one, wall clock"
    return ratio("shards_two_processes", [TWO_PROCESSES / s for s in two], [TWO_PROCESSES / s for s in one], unit, target=">= 1.8")


def writing(folder: Path) -> Iterator[Measured]:
    """No JPEG work: packing, index rows, checksums and tars of pictures of 8 KiB against ShardWriter."""
    jpeg = np.random.default_rng(0).bytes(8 << 10)
    few, many = 4_000, 64_000
    works = [partial(write, folder / "few", jpeg, few), partial(shard_writer, folder / "theirs", jpeg, few)]
    ours, peer, large = in_turn(*works, partial(write, folder / "many", jpeg, many))  # each removes what it wrote the last time
    tars = [str(path) for path in sorted((folder / "many").glob("*.tar"))]
    assert sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False)) == many
    us = [[s / n * 1e6 for s in seconds] for n, seconds in ((few, ours), (few, peer), (many, large))]
    yield ratio("shards_write", us[0], us[1], "us per sample of 8 KiB and its text; webdataset reads both", target=">= 5", cost=True)
    yield ratio("shards_write_growth", us[0], us[2], "us per sample of 4,000 (ours) and of 64,000 (peer)", target="<= 1.05", cost=True)


def write(folder: Path, jpeg: bytes, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with mock.patch.object(serialize, "encode_image", lambda data, **_: EncodedImage(data, *SMALL, 1)):
        for number, start in enumerate(range(0, count, SHARD_ROWS)):
            shard = f"train-{number:06d}"
            write_shard(folder, shard, packed(shard, jpeg, range(start, min(start + SHARD_ROWS, count))))


def packed(shard: str, jpeg: bytes, numbers: range) -> Iterator[tuple[Chunk, serialize.SerializedChunk]]:
    for start in range(numbers.start, numbers.stop, 64):
        chunk = Chunk(shard)
        for n in range(start, min(start + 64, numbers.stop)):
            chunk.records.append(Record(f"r{n}", "bench", "train", [jpeg], [(f"what is shown in picture {n}?", "a cell")], group=f"g{n}"))
        yield chunk, serialize.serialize_chunk(chunk, max_side=384, quality=QUALITY)


def shard_writer(folder: Path, jpeg: bytes, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink:
        for n in range(count):
            turns = [[f"what is shown in picture {n}?", "a cell"]]
            fields = {"key": f"r{n}", "source": "bench", "split": "train", "turns": turns, "type": "other", "group": f"g{n}"}
            sink.write({"__key__": f"r{n}", "jpg": jpeg, "json": fields})


def growth(folder: Path, name: str, few: int, size: tuple[int, int] | None) -> Measured:
    """Peak memory of building ten times as many records over that of building `few`."""
    peaks = []
    for count in (few, 10 * few):
        raw = write_raw(folder / f"{name}-{count}", count, size=size)
        words = ["sources=" + raw.name, f"raw={folder}", f"out={folder / 'grown'}", "workers=1"]
        built = subprocess.run([sys.executable, "-m", "experiments.bench.peak", *words], capture_output=True, text=True, check=True)
        peaks.append(float(built.stdout))
        shutil.rmtree(raw)
    unit = f"MB at {10 * few:,} records (ours) and at {few:,} (peer)"
    return Measured(name, peaks[1] / peaks[0], *[peaks[1] / peaks[0]] * 2, 1, peaks[1], peaks[0], unit, "<= 1.10")


def index(folder: Path) -> Iterator[Measured]:
    full = tiled(folder / "full", quietly(write_raw(folder / "hundred", 100), folder / "ours"))
    found = sorted(alone(opened, full) for _ in range(ROUNDS))
    milliseconds, grown = found[ROUNDS // 2][0], max(mb for _, mb in found)
    yield single("index_open_ms", milliseconds, f"ms to open an index of {FULL:,} rows", target="<= 100")
    yield single("index_open_mb", grown, "MB by which memory grew, mapped pages counted", target="<= 100")


def opened(folder: Path) -> tuple[float, float]:
    """Milliseconds and MB that opening takes in a process of its own."""
    before, begun = memory("VmRSS"), time.perf_counter()
    shards = Shards(folder)
    spent = time.perf_counter() - begun
    assert len(shards) == FULL
    return 1e3 * spent, memory("VmRSS") - before


def search() -> Measured:
    """Near-duplicates of 50,000 hashes among a million, of which 1,000 were planted three bits off."""
    rng = np.random.default_rng(0)
    corpus_N, queries_Q = (rng.integers(0, 1 << 64, count, np.uint64, endpoint=False) for count in (1_000_000, 50_000))
    corpus_N[:1000] = queries_Q[:1000] ^ np.uint64(0b1000_0001_0001)
    begun = time.process_time()
    places, _ = hamming_search.hamming_pairs(corpus_N, queries_Q)
    spent = time.process_time() - begun
    assert set(range(1000)) <= set(places.tolist())
    return single("dedup_seconds", spent, "CPU s to find 50,000 hashes among 1,000,000, at most 7 bits apart", target="<= 60")
