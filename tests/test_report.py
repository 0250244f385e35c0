"""The report shows the contents of a run, names missing parts, and is a self-contained file."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src.commands.report import report_summary
from src.config.report import ReportConfig
from src.data.record import phantom_notice
from src.data.shards import Shards
from src.evaluation import summary
from src.report import report
from src.reporting import answers, examples
from src.reporting.run_data import RunData, find_runs, scores_by_benchmark
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.stored import write_result, write_run


def report_html(outputs: Path, *overrides: str) -> str:
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", *overrides]))).read_text()


class Reader(HTMLParser):
    """Checks that every tag is closed, and collects every address in the document."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(tmp_path, shards):
    write_run(tmp_path, "one", root=str(shards))
    text = report_html(tmp_path, "runs=one")
    page = Reader(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert (tmp_path / "one" / "report.html").exists()
    assert "<html" not in (tmp_path / "one" / "report.md").read_text()


def test_page_shows_the_scores_of_the_run(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards), right=6)
    text = report_html(tmp_path, "runs=one")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    for key in ("vqa/pooled/real/all/bleu1", "vqa/alpha/shuffled/all/exact"):
        assert f"{metrics[key]['value']:.3f}" in text
    assert f"{metrics['vqa/pooled/real_minus_shuffled/all/bleu1']['value']:+.3f}" in text
    # Four of eight images differ: the bootstrap interval excludes 0, but the sign-flip test is not significant.
    assert "No significant difference between the question's own image and another test image: +0.500" in text.replace("&#39;", "'")


def test_csv_holds_the_scores_of_one_run(tmp_path):
    folder = write_run(tmp_path, "one")
    report_html(tmp_path, "runs=one")
    stored = {row["metric"]: row for row in csv.DictReader((folder / "report.csv").open())}
    for key, metric in json.loads((folder / "result.json").read_text())["metrics"].items():
        assert float(stored[key]["value"]) == pytest.approx(metric["value"], rel=1e-5), key


def test_data_table_shows_the_counts_of_the_manifest(tmp_path, shards):
    write_run(tmp_path, "one", root=str(shards))
    lines = (report_html(tmp_path, "runs=one") and (tmp_path / "one" / "report.md").read_text()).splitlines()
    counts = Shards(shards / "alpha").manifest["counts"]
    row = next(line for line in lines if line.startswith("| alpha"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == str(sum(of["in"] for of in counts.values()))
    assert cells[7:10] == [str(counts[split]["written"]) for split in ("train", "val", "test")]


@pytest.mark.slow
def test_phantoms_are_named(tmp_path):
    path = write_run(tmp_path, "one") / "train.json"
    write_run(tmp_path, "other", seed=1)
    assert "Phantoms" not in report_html(tmp_path, "runs=one")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phantoms": ["alpha"]}))
    for runs in ("one", "[one,other]"):
        assert f" {phantom_notice(['alpha'])}" in report_html(tmp_path, f"runs={runs}")


def test_phantoms_of_transfer_are_named_like_those_of_training(tmp_path):
    tables = {"cells": [], "means": [], "differences": [], "ranks": {}, "few_shot": []}
    folder = write_run(tmp_path, "one")
    write_result(folder, "train", json.loads((folder / "train.json").read_text()) | {"phantoms": ["alpha"]})
    (tmp_path / "encoders").mkdir()
    for name in ("one", "encoders"):
        write_result(tmp_path / name, "transfer", {"metrics": {}, "transfer": tables, "phantoms": ["breastmnist"]})
    summaries = {name: report_summary(find_runs(name, tmp_path)[0]) for name in ("one", "encoders")}
    assert summaries["one"].endswith(f" {phantom_notice(['alpha', 'breastmnist'])}")
    assert summaries["encoders"].endswith(f"no model was trained here. {phantom_notice(['breastmnist'])}")


def test_zero_difference_is_not_significant(tmp_path):
    write_run(tmp_path, "same", right=2)
    assert "No significant difference between the question&#39;s own image and another test image" in report_html(tmp_path, "runs=same")


def test_text_from_data_is_escaped(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards))
    path = folder / "predictions" / "alpha.real.jsonl"
    keys = [record for record in Shards(shards / "alpha").column("key") if "test" in record]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, key in zip(lines, keys, strict=False):
        line |= {"id": key, "prediction": "<script>alert(1)</script>"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[: len(keys)]))
    text = report_html(tmp_path, "runs=one")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_examples_are_sampled_and_shown_with_their_image(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards))
    path = folder / "predictions" / "alpha.real.jsonl"
    keys = [key for key in Shards(shards / "alpha").column("key") if "test" in key]
    lines = [json.loads(line) for line in path.read_text().splitlines()][: len(keys)]
    path.write_text("".join(json.dumps(line | {"id": key}) + "\n" for line, key in zip(lines, keys, strict=True)))
    text = report_html(tmp_path, "runs=one", "examples=3")
    assert text.count('<img src="data:image/jpeg;base64,') == 3
    assert f"3 of {len(keys)} test questions, sampled at random" in text
    assert text == report_html(tmp_path, "runs=one", "examples=3")


