"""What the data benchmarks read: pictures of a stated size, raw folders of them, and an index as large as the full mix."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from data_prep.build.index import write_index
from data_prep.build.shard_writer import column
from src.data.shards import SCHEMA, Shards

FULL = 3_350_000  # records of the full mix
ANSWERS = ("yes", "no", "left lung", "no abnormality is seen in the upper lobe")


def picture(rng: np.random.Generator, *, height: int, width: int, grain: float = 2.5) -> bytes:
    """JPEG at quality 90 of soft shapes under grain. The grain, in grey levels, decides how many bytes a pixel takes, and these
    decide how long any decoder takes: 0.21 at 2.5, 0.27 at 4. BCCD's published blood smears have 0.07."""
    soft = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, grain, (height, width, 1))
    return simplejpeg.encode_jpeg((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8), quality=90, colorsubsampling="420")


def write_raw(folder: Path, count: int, *, size: tuple[int, int] | None = None, grain: float = 2.5) -> Path:
    """`count` rows of the user's own layout; each shows a picture of its own of `size` (height, width), or none."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "train.jsonl").open("w") as file:
        for n in range(count):
            line: dict[str, Any] = {"question": f"what is shown in picture {n} of {folder.name}?", "answer": ANSWERS[n % 4], "id": f"r{n}"}
            if size:
                line["image"] = f"{n}.jpg"
                (folder / line["image"]).write_bytes(picture(rng, height=size[0], width=size[1], grain=grain))
            file.write(json.dumps(line) + "\n")
    return folder


def tiled(folder: Path, one: Shards, *, rows: int = FULL, shards: int = 818) -> Path:
    """As if `one` (a single tar) had been written again and again: `rows` records in `shards` tars, which are links to its tar."""
    folder.mkdir(parents=True)
    times = -(-rows // len(one))
    columns = {field.name: pa.concat_arrays([one.arrow(field.name)] * times)[:rows] for field in SCHEMA}
    columns["shard"] = column(np.arange(rows) * shards // rows, pa.int32())
    write_index(folder, columns)
    tar = one.manifest["shards"][0]
    tars = [tar | {"name": f"train-{n:06d}.tar"} for n in range(shards)]
    for link in tars:
        os.link(one.folder / tar["name"], folder / link["name"])
    (folder / "manifest.json").write_text(json.dumps(one.manifest | {"shards": tars}))
    return folder


def alone(work, *arguments):
    """What `work` gives in a process of its own, whose memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def memory(name: str) -> float:
    """MB of this process by the kernel's name: VmHWM (peak), VmRSS, RssAnon (private, without mapped files)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)
