"""What may be averaged and what may not; differences between runs are paired."""

import numpy as np
import pytest
from scipy import stats

from src.reporting import groups
from src.reporting.groups import Group
from src.reporting.run_data import RunData
from tests.stored import write_run


def stored(outputs, name: str, **keys) -> RunData:
    return RunData(name, write_run(outputs, name, **keys))


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    runs = [stored(tmp_path, f"a{seed}", seed=seed) for seed in (0, 1)] + [stored(tmp_path, "b", optim__steps=40)]
    found = groups.group(runs)
    assert [one.seeds for one in found] == [[0, 1], [0]]
    assert [one.label for one in found] == ["optim.steps=20", "optim.steps=40"]
    assert groups.differing(runs) == ["optim.steps"]


def test_different_shards_are_never_averaged(tmp_path):
    runs = [stored(tmp_path, "a", seed=0, shards={"alpha": "x"}), stored(tmp_path, "b", seed=1, shards={"alpha": "y"})]
    assert groups.changed_sources(runs) == ["alpha"]
    found = groups.group(runs)
    assert len(found) == 2
    assert len({one.label for one in found}) == 2


def test_a_source_that_only_one_run_has_is_no_other_data(tmp_path):
    runs = [stored(tmp_path, "a", shards={"alpha": "x"}), stored(tmp_path, "b", seed=1, shards={"alpha": "x", "gamma": "z"})]
    assert groups.changed_sources(runs) == []


def test_interval_over_seeds_is_students(tmp_path):
    runs = [stored(tmp_path, f"a{seed}", seed=seed, right=right) for seed, right in enumerate((4, 5, 6))]
    score = groups.score(Group("a", runs), "vqa/pooled/real/all/exact")
    values = [right / 8 for right in (4, 5, 6)]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (score.value, score.low, score.high) == pytest.approx((np.mean(values), *expected))


def test_an_interval_over_two_seeds_ends_where_scores_end():
    found = [{"value": value, "low": value, "high": value} for value in (0.25, 0.75)]
    assert [(one.value, one.low, one.high) for one in (groups.pooled(found), groups.pooled(found, signed=True))] == [
        (0.5, 0, 1),
        (0.5, -1, 1),
    ]


def test_an_empty_list_is_told_from_nothing():
    assert [groups.setting_text(value) for value in ([], None, ["a", "b"], 0.5)] == ["[]", "-", "a,b", "0.5"]


def test_one_run_keeps_its_own_interval(tmp_path):
    run = stored(tmp_path, "a", right=5)
    score, metric = groups.score(Group("a", [run]), "vqa/pooled/real/all/exact"), run.metrics["vqa/pooled/real/all/exact"]
    assert (score.value, score.low, score.high) == (metric["value"], metric["low"], metric["high"])


def test_difference_of_a_run_to_itself_is_nothing(tmp_path):
    one = Group("a", [stored(tmp_path, "a", right=5)])
    found = groups.difference(one, one, benchmarks=["alpha"], scorer="exact", resamples=50, seed=0)
    assert (found["value"], found["low"], found["high"], found["p"], found["n"]) == (0, 0, 0, 1, 16)


def test_difference_is_the_difference_of_the_means(tmp_path):
    better = Group("b", [stored(tmp_path, f"b{seed}", seed=seed, right=right) for seed, right in enumerate((7, 8))])
    worse = Group("w", [stored(tmp_path, f"w{seed}", seed=seed, right=right) for seed, right in enumerate((2, 3))])
    found = groups.difference(better, worse, benchmarks=["alpha"], scorer="exact", resamples=200, seed=0)
    assert found["value"] == pytest.approx((7 + 8 - 2 - 3) / 16)
    assert 0 < found["low"] <= found["value"] <= found["high"]
    assert found["seeds"] == 2


def test_other_questions_give_no_difference(tmp_path):
    one, other = stored(tmp_path, "a"), stored(tmp_path, "b", optim__steps=40)
    path = other.folder / "predictions" / "alpha.real.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert groups.difference(Group("a", [one]), Group("b", [other]), benchmarks=["alpha"], scorer="exact", resamples=50, seed=0) is None


def test_what_no_seed_changes_keeps_its_own_interval(tmp_path):
    """The majority answer is the same in every run: its interval over images is what is known of it."""
    runs = [stored(tmp_path, f"a{seed}", seed=seed, right=3 + seed) for seed in (0, 1)]
    key = "vqa/pooled/majority/all/exact"
    score, metric = groups.score(Group("a", runs), key), runs[0].metrics[key]
    assert (score.value, score.low, score.high) == (metric["value"], metric["low"], metric["high"])
    assert score.low < score.high


def test_a_seed_counts_once(tmp_path):
    runs = [stored(tmp_path, name, seed=seed, right=right) for name, seed, right in (("a", 0, 3), ("b", 0, 8), ("c", 1, 5))]
    one = Group("a", runs)
    assert groups.score(one, "vqa/pooled/real/all/exact").value == pytest.approx((3 + 5) / 16)
    assert [run.name for run in one.measured] == ["a", "c"]
    assert [run.name for run in one.spare] == ["b"]
