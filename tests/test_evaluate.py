"""Evaluation of a finished run: its files, its errors, and resuming after an interruption."""

import json
import shutil
from pathlib import Path

import pytest

from src.commands.evaluate import questions_of_rank
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.config.train import TrainConfig
from src.evaluate import evaluate
from src.evaluation.foreign_predictions import read_foreign_predictions
from src.evaluation.summary import summarise
from src.model.vlm import build_vlm
from src.report import report
from src.reporting.run_data import RunData
from src.runtime import progress
from src.runtime.cli import compose
from src.runtime.distributed import Ranks
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests import processes
from tests.fixtures import overrides
from tests.rounding import rounding
from tests.runs import finish

FIELDS = {"id", "source", "image", "type", "question", "references", "prediction", "confidence"}


@pytest.fixture(scope="module")
def run_once(shards, language, tmp_path_factory) -> Path:
    return finish(overrides(shards, language, tmp_path_factory.mktemp("outputs")))[0]


@pytest.fixture
def run(run_once, tmp_path) -> Path:
    """A finished run; a copy, since tests change it."""
    return Path(shutil.copytree(run_once, tmp_path / "outputs" / run_once.name))


@pytest.fixture
def exact(monkeypatch) -> float:
    """Computes in float64, so that an answer does not depend on its neighbours in the batch; gives the bound for confidences."""

    def doubled(trained: TrainConfig):
        return build_vlm(trained).double()

    monkeypatch.setattr("src.commands.evaluate.build_vlm", doubled)
    return rounding(15 + 330, 10)  # three operations of each of five norms, and the softmax over the vocabulary, are in float32


