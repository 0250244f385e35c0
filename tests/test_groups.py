"""Groups: runs that may be averaged, pooled intervals, paired differences."""

import numpy as np
import pytest
from scipy import stats

from src.reporting import groups
from src.reporting.groups import Group
from src.reporting.run_data import RunData
from tests.stored import write_run


def make_run(outputs, name: str, **keys) -> RunData:
    return RunData(name, write_run(outputs, name, **keys))


def test_runs_that_differ_only_in_seed_form_a_group(tmp_path):
    runs = [make_run(tmp_path, f"a{seed}", seed=seed) for seed in (0, 1)] + [make_run(tmp_path, "b", optim__steps=40)]
    result = groups.group_runs(runs)
    assert [group.seeds for group in result] == [[0, 1], [0]]
    assert [group.label for group in result] == ["optim.steps=20", "optim.steps=40"]
    assert groups.differing_keys(runs) == ["optim.steps"]


def test_runs_on_different_shards_are_not_grouped(tmp_path):
    runs = [make_run(tmp_path, "a", seed=0, shards={"alpha": "x"}), make_run(tmp_path, "b", seed=1, shards={"alpha": "y"})]
    assert groups.changed_sources(runs) == ["alpha"]
    result = groups.group_runs(runs)
    assert len(result) == 2
    assert len({group.label for group in result}) == 2


def test_source_of_one_run_is_not_a_changed_source(tmp_path):
    runs = [make_run(tmp_path, "a", shards={"alpha": "x"}), make_run(tmp_path, "b", seed=1, shards={"alpha": "x", "gamma": "z"})]
    assert groups.changed_sources(runs) == []


def test_score_over_seeds_has_student_t_interval(tmp_path):
    runs = [make_run(tmp_path, f"a{seed}", seed=seed, right=right) for seed, right in enumerate((4, 5, 6))]
    score = groups.score(Group("a", runs), "vqa/pooled/real/all/exact")
    values = [right / 8 for right in (4, 5, 6)]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (score.value, score.low, score.high) == pytest.approx((np.mean(values), *expected))


def test_pool_clips_interval_to_the_range_of_scores():
    metrics = [{"value": value, "low": value, "high": value} for value in (0.25, 0.75)]
    assert [(pooled.value, pooled.low, pooled.high) for pooled in (groups.pool(metrics), groups.pool(metrics, signed=True))] == [
        (0.5, 0, 1),
        (0.5, -1, 1),
    ]


def test_setting_text_distinguishes_empty_list_from_none():
    assert [groups.setting_text(value) for value in ([], None, ["a", "b"], 0.5)] == ["[]", "-", "a,b", "0.5"]


def test_score_of_one_run_keeps_its_interval(tmp_path):
    run = make_run(tmp_path, "a", right=5)
    score, metric = groups.score(Group("a", [run]), "vqa/pooled/real/all/exact"), run.metrics["vqa/pooled/real/all/exact"]
    assert (score.value, score.low, score.high) == (metric["value"], metric["low"], metric["high"])


def test_difference_of_a_run_to_itself_is_zero(tmp_path):
    group = Group("a", [make_run(tmp_path, "a", right=5)])
    result = groups.difference(group, group, benchmarks=["alpha"], scorer="exact", resamples=50, seed=0)
    assert (result["value"], result["low"], result["high"], result["p"], result["n"]) == (0, 0, 0, 1, 16)


def test_difference_equals_the_difference_of_means(tmp_path):
    better = Group("b", [make_run(tmp_path, f"b{seed}", seed=seed, right=right) for seed, right in enumerate((7, 8))])
    worse = Group("w", [make_run(tmp_path, f"w{seed}", seed=seed, right=right) for seed, right in enumerate((2, 3))])
    result = groups.difference(better, worse, benchmarks=["alpha"], scorer="exact", resamples=200, seed=0)
    assert result["value"] == pytest.approx((7 + 8 - 2 - 3) / 16)
    assert 0 < result["low"] <= result["value"] <= result["high"]
    assert result["seeds"] == 2


def test_difference_is_none_for_different_questions(tmp_path):
    one, other = make_run(tmp_path, "a"), make_run(tmp_path, "b", optim__steps=40)
    path = other.folder / "predictions" / "alpha.real.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert groups.difference(Group("a", [one]), Group("b", [other]), benchmarks=["alpha"], scorer="exact", resamples=50, seed=0) is None


def test_score_that_no_seed_changes_keeps_its_interval(tmp_path):
    """The majority answer is the same in every run, so its interval is the one over images."""
    runs = [make_run(tmp_path, f"a{seed}", seed=seed, right=3 + seed) for seed in (0, 1)]
    key = "vqa/pooled/majority/all/exact"
    score, metric = groups.score(Group("a", runs), key), runs[0].metrics[key]
    assert (score.value, score.low, score.high) == (metric["value"], metric["low"], metric["high"])
    assert score.low < score.high


def test_each_seed_counts_once(tmp_path):
    runs = [make_run(tmp_path, name, seed=seed, right=right) for name, seed, right in (("a", 0, 3), ("b", 0, 8), ("c", 1, 5))]
    group = Group("a", runs)
    assert groups.score(group, "vqa/pooled/real/all/exact").value == pytest.approx((3 + 5) / 16)
    assert [run.name for run in group.evaluated_runs] == ["a", "c"]
    assert [run.name for run in group.duplicate_runs] == ["b"]
