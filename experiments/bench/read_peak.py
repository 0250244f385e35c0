"""`python -m experiments.bench.read_peak <raw folder of MIMIC-CXR>`: reads every split and prints the peak memory in MB.

Every study gets the same image, because the number of image files does not enter the memory of the reader.
"""

import sys
from pathlib import Path
from unittest import mock

from data_prep.readers import mimic_cxr
from data_prep.sources import load_sources
from experiments.bench.synthetic_data import memory_mb
from src.data.record import SPLITS, Record

IMAGE = bytes(1 << 20)


def one_image(folder: Path, name: str, key: str) -> bytes:
    return IMAGE


if __name__ == "__main__":
    entry = load_sources()["mimic_cxr"]
    with mock.patch.object(mimic_cxr, "image_file", one_image):
        for split in SPLITS:
            assert all(isinstance(row, Record) for row in mimic_cxr.read(Path(sys.argv[1]), split, entry))
    print(memory_mb("VmHWM"))  # ru_maxrss would include the peak of the parent process
