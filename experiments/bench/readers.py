"""Readers of the two largest sources: their build rate against that of ROCO, and the memory of MIMIC-CXR at full size."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments.bench.data import RAW_SIZE, build_shards
from experiments.bench.measurement import Measurement, ratio, single_ratio, time_alternately
from experiments.bench.synthetic_data import make_jpeg, write_mimic_cxr, write_omnimedvqa, write_roco


def measure() -> Iterator[Measurement]:
    with TemporaryDirectory(prefix="bench-") as name:
        yield from measure_readers(Path(name))
        yield measure_mimic_cxr_memory(Path(name))


def measure_readers(folder: Path, images: int = 1800) -> Iterator[Measurement]:
    """The builds of MIMIC-CXR and OmniMedVQA against that of ROCO on the same images and texts."""
    rng = np.random.default_rng(0)
    jpegs = [make_jpeg(rng, height=RAW_SIZE[0], width=RAW_SIZE[1], grain=1.5) for _ in range(images)]
    figures = write_roco(folder / "roco", jpegs)
    raws = {
        "MIMIC-CXR": write_mimic_cxr(folder / "mimic_cxr", images, jpegs=jpegs),
        "OmniMedVQA": write_omnimedvqa(folder / "omnimedvqa", jpegs),
    }
    for title, raw in raws.items():
        ours, peer = time_alternately(partial(build_shards, raw, folder / "ours"), partial(build_shards, figures, folder / "peer"))
        rates = ([images / s for s in seconds] for seconds in (ours, peer))
        yield ratio(f"shards_{raw.name}", *rates, f"images/s of 1024x768; the reader of {title} against that of ROCO", target=">= 0.9")


def measure_mimic_cxr_memory(folder: Path) -> Measurement:
    """The memory of reading MIMIC-CXR at full size."""
    peaks = []
    for count in (10_000, 227_835):
        raw = write_mimic_cxr(folder / f"mimic_cxr-{count}", count)
        reading = subprocess.run(
            [sys.executable, "-m", "experiments.bench.read_peak", str(raw)], capture_output=True, text=True, check=True
        )
        peaks.append(float(reading.stdout))
        shutil.rmtree(raw)
    unit = "MB to read 227,835 studies (ours) and 10,000 (peer)"
    return single_ratio("mimic_cxr_memory_growth", peaks[1], peaks[0], unit, target="<= 1.05")
