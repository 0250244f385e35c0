"""experiments/bench: stored metrics, arguments, ratios, and synthetic data."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import sources
from data_prep.readers import READERS
from experiments.bench import __main__ as bench
from experiments.bench import data, ranks
from experiments.bench.measurement import ratio, single, single_ratio, time_alternately
from experiments.bench.synthetic_data import make_jpeg, replicate_shards, write_mimic_cxr, write_omnimedvqa, write_roco
from src.data.image_transform import decode_image
from src.data.record import Record
from src.data.shards import Shards


def test_group_replaces_only_its_own_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "OUT", tmp_path / "bench" / "result.json")
    bench.store_metrics("data", [single("index_open_ms", 9, "ms", target="<= 100")])
    bench.store_metrics("stream", [single("stream_pixels", 0.6, "grey levels")])
    bench.store_metrics("data", [single("index_open_ms", 7, "ms", target="<= 100")])
    metrics = json.loads(bench.OUT.read_text())["metrics"]
    assert {name: metric["value"] for name, metric in metrics.items()} == {"bench/index_open_ms": 7, "bench/stream_pixels": 0.6}
    assert metrics["bench/index_open_ms"]["group"] == "data"
    assert {"low", "high", "n", "ours", "peer", "unit"} <= metrics["bench/index_open_ms"].keys()


def test_ranks_table_matches_readme():
    readme = Path("experiments/bench/README.md").read_text()
    assert readme.split("<!-- ranks -->\n")[1].split("\n<!-- /ranks -->")[0] == ranks.table()


def test_arguments_select_groups(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(bench, "run_group", started.append)
    bench.main(["only=data"])
    assert started == ["data"]
    with pytest.raises(SystemExit):
        bench.main(["only=steam"])
    assert "only='steam'; did you mean 'stream'?" in capsys.readouterr().err


def test_ratio_is_median_of_rounds_and_above_one_if_ours_is_better():
    rates = ratio("speed", [30.0, 20.0, 100.0], [10.0, 10.0, 10.0], "images/s", target=">= 3.0")
    assert (rates.value, rates.low, rates.high, rates.n, rates.ours, rates.peer) == (3.0, 2.0, 10.0, 3, 30.0, 10.0)
    assert rates.met
    seconds = ratio("cost", [2.0, 2.0, 2.0], [5.0, 6.0, 7.0], "s", target=">= 3.1", cost=True)
    assert (seconds.value, seconds.met) == (3.0, False)
    growth = single_ratio("growth", 3.0, 2.0, "MB")
    assert (growth.value, growth.low, growth.high, growth.n, growth.ours, growth.peer, growth.met) == (1.5, 1.5, 1.5, 1, 3.0, 2.0, True)
    assert single("memory", 1.05, "", target="<= 1.10").met
    assert not single("memory", 1.11, "", target="<= 1.10").met


def test_both_sides_are_timed_alternately():
    order, clock = [], iter(range(100))
    seconds = time_alternately(lambda: order.append("ours"), lambda: order.append("peer"), rounds=2, clock=lambda: next(clock))
    assert order == ["ours", "peer", "ours", "peer"]
    assert seconds == [[1, 1], [1, 1]]


def test_replicated_index_reads_its_single_tar(shards, tmp_path):
    source = Shards(shards / "alpha")
    source.manifest["shards"] = source.manifest["shards"][:1]  # its training tar
    replicated = Shards(replicate_shards(tmp_path / "many", source, rows=300, shards=7))
    assert len(replicated) == 300
    assert replicated.column("shard").max() == 6
    assert replicated.column("shard").min() == 0
    assert replicated[0].key == replicated[77].key == "train0"
    assert replicated.texts([5, 82])[1].turns == replicated[5].turns


@pytest.mark.parametrize(("height", "width", "grain"), [(384, 512, 2.7), (768, 1024, 1.5)])
def test_fast_decoding_of_synthetic_images_is_close_to_exact(height, width, grain):
    data = make_jpeg(np.random.default_rng(0), height=height, width=width, grain=grain)
    difference = np.abs(decode_image(data, size=224).astype(int) - decode_image(data, size=224, exact=True))
    assert difference.mean() <= 1.5
    assert math.isclose(len(data) / 1024, {384: 42, 768: 131}[height], rel_tol=0.05)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mimic_cxr", lambda folder, jpegs: write_mimic_cxr(folder, len(jpegs), jpegs=jpegs)),
        ("omnimedvqa", write_omnimedvqa),
        ("roco", write_roco),
    ],
)
def test_synthetic_raw_data_has_a_record_per_image(tmp_path, name, write):
    jpegs = [bytes([n]) for n in range(50)]
    raw, entry = write(tmp_path / name, jpegs), sources.load_sources()[name]
    rows = list(READERS[entry.reader](raw, "train", entry))
    assert all(isinstance(row, Record) for row in rows)
    assert sorted(row.images[0] for row in rows) == jpegs


def test_both_writers_of_shards_write_every_sample(tmp_path):
    for name, write in (("ours", data.write_ours), ("peer", data.write_with_webdataset)):
        write(tmp_path / name, make_jpeg(np.random.default_rng(0), height=40, width=48), 70)
        (path,) = (tmp_path / name).glob("*.tar")
        with tarfile.open(path) as tar:
            assert sum(member.name.endswith(".jpg") for member in tar) == 70, name
