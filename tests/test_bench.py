"""experiments/bench: what is kept, what is compared, and that the made index is one that can be read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import ranks
from experiments.bench.made import picture, tiled
from experiments.bench.measured import in_turn, ratio, single
from src.data.image_transform import decode_jpeg
from src.data.shards import Shards
from src.runtime.errors import UserError


def test_a_group_replaces_only_its_own_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "OUT", tmp_path / "bench" / "result.json")
    bench.keep("data", [single("index_open_ms", 9, "ms", target="<= 100")])
    bench.keep("stream", [single("stream_pixels", 0.6, "grey levels")])
    bench.keep("data", [single("index_open_ms", 7, "ms", target="<= 100")])
    stored = json.loads(bench.OUT.read_text())["metrics"]
    assert {name: one["value"] for name, one in stored.items()} == {"bench/index_open_ms": 7, "bench/stream_pixels": 0.6}
    assert stored["bench/index_open_ms"]["group"] == "data"
    assert {"low", "high", "n", "ours", "peer", "unit"} <= stored["bench/index_open_ms"].keys()


def test_the_table_of_ranks_is_that_of_the_readme():
    readme = Path("experiments/bench/README.md").read_text()
    assert readme.split("<!-- ranks -->\n")[1].split("\n<!-- /ranks -->")[0] == ranks.table()


def test_words_name_groups():
    assert bench.asked([]) == list(bench.GROUPS)
    assert bench.asked(["only=data,stream"]) == ["data", "stream"]
    with pytest.raises(UserError, match="only=steam; did you mean 'stream'"):
        bench.asked(["only=steam"])
    with pytest.raises(UserError, match="bench takes only=GROUP"):
        bench.asked(["data"])


def test_a_ratio_is_the_median_of_the_rounds_and_above_one_where_ours_is_better():
    rates = ratio("speed", [30.0, 20.0, 100.0], [10.0, 10.0, 10.0], "images/s", target=">= 3.0")
    assert (rates.value, rates.low, rates.high, rates.n, rates.ours, rates.peer) == (3.0, 2.0, 10.0, 3, 30.0, 10.0)
    assert rates.met
    seconds = ratio("cost", [2.0, 2.0, 2.0], [5.0, 6.0, 7.0], "s", target=">= 3.1", cost=True)
    assert (seconds.value, seconds.met) == (3.0, False)
    assert single("memory", 1.05, "", target="<= 1.10").met
    assert not single("memory", 1.11, "", target="<= 1.10").met


def test_both_sides_are_measured_in_turn():
    order, clock = [], iter(range(100))
    spent = in_turn(lambda: order.append("ours"), lambda: order.append("peer"), rounds=2, clock=lambda: next(clock))
    assert order == ["ours", "peer", "ours", "peer"]
    assert spent == [[1, 1], [1, 1]]


def test_a_tiled_index_reads_the_one_tar_that_it_was_made_of(shards, tmp_path):
    one = Shards(shards / "alpha")
    one.manifest["shards"] = one.manifest["shards"][:1]  # its training tar
    made = Shards(tiled(tmp_path / "many", one, rows=300, shards=7))
    assert len(made) == 300
    assert made.column("shard").max() == 6
    assert made.column("shard").min() == 0
    assert made[0].key == made[77].key == "train0"
    assert made.texts([5, 82])[1].turns == made[5].turns


@pytest.mark.parametrize(("height", "width", "grain"), [(384, 512, 2.7), (768, 1024, 1.5)])
def test_made_pictures_lose_nothing_to_fast_decoding(height, width, grain):
    data = picture(np.random.default_rng(0), height=height, width=width, grain=grain)
    away = np.abs(decode_jpeg(data, size=224).astype(int) - decode_jpeg(data, size=224, exact=True))
    assert away.mean() <= 1.5
    assert math.isclose(len(data) / 1024, {384: 42, 768: 131}[height], rel_tol=0.05)
