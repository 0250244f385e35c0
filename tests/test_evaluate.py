"""A finished run answers its benchmarks: what it writes, what it refuses, and that an interrupted evaluation ends the same."""

import json
import shutil
from pathlib import Path

import pytest

from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.evaluate import evaluate, questions_of_rank
from src.evaluation.foreign_predictions import read_foreign_predictions
from src.evaluation.summary import summarise
from src.report import report
from src.reporting.run_data import RunData
from src.runtime import progress
from src.runtime.cli import compose
from src.runtime.distributed import Ranks
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests import processes
from tests.conftest import overrides
from tests.runs import finish

FIELDS = {"id", "source", "image", "type", "question", "references", "prediction", "confidence"}


@pytest.fixture(scope="module")
def run_once(shards, language, tmp_path_factory) -> Path:
    return finish(overrides(shards, language, tmp_path_factory.mktemp("outputs")))[0]


@pytest.fixture
def run(run_once, tmp_path) -> Path:
    """A finished run; a copy, since tests change it."""
    return Path(shutil.copytree(run_once, tmp_path / "outputs" / run_once.name))


def config(run: Path, *overrides: str) -> EvaluateConfig:
    words = [f"run={run.name}", f"outputs={run.parent}", "benchmarks=[alpha,gamma]", "images=[real,shuffled,blank,none]"]
    return to_typed(
        EvaluateConfig, compose("evaluate", [*words, "resamples=50", "max_new_tokens=4", "batch=3", "accelerator=cpu", *overrides])
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_every_question_is_answered_once_per_condition(run):
    evaluate(config(run))
    files = {path.stem for path in (run / "predictions").glob("*.jsonl")}
    conditions = ("real", "shuffled", "blank", "none", "majority", "colour")
    assert files == {f"alpha.{condition}" for condition in conditions} | {"gamma.none", "gamma.majority"}
    for condition in conditions[:4]:
        found = lines(run / "predictions" / f"alpha.{condition}.jsonl")
        assert len({line["id"] for line in found}) == len(found) == 8
        assert all(set(line) - {"cut"} == FIELDS for line in found)


def test_evaluate_writes_progress_lines_without_a_terminal(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    evaluate(config(run))
    printed = capsys.readouterr().err
    assert "alpha shuffled: question 8/8, " in printed
    assert "gamma none: question 8/8, " in printed


@pytest.mark.slow
def test_the_scores_are_those_of_the_files(run):
    evaluate(config(run))
    said = json.loads((run / "evaluate.json").read_text())
    result = json.loads((run / "result.json").read_text())
    files = {name: {} for name in ("alpha", "gamma")}
    for path in (run / "predictions").glob("*.jsonl"):
        files[path.stem.split(".")[0]][path.stem.split(".")[1]] = read_foreign_predictions(path, benchmark=None)
    assert summarise(files, pooled=["alpha"], resamples=50, seed=0)["metrics"] == said["metrics"]
    assert said["metrics"].items() <= result["metrics"].items()
    names = {tuple(key.split("/")[1:3]) for key in said["metrics"]}
    assert ("gamma", "none") in names
    assert ("pooled", "real_minus_blank") in names
    assert said["metrics"]["vqa/pooled/real/all/bleu1"]["n"] == 8  # text-only questions are in no pool


@pytest.mark.slow
def test_an_interrupted_evaluation_ends_with_the_same_answers(run):
    evaluate(config(run))
    path = run / "predictions" / "alpha.real.jsonl"
    whole = lines(path)
    kept = {**whole[0], "prediction": "kept\u2028"}  # a line of its own to splitlines()
    path.write_text(json.dumps(kept, ensure_ascii=False) + "\n" + json.dumps(whole[1])[:-9])  # a kill in the middle of a line
    evaluate(config(run))
    assert lines(path)[0] == kept  # it was not asked again
    for now, before in zip(lines(path)[1:], whole[1:], strict=True):
        assert now.pop("confidence") == pytest.approx(before.pop("confidence"), abs=1e-4)  # other neighbours in the batch
        assert now == before


@pytest.mark.slow
def test_a_limit_asks_less_and_loses_nothing(run):
    evaluate(config(run))
    folder = run / "predictions"
    before = {path.name: {line["id"]: line["prediction"] for line in lines(path)} for path in folder.glob("alpha.*.jsonl")}
    whole = json.loads((run / "evaluate.json").read_text())
    path = folder / "alpha.shuffled.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "kept '))
    evaluate(config(run, "limit=3"))
    said = json.loads((run / "evaluate.json").read_text())
    assert said["metrics"]["vqa/alpha/real/all/bleu1"]["n"] == 3
    assert {name for name, metric in said["metrics"].items() if metric["n"] > 3} == set()
    after = {path.name: {line["id"]: line["prediction"] for line in lines(path)} for path in folder.glob("alpha.*.jsonl")}
    assert all(text.startswith("kept ") for text in after.pop(path.name).values())  # asked ones are the same with a limit
    assert after == {name: texts for name, texts in before.items() if name != path.name}
    assert len(RunData("tiny", run).predictions("alpha", "real")) == 3
    evaluate(config(run))
    again = json.loads((run / "evaluate.json").read_text())["metrics"]
    assert again["vqa/alpha/real/all/bleu1"] == whole["metrics"]["vqa/alpha/real/all/bleu1"]


@pytest.mark.slow
def test_answers_of_another_checkpoint_are_not_kept(run):
    evaluate(config(run))
    path = run / "predictions" / "alpha.real.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "old '))
    evaluate(config(run, "max_new_tokens=3"))
    assert not any(line["prediction"].startswith("old ") for line in lines(path))


@pytest.mark.slow
def test_two_ranks_give_the_answers_of_one(run, tmp_path):
    """One of them is killed on the way, so that the second team finds the parts of the first."""
    evaluate(config(run))
    folder = run / "predictions"
    whole = {path.name: [line["prediction"] for line in lines(path)] for path in folder.glob("*.jsonl")}
    metrics = json.loads((run / "evaluate.json").read_text())["metrics"]
    answered = lines(folder / "alpha.real.jsonl")
    left = folder / f"alpha.real.{(folder / 'alpha.real.digest').read_text()[:12]}.1.part"
    left.write_text("".join(json.dumps({**line, "prediction": "kept"}) + "\n" for line in answered[:2]) + '{"id": "cut')
    (folder / "alpha.real.jsonl").write_text("")
    (folder / "alpha.blank.jsonl").unlink()
    (run / "evaluate.json").unlink()

    codes = processes.wait(processes.ranks(config(run), tmp_path / "log", world=2, verb="evaluate"))
    assert codes == [0, 0], (tmp_path / "log.1").read_text()
    found = {path.name: [line["prediction"] for line in lines(path)] for path in folder.glob("*.jsonl")}
    assert found["alpha.real.jsonl"][:2] == ["kept", "kept"]
    assert found["alpha.real.jsonl"][2:] == whole["alpha.real.jsonl"][2:]
    assert {name: texts for name, texts in found.items() if name != "alpha.real.jsonl"} == {
        name: texts for name, texts in whole.items() if name != "alpha.real.jsonl"
    }
    assert json.loads((run / "evaluate.json").read_text())["metrics"].keys() == metrics.keys()
    assert not list(folder.glob("*.part"))


def test_every_image_belongs_to_one_rank():
    images = ["a", "a", "b", "c", "c", "d"]
    shares = [questions_of_rank(list(range(6)), images, Ranks(rank, 3)) for rank in range(3)]
    assert shares == [[0, 1, 5], [2], [3, 4]]
    assert questions_of_rank([4, 2], ["x", "y"], Ranks()) == [4, 2]


@pytest.mark.slow
def test_drawn_answers_are_the_same_in_another_batch_and_differ_by_seed(run):
    def drawn(*overrides: str) -> list[str]:
        evaluate(config(run, "benchmarks=[alpha]", "images=[real]", "temperature=2", *overrides))
        return [line["prediction"] for line in lines(run / "predictions" / "alpha.real.jsonl")]

    first = drawn("batch=3")
    (run / "predictions" / "alpha.real.digest").unlink()  # ask again
    assert drawn("batch=8") == first
    assert drawn("seed=1") != first


@pytest.mark.slow
def test_text_only_questions_cannot_be_shown_an_image(run):
    with pytest.raises(UserError, match=r"benchmark 'gamma' has no images, images=\['real'\] cannot be shown"):
        evaluate(config(run, "images=[real]"))
    evaluate(config(run, "benchmarks=gamma", "images=[real,none]"))
    assert {path.name for path in (run / "predictions").glob("gamma.*.jsonl")} == {"gamma.none.jsonl", "gamma.majority.jsonl"}


def test_blind_run_is_asked_without_images_only(words, capsys):
    folder, _ = finish(words, "data.images=false")
    with pytest.raises(UserError, match=r"images=\['real'\]: the run was trained without images \(data.images=false\)"):
        evaluate(config(folder, "images=[real]"))
    evaluate(config(folder))
    conditions = {path.stem.split(".")[1] for path in (folder / "predictions").glob("alpha.*.jsonl")}
    assert conditions == {"none", "majority", "colour"}
    one = RunData("tiny", folder)
    assert not any("/real" in key for key in one.metrics)
    assert (one.condition, one.benchmarks, one.image_benchmarks) == ("none", ["alpha", "gamma"], [])
    report(to_typed(ReportConfig, compose("report", ["runs=tiny", f"outputs={folder.parent}", "resamples=20"])))
    assert "| alpha | none | 8 |" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run=tinny"], "no run 'tinny' in .*; found tiny"),
        (["benchmarks=[alfa]"], "benchmark 'alfa' needs the shards .*alfa, which do not exist; did you mean 'alpha'"),
        (["images=[reel]"], "images"),
        (["checkpoint=last"], "holds no checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_asked(run, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as mistake:
        evaluate(config(run, *overrides))
    assert "\n" not in str(mistake.value)
    assert not (run / "predictions").exists()
