"""Comparison of runs that are unfinished, incomplete, or trained on different data."""

import csv
import json
import re
from pathlib import Path

import pytest

from src.commands.score import score_predictions
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.evaluation import summary
from src.report import report
from src.reporting import groups
from src.reporting.compare_transfer import own_means
from src.reporting.run_data import find_runs
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.stored import items, write_result, write_run


def report_html(outputs: Path, *overrides: str) -> str:
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", *overrides]))).read_text()


def test_runs_on_different_data_are_marked_and_not_averaged(tmp_path):
    for name, seed, fingerprint in (("a", 0, "x"), ("b", 1, "y")):
        write_run(tmp_path, f"sweep/{name}", seed=seed, shards={"alpha": fingerprint})
    page = report_html(tmp_path, "runs=sweep/*")
    assert "These runs were trained on different data of alpha: they are compared, but never averaged." in page
    assert "[data print-0]" in page
    assert "[data print-1]" in page
    with (tmp_path / "sweep" / "report.csv").open() as file:
        assert {row["data"] for row in csv.DictReader(file)} == {"print-0", "print-1"}


def test_unfinished_run_is_shown_with_its_step(tmp_path):
    write_run(tmp_path, "sweep/a")
    unfinished = write_run(tmp_path, "sweep/b", seed=1, optim__steps=40)
    for name in ("train.json", "evaluate.json", "result.json"):
        (unfinished / name).unlink()
    assert "unfinished, step 20 of 40" in report_html(tmp_path, "runs=sweep/*")


@pytest.mark.slow
def test_scored_predictions_files_are_compared_with_a_run_and_never_grouped(tmp_path):
    write_run(tmp_path, "ours", right=8, root="x")
    for name, right in (("theirs", 4), ("others", 2)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(item) + "\n" for item in items("x", right)))
        overrides = [f"predictions={file}", f"outputs={tmp_path}", "benchmarks=pathvqa", "resamples=9"]
        score_predictions(to_typed(EvaluateConfig, compose("evaluate", overrides)))
        for path in (tmp_path / "ours" / "predictions").glob("alpha.*.jsonl"):
            path.with_name(path.name.replace("alpha", "pathvqa")).write_text(path.read_text())
    result = json.loads((tmp_path / "ours" / "evaluate.json").read_text())
    (tmp_path / "ours" / "evaluate.json").write_text(json.dumps({**result, "pooled": ["alpha", "pathvqa"]}))
    page = report_html(tmp_path, "runs=[ours,theirs,others]")
    assert "ours, theirs, others. The settings of 2 of them are unknown" in page
    assert "did not answer the same questions" not in page
    text = (tmp_path / "report.md").read_text()
    assert "| theirs minus ours on pathvqa | exact match | 16 | 1 | -0.500" in text
    assert "| others minus ours on pathvqa | exact match | 16 | 1 | -0.750" in text
    assert "| others minus theirs | exact match | 16 | 1 | -0.250" in (
        report_html(tmp_path, "runs=[theirs,others]") and (tmp_path / "report.md").read_text()
    )


def test_glob_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^runs=sweep/\* matches no run in .*/; it holds no runs yet$"):
        report_html(tmp_path, "runs=sweep/*")


def test_different_records_of_the_same_shards_count_as_different_data(tmp_path):
    """An audit between two trainings changes the records that are drawn, but not the shards."""
    for seed, digest in enumerate(("60 (aa)", "58 (bb)")):
        path = write_run(tmp_path, f"sweep/{seed}", seed=seed) / "train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"records": {"alpha": digest}}))
    assert "These runs were trained on different data of alpha" in report_html(tmp_path, "runs=sweep/*")