def test_missing_parts_are_named_with_the_command_that_creates_them(tmp_path):
    folder = write_run(tmp_path, "young")
    for name in ("train.json", "evaluate.json"):
        (folder / name).unlink()
    text = report_html(tmp_path, "runs=young")
    assert "20 of 20 steps are logged" in text
    assert "python -m src.evaluate run=young" in text
    assert "python -m src.transfer encoder=[run:young" in text


def test_transfer_section_shows_unseen_and_verdict(tmp_path):
    folder = write_run(tmp_path, "one")
    score = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    cell = {"benchmark": "breastmnist", "encoder": "run:one", "protocol": "probe", "ours": True, "classes": ["benign", "malignant"]}
    cell |= {"pooling": ["mean"], "n": 40, "macro_f1": score, "balanced_accuracy": score, "auroc": score, "confusion": [[18, 2], [5, 15]]}
    cell |= {
        "per_class": [{"class": "benign", "precision": 0.8, "recall": 0.9, "f1": 0.84, "n": 20}],
        "overlap": {"found": {"pmc_oa": 3, "roco": 1}, "trained_on": True},
    }
    gap = {"benchmark": "breastmnist", "protocol": "probe", "ours": "run:one", "other": "scratch:one", "n": 40, "p": 0.5, "p_holm": 0.5}
    tables = {"cells": [cell], "means": [], "differences": [{**gap, "value": 0.1, "low": -0.1, "high": 0.3}], "ranks": {}, "few_shot": []}
    write_result(folder, "transfer", {"metrics": {"transfer/breastmnist/run:one/probe/macro_f1": score}, "transfer": tables})
    text = report_html(tmp_path, "runs=one")
    assert "NO: 4 samples with its images were trained on" in text
    assert "run:one against scratch:one on breastmnist (probe): no significant difference" in text
    assert ">15</text>" in text


def test_blind_run_is_a_condition(tmp_path):
    write_run(tmp_path, "real", right=8)
    write_run(tmp_path, "blind", right=4)
    text = report_html(tmp_path, "runs=real", "blind=blind")
    assert "model trained without any image" in text
    assert re.search(r"real - blind</td>.*?\+0\.500", text, re.DOTALL)


def test_pooled_scores_have_a_difference_to_the_blind_run(tmp_path):
    one, blind = (RunData(name, write_run(tmp_path, name, right=right)) for name, right in (("one", 8), ("blind", 4)))
    for run in (one, blind):
        files = {condition: run.predictions("alpha", condition) for condition in ("real", "shuffled")}
        for condition, predictions in files.items():
            (run.folder / "predictions" / f"delta.{condition}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in predictions))
        write_result(
            run.folder, "evaluate", summary.summarise({"alpha": files, "delta": files}, pooled=["alpha", "delta"], resamples=9, seed=0)
        )
    one, blind = RunData("one", one.folder), RunData("blind", blind.folder)
    scores = answers.with_blind("pooled", scores_by_benchmark(one.metrics)["pooled"], one, blind, resamples=50, seed=0)
    metric = scores["real_minus_blind"]["all"]["exact"]
    assert (metric["value"], metric["n"]) == (0.5, 32)
    assert metric["p_holm"] >= metric["p"]
    del one.results["evaluate"]["pooled"]  # as written by older versions
    assert "real_minus_blind" not in answers.with_blind(
        "pooled", scores_by_benchmark(one.metrics)["pooled"], one, blind, resamples=9, seed=0
    )


def test_summary_of_a_folder_without_a_model(tmp_path):
    for name, command in (("encoders", "transfer"), ("file", "evaluate")):
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, command, {"metrics": {}})
    summaries = {name: report_summary(find_runs(name, tmp_path)[0]) for name in ("encoders", "file")}
    assert summaries["encoders"].startswith("Transfer of image encoders to classification sets, encoders")
    assert summaries["file"].startswith("Scores of answers from a predictions file, file")


