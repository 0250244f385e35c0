"""The lines of experiments/transfer/README.md that people will copy, and its table."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.bench.transfer import measure
from experiments.transfer.table import rows, table, unseen
from src.data import classification
from src.errors import UserError

README = Path(__file__).resolve().parent.parent / "experiments/transfer/README.md"
BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>22</ymax></bndbox></object>"


def test_the_lines_for_pascal_voc_make_a_benchmark(tmp_path):
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        (voc / f"ImageSets/Main/{split}.txt").write_text(f"{split}_1\n")
        Image.fromarray(np.full((30, 60, 3), 99, np.uint8)).save(voc / f"JPEGImages/{split}_1.jpg")
        boxes = BOX.format("RBC", 1, 21) + BOX.format("WBC", 30, 50) + BOX.format("WBC", 59, 60)
        (voc / f"Annotations/{split}_1.xml").write_text(f"<annotation>{boxes}</annotation>")
    (tmp_path / "crop.py").write_text(re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1])
    subprocess.run([sys.executable, "crop.py", "voc", "raw/cells"], cwd=tmp_path, check=True)
    data = classification.read("cells", raw=tmp_path / "raw")
    assert data.counts() == {split: {"RBC": 1, "WBC": 1} for split in ("train", "val", "test")}
    assert {example.group for example in data.examples} == {"train_1", "val_1", "test_1"}


def test_the_benchmarks_in_the_readme_are_those_of_conf():
    named = set(re.search(r"benchmark=(\S+) \\", README.read_text())[1].split(","))
    assert named == {path.stem for path in classification.FOLDER.glob("*.yaml") if "layout:" in path.read_text()}


def test_the_table_says_what_is_unseen_and_leaves_missing_cells_empty(tmp_path):
    answers = {None: "unknown", False: "yes", True: "no"}
    assert [unseen(None), *(unseen({"trained_on": one}) for one in answers)] == ["unknown", *answers.values()]
    assert unseen({"trained_on": False, "start": "org/weights"}) == "yes, where it started unknown"
    cell = {"protocol": "probe", "score": "macro_f1", "value": 0.5, "low": 0.25, "high": 0.75}
    text = table([cell | {"benchmark": "a", "encoder": "x"}, cell | {"benchmark": "b", "encoder": "y"}])
    assert text.splitlines()[1].split() == ["a", "0.500", "[0.250,", "0.750]"]
    with pytest.raises(UserError, match=r"src\.transfer first"):
        rows(tmp_path)


@pytest.mark.slow
def test_the_overhead_is_measured_on_both_sides():
    overhead, grid = measure(50, "vit_tiny_patch16_224")
    assert overhead.low <= overhead.value <= overhead.high
    assert overhead.n == 5
    assert min(overhead.ours, overhead.peer, grid.value) > 0
