"""Data preparation: shards against PIL and webdataset's ShardWriter, and the memory and search cost at full size."""

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
from data_prep.build import serialize
from data_prep.build.chunking import SHARD_ROWS, Chunk
from data_prep.build.encode import EncodedImage
from data_prep.build.process_pool import Map, process_map
from data_prep.build.shard_writer import write_shard
from data_prep.build.source import BuildConfig, build_source
from data_prep.shards import build_all
from experiments.bench.measurement import ROUNDS, Measurement, ratio, single, single_ratio, time_alternately
from experiments.bench.synthetic_data import (
    FULL_MIX_RECORDS,
    memory_mb,
    replicate_shards,
    run_in_process,
    write_raw,
)
from src.data import hamming_search
from src.data.record import Record
from src.data.shards import Shards

RAW_SIZE, SHARD_SIZE = (768, 1024), (384, 288)  # pixels of the raw image (height, width) and of the stored one (width, height)
QUALITY = 90
TWO_PROCESS_IMAGES = 4000


def measure() -> Iterator[Measurement]:
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        yield from measure_one_core(folder)
        yield measure_two_processes(folder)
        yield from measure_writing(folder)
        yield measure_memory_growth(folder, "shards_memory_growth_text", 20_000, None)
        yield measure_memory_growth(folder, "shards_memory_growth_image", 5_000, (64, 64))
        yield from measure_index(folder)
    yield measure_search()


def measure_one_core(folder: Path) -> Iterator[Measurement]:
    """The complete build of a source against a script of PIL and webdataset on the same files, in CPU seconds of one process."""
    for name, grain, count in (("shards_one_core", 1.5, 600), ("shards_one_core_grainy", 4.0, 600)):
        raw = write_raw(folder / name, count, size=RAW_SIZE, grain=grain)
        ours, peer = time_alternately(partial(build_shards, raw, folder / "ours"), partial(build_with_pil, raw, folder / "peer"))
        kib = np.mean([path.stat().st_size for path in raw.glob("*.jpg")]) / 1024
        unit = (
            f"images/s of 1024x768, {kib:.0f} KiB, to 384x288; PSNR of both results {psnr(folder / 'ours' / name, folder / 'peer'):.1f} dB"
        )
        yield ratio(name, [count / s for s in ours], [count / s for s in peer], unit, target=">= 3.0")


def build_shards(raw: Path, out: Path, *, mapped: Map | None = None, max_side: int = 384) -> Shards:
    """Builds one source into an empty folder like `make shards`, without the printed table."""
    shutil.rmtree(out, ignore_errors=True)
    config = BuildConfig(sources=[raw.name], raw=raw.parent, out=out, workers=1, max_side=max_side, quality=QUALITY)
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.dict(os.environ, TQDM_DISABLE="1"):
        if mapped:
            build_source(sources.find_source(raw.name, raw.parent), config, mapped)
        else:
            build_all(config)
    return Shards(out / raw.name)


