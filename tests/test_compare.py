"""What the comparison says of runs that should not be compared, or are not there yet."""

import csv
import json
import re
from pathlib import Path

import pytest

from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.evaluate import score_predictions
from src.evaluation import summary
from src.report import report
from src.reporting import groups
from src.reporting.compare_transfer import own_means
from src.reporting.run_data import find_runs
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.stored import items, write_run, write_verb


def made(outputs: Path, *overrides: str) -> str:
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", *overrides]))).read_text()


def test_runs_on_different_data_are_shown_and_marked_and_not_averaged(tmp_path):
    for name, seed, print_ in (("a", 0, "x"), ("b", 1, "y")):
        write_run(tmp_path, f"sweep/{name}", seed=seed, shards={"alpha": print_})
    page = made(tmp_path, "runs=sweep/*")
    assert "These runs were trained on different data of alpha: they are shown side by side, and never averaged." in page
    assert "[data print-0]" in page
    assert "[data print-1]" in page
    with (tmp_path / "sweep" / "report.csv").open() as file:
        assert {row["data"] for row in csv.DictReader(file)} == {"print-0", "print-1"}


def test_an_unfinished_run_is_shown_with_its_step(tmp_path):
    write_run(tmp_path, "sweep/a")
    half = write_run(tmp_path, "sweep/b", seed=1, optim__steps=40)
    for name in ("train.json", "evaluate.json", "result.json"):
        (half / name).unlink()
    assert "unfinished, step 20 of 40" in made(tmp_path, "runs=sweep/*")


@pytest.mark.slow
def test_scored_files_stand_beside_a_run_and_are_never_seeds_of_one_group(tmp_path):
    write_run(tmp_path, "ours", right=8, root="x")
    for name, right in (("theirs", 4), ("others", 2)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(item) + "\n" for item in items("x", right)))
        words = [f"predictions={file}", f"outputs={tmp_path}", "benchmarks=pathvqa", "resamples=9"]
        score_predictions(to_typed(EvaluateConfig, compose("evaluate", words)))
        for path in (tmp_path / "ours" / "predictions").glob("alpha.*.jsonl"):
            path.with_name(path.name.replace("alpha", "pathvqa")).write_text(path.read_text())
    said = json.loads((tmp_path / "ours" / "evaluate.json").read_text())
    (tmp_path / "ours" / "evaluate.json").write_text(json.dumps({**said, "pooled": ["alpha", "pathvqa"]}))
    page = made(tmp_path, "runs=[ours,theirs,others]")
    assert "ours, theirs, others. No settings are known of 2 of them" in page
    assert "did not answer the same questions" not in page
    text = (tmp_path / "report.md").read_text()
    assert "| theirs minus ours on pathvqa | exact match | 16 | 1 | -0.500" in text
    assert "| others minus ours on pathvqa | exact match | 16 | 1 | -0.750" in text
    assert "| others minus theirs | exact match | 16 | 1 | -0.250" in (
        made(tmp_path, "runs=[theirs,others]") and (tmp_path / "report.md").read_text()
    )


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UserError, match=r"^runs=sweep/\* finds no run in .*, which holds none yet$"):
        made(tmp_path, "runs=sweep/*")


def test_other_records_of_the_same_shards_are_other_data(tmp_path):
    """An audit between two trainings changes what is drawn and leaves the shards as they are."""
    for seed, digest in enumerate(("60 (aa)", "58 (bb)")):
        path = write_run(tmp_path, f"sweep/{seed}", seed=seed) / "train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"records": {"alpha": digest}}))
    assert "These runs were trained on different data of alpha" in made(tmp_path, "runs=sweep/*")


def test_run_without_images_is_compared_by_its_answers_without_images(tmp_path):
    """It has no others; `write_run` leaves files of answers to images too, such as those of an earlier version."""
    write_run(tmp_path, "sweep/seeing", right=8)
    blind = write_run(tmp_path, "sweep/blind", data__images=False)
    write_verb(blind, "evaluate", summary.summarise({"alpha": {"none": items("", 4)}}, pooled=["alpha"], resamples=50, seed=0))
    (blind / "predictions" / "alpha.none.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items("", 4)))
    page = made(tmp_path, "runs=sweep/*", "baseline=sweep/seeing")
    report = (tmp_path / "sweep/report.md").read_text()
    assert "did not answer the same questions" not in page
    assert re.search(r"\| [^|]*minus [^|]*\| exact match \| 16 \| 1 \| -0\.500", report)
    assert re.search(r"\| data\.images=False \| 0 \| 0\.500 \[", report)


def test_an_unfinished_run_that_is_averaged_is_marked(tmp_path):
    write_run(tmp_path, "sweep/a")
    (write_run(tmp_path, "sweep/b", seed=1) / "train.json").unlink()
    page = made(tmp_path, "runs=sweep/*")
    assert "sweep/b: evaluated before the training had ended, and averaged like what is finished." in page
    assert "0, 1 (unfinished)" in page


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path):
    for name, right in (("a", 3), ("again", 8)):
        write_run(tmp_path, f"sweep/{name}", right=right)
    write_run(tmp_path, "sweep/other", optim__steps=40)
    page = made(tmp_path, "runs=sweep/*")
    assert "sweep/again: another run has the same settings and seed; one run per seed is averaged." in page
    line = next(line for line in (tmp_path / "sweep/report.md").read_text().splitlines() if line.startswith("| optim.steps=20 | 0 |"))
    assert "0.375 [" in line