def test_run_without_images_is_compared_by_its_answers_without_images(tmp_path):
    """`write_run` also writes answers with images, as earlier versions did; the comparison ignores them."""
    write_run(tmp_path, "sweep/real", right=8)
    blind = write_run(tmp_path, "sweep/blind", data__images=False)
    write_result(blind, "evaluate", summary.summarise({"alpha": {"none": items("", 4)}}, pooled=["alpha"], resamples=50, seed=0))
    (blind / "predictions" / "alpha.none.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items("", 4)))
    page = report_html(tmp_path, "runs=sweep/*", "baseline=sweep/real")
    report = (tmp_path / "sweep/report.md").read_text()
    assert "did not answer the same questions" not in page
    assert re.search(r"\| [^|]*minus [^|]*\| exact match \| 16 \| 1 \| -0\.500", report)
    assert re.search(r"\| data\.images=False \| 0 \| 0\.500 \[", report)


def test_averaged_unfinished_run_is_marked(tmp_path):
    write_run(tmp_path, "sweep/a")
    (write_run(tmp_path, "sweep/b", seed=1) / "train.json").unlink()
    page = report_html(tmp_path, "runs=sweep/*")
    assert "sweep/b: evaluated before the end of training, and averaged like finished runs." in page
    assert "0, 1 (unfinished)" in page


def test_two_runs_with_one_seed_count_once(tmp_path):
    for name, right in (("a", 3), ("again", 8)):
        write_run(tmp_path, f"sweep/{name}", right=right)
    write_run(tmp_path, "sweep/other", optim__steps=40)
    page = report_html(tmp_path, "runs=sweep/*")
    assert "sweep/again: another run has the same settings and seed; only one run per seed is averaged." in page
    line = next(line for line in (tmp_path / "sweep/report.md").read_text().splitlines() if line.startswith("| optim.steps=20 | 0 |"))
    assert "0.375 [" in line


def test_baseline_without_answers_is_reported(tmp_path):
    baseline = write_run(tmp_path, "sweep/a", optim__steps=40)
    (baseline / "evaluate.json").unlink()
    for path in baseline.glob("predictions/*"):
        path.unlink()
    write_run(tmp_path, "sweep/b")
    message = (
        "The baseline optim.steps=40 has not been evaluated, so there are no differences to it; run: python -m src.evaluate run=sweep/a"
    )
    assert message in report_html(tmp_path, "runs=sweep/*", "baseline=sweep/a")


def test_report_tolerates_a_truncated_failure_file(tmp_path):
    write_run(tmp_path, "sweep/a")
    (write_run(tmp_path, "sweep/b", seed=1) / "failed.json").write_text("")
    assert "failed.json cannot be read" in report_html(tmp_path, "runs=sweep/*")


@pytest.mark.slow
def test_few_shot_curves_are_dashed_beyond_the_number_of_colours(tmp_path):
    for number in range(9):
        folder = write_run(tmp_path, f"sweep/{number}", optim__steps=20 + number)
        for seed in (0, 1) if number == 8 else ():
            folder = folder if seed == 0 else write_run(tmp_path, "sweep/8again", seed=1, optim__steps=28)
            scores = [{"value": 0.1 * shots + 0.1 * seed, "low": 0.0, "high": 1.0, "n": 9} for shots in (1, 5)]
            encoder = {"benchmark": "moles", "encoder": f"run:{folder.relative_to(tmp_path)}".replace("/", "_")}
            points = [encoder | {"shots": shots} | score for shots, score in zip((1, 5), scores, strict=True)]
            points.append(points[0] | {"encoder": "scratch"})
            tables = {"cells": [], "means": [], "differences": [], "ranks": {}, "few_shot": points}
            write_result(folder, "transfer", {"metrics": {"transfer/moles/x/probe_1shot/macro_f1": scores[0]}, "transfer": tables})
    page = report_html(tmp_path, "runs=sweep/*")
    drawing = page.partition("<title>moles</title>")[2].partition("</svg>")[0]
    assert drawing.count('class="curve dashed"') == 1
    assert drawing.count("<circle") == 2
    assert "optim.steps=28 (dashed)" in page
    assert page.count('class="thin dashed"') >= 2


def test_trend_plot_shows_own_encoders_and_not_baselines(tmp_path):
    """The key of a run's own encoder holds the run's name; the baseline `scratch` has the same key in all runs."""
    for number, value in enumerate((0.25, 0.5, 0.75)):
        folder = write_run(tmp_path, f"sweep/{number}", optim__steps=20 * 2**number)
        own = f"run:sweep_{number}"
        score = {"low": 0.0, "high": 1.0, "n": 9, "protocol": "probe", "benchmarks": ["a", "b"]}
        means = [score | {"encoder": own, "value": value}, score | {"encoder": "scratch", "value": 0.125}]
        cells = [{"benchmark": "a", "encoder": mean["encoder"], "protocol": "probe", "ours": mean["encoder"] == own} for mean in means]
        cells = [cell | {"macro_f1": mean} for cell, mean in zip(cells, means, strict=True)]
        tables = {"cells": cells, "means": means, "differences": [], "ranks": {}, "few_shot": []}
        metrics = {f"transfer/mean/{mean['encoder']}/probe/macro_f1": mean for mean in means}
        write_result(folder, "transfer", {"metrics": metrics, "transfer": tables})
    page = report_html(tmp_path, "runs=sweep/*")
    assert page.count("<title>mean macro-F1 against optim.steps</title>") == 1
    all_groups = groups.group_runs(find_runs("sweep/*", tmp_path))
    assert [score.value for score in own_means(all_groups).values()] == [0.25, 0.5, 0.75]
    path = folder / "transfer.json"
    path.write_text(path.read_text().replace('["a", "b"]', '["a", "c"]'))
    assert own_means(groups.group_runs(find_runs("sweep/*", tmp_path))) == {}