def build_with_pil(raw: Path, out: Path) -> None:
    """The peer: PIL decodes, resizes and encodes; webdataset writes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink, (raw / "train.jsonl").open() as lines:
        for line in lines:
            fields = json.loads(line)
            image = Image.open(raw / fields.pop("image")).convert("RGB").resize(SHARD_SIZE, Image.Resampling.BICUBIC)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=QUALITY)
            sink.write({"__key__": fields["id"], "jpg": jpeg.getvalue(), "json": fields})


def psnr(ours: Path, peer: Path) -> float:
    """Mean peak signal-to-noise ratio between the images of both sides, in decibels."""
    shards = Shards(ours)
    records = {record.key: record.images[0] for record in (shards[row] for row in range(len(shards)))}
    values = []
    for sample in webdataset.WebDataset([str(path) for path in sorted(peer.glob("*.tar"))], shardshuffle=False):
        a, b = (np.asarray(Image.open(io.BytesIO(data)), np.float64) for data in (sample["jpg"], records[sample["__key__"]]))
        assert a.shape == b.shape
        values.append(10 * math.log10(255**2 / np.square(a - b).mean()))
    return float(np.mean(values))


def measure_two_processes(folder: Path) -> Measurement:
    """Wall-clock rate of a started pool of two processes against one. The raw files are links to the images of `measure_one_core`."""
    raw, images = folder / "two", folder / "shards_one_core"
    raw.mkdir()
    names = sorted(path.name for path in images.glob("*.jpg"))
    with (raw / "train.jsonl").open("w") as file:
        for n in range(TWO_PROCESS_IMAGES):
            os.link(images / names[n % len(names)], raw / f"{n}.jpg")
            file.write(json.dumps({"image": f"{n}.jpg", "question": f"what is {n}?", "answer": "yes", "id": f"r{n}"}) + "\n")
    with process_map(2) as two_processes:
        build_shards(images, folder / "started", mapped=two_processes)
        with process_map(1) as one_process:
            builds = [partial(build_shards, raw, folder / "out", mapped=mapped) for mapped in (two_processes, one_process)]
            rates = [[TWO_PROCESS_IMAGES / s for s in seconds] for seconds in time_alternately(*builds, clock=time.perf_counter)]
    return ratio("shards_two_processes", *rates, "images/s of 1024x768, two processes against one, wall clock", target=">= 1.8")


def measure_writing(folder: Path) -> Iterator[Measurement]:
    """Serialisation, index, checksums and tars of images of 8 KiB without JPEG work, against ShardWriter."""
    jpeg = np.random.default_rng(0).bytes(8 << 10)
    few, many = 4_000, 64_000
    writers = [partial(write_ours, folder / "few", jpeg, few), partial(write_with_webdataset, folder / "peer", jpeg, few)]
    ours, peer, large = time_alternately(*writers, partial(write_ours, folder / "many", jpeg, many))
    tars = [str(path) for path in sorted((folder / "many").glob("*.tar"))]
    assert sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False)) == many
    us = [[s / n * 1e6 for s in seconds] for n, seconds in ((few, ours), (few, peer), (many, large))]
    yield ratio("shards_write", us[0], us[1], "us per sample of 8 KiB and its text; webdataset reads both", target=">= 5", cost=True)
    yield ratio("shards_write_growth", us[0], us[2], "us per sample of 4,000 (ours) and of 64,000 (peer)", target="<= 1.05", cost=True)


def write_ours(folder: Path, jpeg: bytes, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with mock.patch.object(serialize, "encode_image", lambda data, **_: EncodedImage(data, *SHARD_SIZE, 1)):
        for number, start in enumerate(range(0, count, SHARD_ROWS)):
            shard = f"train-{number:06d}"
            write_shard(folder, shard, serialized_chunks(shard, jpeg, range(start, min(start + SHARD_ROWS, count))))


def serialized_chunks(shard: str, jpeg: bytes, numbers: range) -> Iterator[tuple[Chunk, serialize.SerializedChunk]]:
    for start in range(numbers.start, numbers.stop, 64):
        ids = range(start, min(start + 64, numbers.stop))
        records = [Record(f"r{n}", "bench", "train", [jpeg], [(f"what is shown in picture {n}?", "a cell")], group=f"g{n}") for n in ids]
        chunk = Chunk(shard, records, notes=[[] for _ in ids])
        yield chunk, serialize.serialize_chunk(chunk, max_side=384, quality=QUALITY)


def write_with_webdataset(folder: Path, jpeg: bytes, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink:
        for n in range(count):
            turns = [[f"what is shown in picture {n}?", "a cell"]]
            fields = {"key": f"r{n}", "source": "bench", "split": "train", "turns": turns, "type": "other", "group": f"g{n}"}
            sink.write({"__key__": f"r{n}", "jpg": jpeg, "json": fields})


def measure_memory_growth(folder: Path, name: str, few: int, size: tuple[int, int] | None) -> Measurement:
    """Peak memory of a build of ten times as many records over that of `few`."""
    peaks = []
    for count in (few, 10 * few):
        raw = write_raw(folder / f"{name}-{count}", count, size=size)
        arguments = ["sources=" + raw.name, f"raw={folder}", f"out={folder / 'grown'}", "workers=1"]
        build = subprocess.run([sys.executable, "-m", "experiments.bench.peak", *arguments], capture_output=True, text=True, check=True)
        peaks.append(float(build.stdout))
        shutil.rmtree(raw)
    return single_ratio(name, peaks[1], peaks[0], f"MB at {10 * few:,} records (ours) and at {few:,} (peer)", target="<= 1.10")


def measure_index(folder: Path) -> Iterator[Measurement]:
    full = replicate_shards(folder / "full", build_shards(write_raw(folder / "hundred", 100), folder / "ours"))
    rounds = sorted(run_in_process(open_index, full) for _ in range(ROUNDS))
    milliseconds, megabytes = rounds[ROUNDS // 2][0], max(mb for _, mb in rounds)
    yield single("index_open_ms", milliseconds, f"ms to open an index of {FULL_MIX_RECORDS:,} rows", target="<= 100")
    yield single("index_open_mb", megabytes, "MB of memory growth, including mapped pages", target="<= 100")


def open_index(folder: Path) -> tuple[float, float]:
    """Milliseconds and MB that opening the shards takes."""
    before, start = memory_mb("VmRSS"), time.perf_counter()
    shards = Shards(folder)
    seconds = time.perf_counter() - start
    assert len(shards) == FULL_MIX_RECORDS
    return 1e3 * seconds, memory_mb("VmRSS") - before


def measure_search() -> Measurement:
    """Near-duplicate search of 50,000 hashes among a million. 1,000 of them have a planted match at a distance of three bits."""
    rng = np.random.default_rng(0)
    corpus_N, queries_Q = (rng.integers(0, 1 << 64, count, np.uint64, endpoint=False) for count in (1_000_000, 50_000))
    corpus_N[:1000] = queries_Q[:1000] ^ np.uint64(0b1000_0001_0001)
    start = time.process_time()
    positions, _ = hamming_search.hamming_pairs(corpus_N, queries_Q)
    seconds = time.process_time() - start
    assert set(range(1000)) <= set(positions.tolist())
    return single("dedup_seconds", seconds, "CPU s to find 50,000 hashes among 1,000,000, at most 7 bits apart", target="<= 60")