@pytest.mark.slow
def test_several_runs_share_one_page_one_csv_and_one_markdown(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"sweep/optim.steps=20,seed={seed}", seed=seed, right=4)
        write_run(tmp_path, f"sweep/optim.steps=40,seed={seed}", seed=seed, right=8, optim__steps=40)
    text = report_html(tmp_path, "runs=sweep/*", "baseline='optim.steps=20'")
    assert Reader(text).open == []
    assert "optim.steps=40 minus optim.steps=20" in text
    assert (tmp_path / "sweep" / "report.html").exists()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep" / "report.csv").read_text())))
    assert {(row["seed"], row["optim.steps"]) for row in rows} == {("0", "20"), ("1", "20"), ("0", "40"), ("1", "40")}
    assert "| optim.steps=40 minus optim.steps=20 | BLEU-1 |" in (tmp_path / "sweep" / "report.md").read_text()


def test_question_of_two_benchmarks_counts_once(tmp_path):
    """The image-disjoint part of VQA-RAD repeats questions of VQA-RAD, and multiple choice is not free text."""
    for name, right in (("one", 4), ("two", 8)):
        folder = write_run(tmp_path, name, right=right, optim__steps=right)
        for condition in ("real", "shuffled"):
            source = folder / "predictions" / f"alpha.{condition}.jsonl"
            source.with_name(f"alpha_disjoint.{condition}.jsonl").write_text(source.read_text())
    assert "on the questions of alpha, paired" in report_html(tmp_path, "runs=[one,two]")
    questions = examples._questions(find_runs("one", tmp_path)[0])
    assert len(questions) == 16
    assert {name for name, _ in questions} == {"alpha"}


@pytest.mark.slow
def test_mixes_of_equal_size_have_no_trend_plot(tmp_path):
    """Two of four mixes have the same number of sources, so there is no curve over that number."""
    for name, sources in (("all", "abc"), ("two", "ab"), ("other_two", "bc"), ("one", "a")):
        write_run(tmp_path, name, right=5, mix__shares=dict.fromkeys(sources, 1.0))
    text = report_html(tmp_path, "runs=[all,two,other_two,one]")
    assert "against number of sources" not in text
    assert "other_two" in text
    assert "against number of sources" in report_html(tmp_path, "runs=[all,two,one]")


def test_failed_trial_is_shown(tmp_path):
    write_run(tmp_path, "sweep/a", right=4)
    failed = write_run(tmp_path, "sweep/b", right=4, optim__steps=40)
    (failed / "train.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"error": "no space left on device"}))
    assert "FAILED: no space left on device" in report_html(tmp_path, "runs=sweep/*")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runs=nothing"], "runs=nothing matches no run in"),
        (["runs=on"], "did you mean 'one'?"),
        (["runs=[]"], "runs= names no run"),
        (["runs="], "runs= names no run"),
        (["runs=[one,two]", "baseline=tow"], "baseline=tow is none of the compared runs"),
        (["runs=one", "blind=none_such"], "runs=none_such matches no run"),
        (["runs=one", "blind=*"], "blind=* matches 2 runs; give the name of one run"),
        (["runs=[one,two]", "blind=two"], "blind=two needs one run, but runs= names 2"),
    ],
)
def test_bad_input_is_refused(tmp_path, overrides, message):
    write_run(tmp_path, "one")
    write_run(tmp_path, "two")
    with pytest.raises(UserError) as error:
        report_html(tmp_path, *overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
