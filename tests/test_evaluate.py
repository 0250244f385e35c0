"""A finished run answers its benchmarks: what it writes, what it refuses, and that an interrupted evaluation ends the same."""

import json
from pathlib import Path

import pytest

from src.cli import compose
from src.config import Evaluate, typed
from src.errors import UserError
from src.evaluate import evaluate
from src.scoring.predictions import read_predictions
from src.scoring.summary import summarise
from tests.runs import finish

FIELDS = {"id", "source", "image", "type", "question", "references", "prediction", "confidence"}


@pytest.fixture
def run(words) -> Path:
    return finish(words)[0]


def config(run: Path, *overrides: str) -> Evaluate:
    words = [f"run={run.name}", f"outputs={run.parent}", "benchmarks=[alpha,gamma]", "images=[real,shuffled,blank,none]"]
    return typed(Evaluate, compose("evaluate", [*words, "resamples=50", "max_new_tokens=4", "batch=3", "accelerator=cpu", *overrides]))


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
        assert all(set(line) == FIELDS for line in found)


def test_the_scores_are_those_of_the_files(run):
    evaluate(config(run))
    said = json.loads((run / "evaluate.json").read_text())
    result = json.loads((run / "result.json").read_text())
    files = {name: {} for name in ("alpha", "gamma")}
    for path in (run / "predictions").glob("*.jsonl"):
        files[path.stem.split(".")[0]][path.stem.split(".")[1]] = read_predictions(path, benchmark=None)
    assert summarise(files, pooled=["alpha"], resamples=50, seed=0)["metrics"] == said["metrics"]
    assert said["metrics"].items() <= result["metrics"].items()
    names = {tuple(key.split("/")[1:3]) for key in said["metrics"]}
    assert ("gamma", "none") in names
    assert ("pooled", "real_minus_blank") in names
    assert said["metrics"]["vqa/pooled/real/all/bleu1"]["n"] == 8  # text-only questions are in no pool


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


def test_answers_of_another_checkpoint_are_not_kept(run):
    evaluate(config(run))
    path = run / "predictions" / "alpha.real.jsonl"
    path.write_text(path.read_text().replace('"prediction": "', '"prediction": "old '))
    evaluate(config(run, "max_new_tokens=3"))
    assert not any(line["prediction"].startswith("old ") for line in lines(path))


def test_text_only_questions_cannot_be_shown_an_image(run):
    with pytest.raises(UserError, match=r"benchmark 'gamma' has no images, images=\['real'\] cannot be shown"):
        evaluate(config(run, "images=[real]"))
    evaluate(config(run, "benchmarks=gamma", "images=[real,none]"))
    assert {path.name for path in (run / "predictions").glob("gamma.*.jsonl")} == {"gamma.none.jsonl", "gamma.majority.jsonl"}


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