def test_a_baseline_without_answers_is_told(tmp_path):
    bare = write_run(tmp_path, "sweep/a", optim__steps=40)
    (bare / "evaluate.json").unlink()
    for path in bare.glob("predictions/*"):
        path.unlink()
    write_run(tmp_path, "sweep/b")
    said = "optim.steps=40 has not been evaluated, so that no difference to it can be given: python -m src.evaluate run=sweep/a"
    assert said in made(tmp_path, "runs=sweep/*", "baseline=sweep/a")


def test_a_failure_that_a_full_disk_cut_short_breaks_no_report(tmp_path):
    write_run(tmp_path, "sweep/a")
    (write_run(tmp_path, "sweep/b", seed=1) / "failed.json").write_text("")
    assert "failed.json cannot be read" in made(tmp_path, "runs=sweep/*")


@pytest.mark.slow
def test_few_shot_curves_are_compared_and_more_groups_than_colours_are_dashed(tmp_path):
    for number in range(9):
        folder = write_run(tmp_path, f"sweep/{number}", optim__steps=20 + number)
        for seed in (0, 1) if number == 8 else ():
            folder = folder if seed == 0 else write_run(tmp_path, "sweep/8again", seed=1, optim__steps=28)
            scores = [{"value": 0.1 * shots + 0.1 * seed, "low": 0.0, "high": 1.0, "n": 9} for shots in (1, 5)]
            of = {"benchmark": "moles", "encoder": f"run:{folder.relative_to(tmp_path)}".replace("/", "_")}
            points = [of | {"shots": shots} | score for shots, score in zip((1, 5), scores, strict=True)]
            points.append(points[0] | {"encoder": "scratch"})
            tables = {"cells": [], "means": [], "differences": [], "ranks": {}, "few_shot": points}
            write_verb(folder, "transfer", {"metrics": {"transfer/moles/x/probe_1shot/macro_f1": scores[0]}, "transfer": tables})
    page = made(tmp_path, "runs=sweep/*")
    drawing = page.partition("<title>moles</title>")[2].partition("</svg>")[0]
    assert drawing.count('class="curve dashed"') == 1
    assert drawing.count("<circle") == 2
    assert "optim.steps=28 (dashed)" in page
    assert page.count('class="thin dashed"') >= 2


def test_the_runs_own_encoders_are_drawn_against_a_setting_and_the_baselines_are_not(tmp_path):
    """Each run has its own under a key with its own name, and all have `scratch` under the same."""
    for number, value in enumerate((0.25, 0.5, 0.75)):
        folder = write_run(tmp_path, f"sweep/{number}", optim__steps=20 * 2**number)
        mine = f"run:sweep_{number}"
        score = {"low": 0.0, "high": 1.0, "n": 9, "protocol": "probe", "benchmarks": ["a", "b"]}
        means = [score | {"encoder": mine, "value": value}, score | {"encoder": "scratch", "value": 0.125}]
        cells = [{"benchmark": "a", "encoder": one["encoder"], "protocol": "probe", "ours": one["encoder"] == mine} for one in means]
        cells = [cell | {"macro_f1": mean} for cell, mean in zip(cells, means, strict=True)]
        tables = {"cells": cells, "means": means, "differences": [], "ranks": {}, "few_shot": []}
        metrics = {f"transfer/mean/{one['encoder']}/probe/macro_f1": one for one in means}
        write_verb(folder, "transfer", {"metrics": metrics, "transfer": tables})
    page = made(tmp_path, "runs=sweep/*")
    assert page.count("<title>mean macro-F1 against optim.steps</title>") == 1
    found = groups.group(find_runs("sweep/*", tmp_path))
    assert [score.value for score in own_means(found).values()] == [0.25, 0.5, 0.75]
    path = folder / "transfer.json"
    path.write_text(path.read_text().replace('["a", "b"]', '["a", "c"]'))
    assert own_means(groups.group(find_runs("sweep/*", tmp_path))) == {}