def config(run: Path, *overrides: str) -> EvaluateConfig:
    words = [f"run={run.name}", f"outputs={run.parent}", "benchmarks=[alpha,gamma]", "images=[real,shuffled,blank,none]"]
    return to_typed(
        EvaluateConfig, compose("evaluate", [*words, "resamples=50", "max_new_tokens=4", "batch=3", "accelerator=cpu", *overrides])
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_evaluate_answers_each_question_once_per_condition(run):
    evaluate(config(run))
    files = {path.stem for path in (run / "predictions").glob("*.jsonl")}
    conditions = ("real", "shuffled", "blank", "none", "majority", "colour")
    assert files == {f"alpha.{condition}" for condition in conditions} | {"gamma.none", "gamma.majority"}
    for condition in conditions[:4]:
        answers = lines(run / "predictions" / f"alpha.{condition}.jsonl")
        assert len({line["id"] for line in answers}) == len(answers) == 8
        assert all(set(line) - {"cut"} == FIELDS for line in answers)


@pytest.mark.slow
def test_evaluate_writes_progress_lines_without_a_terminal(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    evaluate(config(run))
    printed = capsys.readouterr().err
    assert "alpha shuffled: question 8/8, " in printed
    assert "gamma none: question 8/8, " in printed


@pytest.mark.slow
def test_scores_equal_those_of_the_predictions_files(run):
    evaluate(config(run))
    evaluation = json.loads((run / "evaluate.json").read_text())
    result = json.loads((run / "result.json").read_text())
    files = {name: {} for name in ("alpha", "gamma")}
    for path in (run / "predictions").glob("*.jsonl"):
        files[path.stem.split(".")[0]][path.stem.split(".")[1]] = read_foreign_predictions(path, benchmark=None)
    assert summarise(files, pooled=["alpha"], resamples=50, seed=0)["metrics"] == evaluation["metrics"]
    assert evaluation["metrics"].items() <= result["metrics"].items()
    names = {tuple(key.split("/")[1:3]) for key in evaluation["metrics"]}
    assert ("gamma", "none") in names
    assert ("pooled", "real_minus_blank") in names
    assert evaluation["metrics"]["vqa/pooled/real/all/bleu1"]["n"] == 8  # text-only questions are not pooled


@pytest.mark.slow
def test_interrupted_evaluation_resumes_with_the_same_answers(run, exact):
    evaluate(config(run))
    path = run / "predictions" / "alpha.real.jsonl"
    expected = lines(path)
    edited = {**expected[0], "prediction": "edited\u2028"}  # splitlines() would split here
    path.write_text(json.dumps(edited, ensure_ascii=False) + "\n" + json.dumps(expected[1])[:-9])  # killed within a line
    evaluate(config(run))
    assert lines(path)[0] == edited  # not answered again
    for now, before in zip(lines(path)[1:], expected[1:], strict=True):
        assert now.pop("confidence") == pytest.approx(before.pop("confidence"), abs=exact)  # the batches differ
        assert now == before


@pytest.mark.usefixtures("exact")
@pytest.mark.slow
def test_limit_evaluates_fewer_questions_and_keeps_other_answers(run):
    evaluate(config(run))
    folder = run / "predictions"
    before = {path.name: {line["id"]: line["prediction"] for line in lines(path)} for path in folder.glob("alpha.*.jsonl")}
    expected = json.loads((run / "evaluate.json").read_text())
    path = folder / "alpha.shuffled.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "edited '))
    evaluate(config(run, "limit=3"))
    limited = json.loads((run / "evaluate.json").read_text())
    assert limited["metrics"]["vqa/alpha/real/all/bleu1"]["n"] == 3
    assert {name for name, metric in limited["metrics"].items() if metric["n"] > 3} == set()
    after = {path.name: {line["id"]: line["prediction"] for line in lines(path)} for path in folder.glob("alpha.*.jsonl")}
    assert all(text.startswith("edited ") for text in after.pop(path.name).values())  # the shuffled images do not depend on the limit
    assert after == {name: texts for name, texts in before.items() if name != path.name}
    assert len(RunData("tiny", run).predictions("alpha", "real")) == 3
    evaluate(config(run))
    again = json.loads((run / "evaluate.json").read_text())["metrics"]
    assert again["vqa/alpha/real/all/bleu1"] == expected["metrics"]["vqa/alpha/real/all/bleu1"]


@pytest.mark.slow
def test_answers_under_other_settings_are_deleted(run):
    evaluate(config(run))
    path = run / "predictions" / "alpha.real.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "old '))
    evaluate(config(run, "max_new_tokens=3"))
    assert not any(line["prediction"].startswith("old ") for line in lines(path))


@pytest.mark.slow
def test_two_ranks_give_the_answers_of_one_rank(run, tmp_path):
    """An earlier two-rank evaluation was killed, so that its part files are still there."""
    evaluate(config(run))
    folder = run / "predictions"
    expected = {path.name: [line["prediction"] for line in lines(path)] for path in folder.glob("*.jsonl")}
    metrics = json.loads((run / "evaluate.json").read_text())["metrics"]
    answered = lines(folder / "alpha.real.jsonl")
    part = folder / f"alpha.real.{(folder / 'alpha.real.digest').read_text()[:12]}.1.part"
    part.write_text("".join(json.dumps({**line, "prediction": "edited"}) + "\n" for line in answered[:2]) + '{"id": "cut')
    (folder / "alpha.real.jsonl").write_text("")
    (folder / "alpha.blank.jsonl").unlink()
    (run / "evaluate.json").unlink()

    codes = processes.wait(processes.ranks(config(run), tmp_path / "log", world=2, command="evaluate"))
    assert codes == [0, 0], (tmp_path / "log.1").read_text()
    merged = {path.name: [line["prediction"] for line in lines(path)] for path in folder.glob("*.jsonl")}
    assert merged["alpha.real.jsonl"][:2] == ["edited", "edited"]
    assert merged["alpha.real.jsonl"][2:] == expected["alpha.real.jsonl"][2:]
    assert {name: texts for name, texts in merged.items() if name != "alpha.real.jsonl"} == {
        name: texts for name, texts in expected.items() if name != "alpha.real.jsonl"
    }
    assert json.loads((run / "evaluate.json").read_text())["metrics"].keys() == metrics.keys()
    assert not list(folder.glob("*.part"))


def test_questions_of_one_image_belong_to_one_rank():
    images = ["a", "a", "b", "c", "c", "d"]
    shares = [questions_of_rank(list(range(6)), images, Ranks(rank, 3)) for rank in range(3)]
    assert shares == [[0, 1, 5], [2], [3, 4]]
    assert questions_of_rank([4, 2], ["x", "y"], Ranks()) == [4, 2]


@pytest.mark.slow
def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(run):
    def sample(*overrides: str) -> list[str]:
        evaluate(config(run, "benchmarks=[alpha]", "images=[real]", "temperature=2", *overrides))
        return [line["prediction"] for line in lines(run / "predictions" / "alpha.real.jsonl")]

    first = sample("batch=3")
    (run / "predictions" / "alpha.real.digest").unlink()  # answer again
    assert sample("batch=8") == first
    assert sample("seed=1") != first


@pytest.mark.slow
def test_text_only_benchmark_rejects_image_conditions(run):
    with pytest.raises(UserError, match=r"images=\['real'\]: benchmark 'gamma' has no images; add 'none'"):
        evaluate(config(run, "images=[real]"))
    evaluate(config(run, "benchmarks=gamma", "images=[real,none]"))
    assert {path.name for path in (run / "predictions").glob("gamma.*.jsonl")} == {"gamma.none.jsonl", "gamma.majority.jsonl"}


@pytest.mark.slow
def test_run_trained_without_images_is_evaluated_without_images(words, capsys):
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
    ("overrides", "message"),
    [
        (["run=tinny"], "no run 'tinny' in .*; found tiny"),
        (
            ["benchmarks=[alfa]"],
            "benchmark 'alfa': its shards .*alfa do not exist; build them with `make shards SOURCES=alfa`; did you mean 'alpha'",
        ),
        (["images=[reel]"], "images"),
        (["checkpoint=last"], "holds no checkpoint"),
    ],
)
def test_invalid_override_is_reported_before_any_question_is_answered(run, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate(config(run, *overrides))
    assert "\n" not in str(error.value)
    assert not (run / "predictions").exists()
