"""The page shows what is there, says what is missing, and needs nothing beside itself."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src.config.report import ReportConfig
from src.data.record import phantom_notice
from src.data.shards import Shards
from src.evaluation import summary
from src.report import report
from src.report import report_summary as lead_of
from src.reporting import answers, examples
from src.reporting.run_data import RunData, find_runs
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.stored import write_run, write_verb


def made(outputs: Path, *overrides: str) -> str:
    return report(to_typed(ReportConfig, compose("report", [f"outputs={outputs}", "resamples=50", *overrides]))).read_text()


class Reader(HTMLParser):
    """Every tag closed, every address of the document."""

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


def test_one_file_without_addresses(tmp_path, shards):
    write_run(tmp_path, "one", root=str(shards))
    text = made(tmp_path, "runs=one")
    page = Reader(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert (tmp_path / "one" / "report.html").exists()
    assert "<html" not in (tmp_path / "one" / "report.md").read_text()


def test_scores_of_the_run_stand_on_the_page(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards), right=6)
    text = made(tmp_path, "runs=one")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    for key in ("vqa/pooled/real/all/bleu1", "vqa/alpha/shuffled/all/exact"):
        assert f"{metrics[key]['value']:.3f}" in text
    assert f"{metrics['vqa/pooled/real_minus_shuffled/all/bleu1']['value']:+.3f}" in text
    # Four images of eight differ: the bootstrap's interval leaves 0 out, exchanging the two sides image by image does not.
    assert "No difference shown between the question's own image and another test image: +0.500" in text.replace("&#39;", "'")


def test_one_run_has_its_scores_as_csv_too(tmp_path):
    folder = write_run(tmp_path, "one")
    made(tmp_path, "runs=one")
    stored = {row["metric"]: row for row in csv.DictReader((folder / "report.csv").open())}
    for key, metric in json.loads((folder / "result.json").read_text())["metrics"].items():
        assert float(stored[key]["value"]) == pytest.approx(metric["value"], rel=1e-5), key


def test_counts_are_those_of_the_manifest(tmp_path, shards):
    write_run(tmp_path, "one", root=str(shards))
    lines = (made(tmp_path, "runs=one") and (tmp_path / "one" / "report.md").read_text()).splitlines()
    counts = Shards(shards / "alpha").manifest["counts"]
    row = next(line for line in lines if line.startswith("| alpha"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == str(sum(of["in"] for of in counts.values()))
    assert cells[7:10] == [str(counts[split]["written"]) for split in ("train", "val", "test")]


@pytest.mark.slow
def test_phantoms_are_named(tmp_path):
    path = write_run(tmp_path, "one") / "train.json"
    write_run(tmp_path, "other", seed=1)
    assert "Phantoms" not in made(tmp_path, "runs=one")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phantoms": ["alpha"]}))
    for runs in ("one", "[one,other]"):
        assert f" {phantom_notice(['alpha'])}" in made(tmp_path, f"runs={runs}")


def test_phantoms_that_encoders_were_tried_on_are_named_as_those_of_training_are(tmp_path):
    tables = {"cells": [], "means": [], "differences": [], "ranks": {}, "few_shot": []}
    folder = write_run(tmp_path, "one")
    write_verb(folder, "train", json.loads((folder / "train.json").read_text()) | {"phantoms": ["alpha"]})
    (tmp_path / "encoders").mkdir()
    for name in ("one", "encoders"):
        write_verb(tmp_path / name, "transfer", {"metrics": {}, "transfer": tables, "phantoms": ["breastmnist"]})
    lead = {name: lead_of(find_runs(name, tmp_path)[0]) for name in ("one", "encoders")}
    assert lead["one"].endswith(f" {phantom_notice(['alpha', 'breastmnist'])}")
    assert lead["encoders"].endswith(f"no model was trained here. {phantom_notice(['breastmnist'])}")


def test_no_difference_is_said_to_be_none(tmp_path):
    write_run(tmp_path, "same", right=2)
    assert "No difference shown between the question&#39;s own image and another test image" in made(tmp_path, "runs=same")


def test_words_of_the_data_cannot_become_html(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards))
    path = folder / "predictions" / "alpha.real.jsonl"
    keys = [record for record in Shards(shards / "alpha").column("key") if "test" in record]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, key in zip(lines, keys, strict=False):
        line |= {"id": key, "prediction": "<script>alert(1)</script>"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[: len(keys)]))
    text = made(tmp_path, "runs=one")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_examples_are_drawn_by_lot_and_shown_with_their_image(tmp_path, shards):
    folder = write_run(tmp_path, "one", root=str(shards))
    path = folder / "predictions" / "alpha.real.jsonl"
    keys = [key for key in Shards(shards / "alpha").column("key") if "test" in key]
    lines = [json.loads(line) for line in path.read_text().splitlines()][: len(keys)]
    path.write_text("".join(json.dumps(line | {"id": key}) + "\n" for line, key in zip(lines, keys, strict=True)))
    text = made(tmp_path, "runs=one", "examples=3")
    assert text.count('<img src="data:image/jpeg;base64,') == 3
    assert f"3 of {len(keys)} test questions, drawn by lot" in text
    assert text == made(tmp_path, "runs=one", "examples=3")


def test_missing_parts_are_named_with_the_command_that_makes_them(tmp_path):
    folder = write_run(tmp_path, "young")
    for name in ("train.json", "evaluate.json"):
        (folder / name).unlink()
    text = made(tmp_path, "runs=young")
    assert "20 of 20 steps are logged" in text
    assert "python -m src.evaluate run=young" in text
    assert "python -m src.transfer encoder=[run:young" in text


def test_transfer_table_and_unseen(tmp_path):
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
    write_verb(folder, "transfer", {"metrics": {"transfer/breastmnist/run:one/probe/macro_f1": score}, "transfer": tables})
    text = made(tmp_path, "runs=one")
    assert "NO: 4 samples with its images were trained on" in text
    assert "run:one against scratch:one on breastmnist (probe): no difference shown" in text
    assert ">15</text>" in text


def test_a_blind_run_stands_beside_the_others(tmp_path):
    write_run(tmp_path, "seeing", right=8)
    write_run(tmp_path, "blind", right=4)
    text = made(tmp_path, "runs=seeing", "blind=blind")
    assert "a model trained without any image" in text
    assert re.search(r"real - blind</td>.*?\+0\.500", text, re.DOTALL)


def test_all_benchmarks_together_have_a_difference_to_the_blind_run(tmp_path):
    """One line per benchmark would leave the headline without it."""
    one, blind = (RunData(name, write_run(tmp_path, name, right=right)) for name, right in (("one", 8), ("blind", 4)))
    for run in (one, blind):
        files = {condition: run.predictions("alpha", condition) for condition in ("real", "shuffled")}
        for condition, found in files.items():
            (run.folder / "predictions" / f"delta.{condition}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in found))
        write_verb(
            run.folder, "evaluate", summary.summarise({"alpha": files, "delta": files}, pooled=["alpha", "delta"], resamples=9, seed=0)
        )
    one, blind = RunData("one", one.folder), RunData("blind", blind.folder)
    scores = answers.with_blind("pooled", answers.grouped(one.metrics)["pooled"], one, blind, resamples=50, seed=0)
    found = scores["real_minus_blind"]["all"]["exact"]
    assert (found["value"], found["n"]) == (0.5, 32)
    assert found["p_holm"] >= found["p"]
    del one.verbs["evaluate"]["pooled"]  # runs of before
    assert "real_minus_blind" not in answers.with_blind("pooled", answers.grouped(one.metrics)["pooled"], one, blind, resamples=9, seed=0)


def test_what_a_folder_without_a_model_holds_is_said(tmp_path):
    for name, verb in (("encoders", "transfer"), ("file", "evaluate")):
        (tmp_path / name).mkdir()
        write_verb(tmp_path / name, verb, {"metrics": {}})
    lead = {name: lead_of(find_runs(name, tmp_path)[0]) for name in ("encoders", "file")}
    assert lead["encoders"].startswith("Image encoders on classification sets, encoders")
    assert lead["file"].startswith("Answers that were scored from a predictions file, file")


def test_several_runs_are_one_page_one_csv_and_one_markdown(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"sweep/optim.steps=20,seed={seed}", seed=seed, right=4)
        write_run(tmp_path, f"sweep/optim.steps=40,seed={seed}", seed=seed, right=8, optim__steps=40)
    text = made(tmp_path, "runs=sweep/*", "baseline='optim.steps=20'")
    assert Reader(text).open == []
    assert "optim.steps=40 minus optim.steps=20" in text
    assert (tmp_path / "sweep" / "report.html").exists()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep" / "report.csv").read_text())))
    assert {(row["seed"], row["optim.steps"]) for row in rows} == {("0", "20"), ("1", "20"), ("0", "40"), ("1", "40")}
    assert "| optim.steps=40 minus optim.steps=20 | BLEU-1 |" in (tmp_path / "sweep" / "report.md").read_text()


def test_a_question_of_two_benchmarks_counts_once(tmp_path):
    """VQA-RAD's image-disjoint part answers questions of VQA-RAD again, and multiple choice is no free text."""
    for name, right in (("one", 4), ("two", 8)):
        folder = write_run(tmp_path, name, right=right, optim__steps=right)
        for condition in ("real", "shuffled"):
            source = folder / "predictions" / f"alpha.{condition}.jsonl"
            source.with_name(f"alpha_disjoint.{condition}.jsonl").write_text(source.read_text())
    assert "on the questions of alpha, paired" in made(tmp_path, "runs=[one,two]")
    drawn = examples._questions(find_runs("one", tmp_path)[0])
    assert len(drawn) == 16
    assert {name for name, _ in drawn} == {"alpha"}


@pytest.mark.slow
def test_mixes_of_equal_size_are_no_curve(tmp_path):
    """Four mixes, two of which have as many sources: nothing to draw a line through."""
    for name, sources in (("all", "abc"), ("two", "ab"), ("other_two", "bc"), ("one", "a")):
        write_run(tmp_path, name, right=5, mix__shares=dict.fromkeys(sources, 1.0))
    text = made(tmp_path, "runs=[all,two,other_two,one]")
    assert "against number of sources" not in text
    assert "other_two" in text
    assert "against number of sources" in made(tmp_path, "runs=[all,two,one]")


def test_a_failed_trial_is_shown(tmp_path):
    write_run(tmp_path, "sweep/a", right=4)
    failed = write_run(tmp_path, "sweep/b", right=4, optim__steps=40)
    (failed / "train.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"error": "no space left on device"}))
    assert "FAILED: no space left on device" in made(tmp_path, "runs=sweep/*")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["runs=nothing"], "runs=nothing finds no run in"),
        (["runs=on"], "did you mean 'one'?"),
        (["runs=[]"], "runs= names no run"),
        (["runs="], "runs= names no run"),
        (["runs=[one,two]", "baseline=tow"], "baseline=tow is none of the compared runs"),
        (["runs=one", "blind=none_such"], "runs=none_such finds no run"),
        (["runs=one", "blind=*"], "blind=* stands for 2 runs; allowed is one"),
        (["runs=[one,two]", "blind=two"], "blind=two stands beside one run, but runs= names 2"),
    ],
)
def test_bad_input(tmp_path, overrides, said):
    write_run(tmp_path, "one")
    write_run(tmp_path, "two")
    with pytest.raises(UserError) as error:
        made(tmp_path, *overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
