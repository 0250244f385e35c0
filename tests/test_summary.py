"""Prediction files to metric keys: which keys, pooling, the family of differences; and the command on anybody's file."""

import json

import pytest

from src.config.evaluate import EvaluateConfig
from src.evaluate import score_predictions as evaluate_file
from src.evaluation import benchmark, predictions_file, summary
from src.runtime.cli import compose, normalise_override
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.test_vqa import some


def config(**keys) -> EvaluateConfig:
    return to_typed(EvaluateConfig, compose("evaluate", [f"{name}={value}" for name, value in keys.items()]))


def summarise(found: dict, pooled: list[str]) -> dict:
    return summary.summarise(found, pooled=pooled, resamples=1000, seed=0)


@pytest.fixture
def found() -> dict:
    real = some(60, right=0.9)
    blind = [{**item, "prediction": "no"} for item in real]
    text = [{**item, "image": ""} for item in some(20, seed=3)]
    first = {"real": real, "shuffled": blind, "blank": real[::-1], "majority": blind}
    return {
        "medqa": {"none": text, "majority": text},
        "pathvqa": first,
        "vqa_rad": {"real": some(30, seed=2), "shuffled": some(30, seed=2)},
    }


def test_pooled_joins_what_all_have_and_keeps_images_apart(found):
    metrics = summarise(found, ["pathvqa", "vqa_rad"])["metrics"]
    assert metrics["vqa/pooled/real/all/bleu1"]["n"] == 90
    assert metrics["vqa/pooled/shuffled/all/bleu1"]["n"] == 90
    assert not any(key.startswith(("vqa/pooled/blank", "vqa/pooled/majority", "vqa/pooled/none")) for key in metrics)
    alone, again = (summarise({"pathvqa": found["pathvqa"], "x": found["pathvqa"]}, pooled) for pooled in (["pathvqa"], ["pathvqa", "x"]))
    key = "vqa/pooled/real/all/bleu1"
    width = [of["metrics"][key]["high"] - of["metrics"][key]["low"] for of in (alone, again)]
    assert width[1] < 0.9 * width[0]


def test_differences_are_a_family_per_key(found):
    metrics = summarise(found, ["pathvqa"])["metrics"]
    others = ("shuffled", "blank", "majority")
    rows = [metrics[f"vqa/pathvqa/real_minus_{other}/all/bleu1"] for other in others]
    assert rows[1]["p_holm"] == rows[1]["p"] == 1
    assert rows[0]["p_holm"] == pytest.approx(3 * rows[0]["p"])
    assert not any("medqa/real" in key for key in metrics)


def test_keys_have_five_parts_and_the_terminal_says_what_was_drawn(found):
    whole = summarise(found, ["pathvqa"])
    assert {key.count("/") for key in whole["metrics"]} == {4}
    lines = summary.summary_text(whole)
    assert "pathvqa          95% intervals by bootstrap over 20 images" in lines
    assert "medqa            95% intervals by bootstrap over 20 questions, none of which names an image" in lines
    assert set(whole["scorers"]) == {"medqa", "pathvqa", "vqa_rad", "pooled"}


def test_answers_that_did_not_end_are_counted_and_said(found):
    found["pathvqa"]["real"] = [{**item, "cut": True} if n < 3 else item for n, item in enumerate(found["pathvqa"]["real"])]
    whole = summarise(found, [])
    assert whole["cut"] == {"medqa": {}, "pathvqa": {"real": 3}, "vqa_rad": {}}
    assert "pathvqa          real                   3 answers reached max_new_tokens and were cut" in summary.summary_text(whole)


def test_anybodys_file_becomes_a_result(tmp_path):
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps({**item, "question": "what?"}) + "\n" for item in some(40)))
    folder = evaluate_file(config(predictions=file, outputs=tmp_path / "outputs", resamples=50))
    assert folder == tmp_path / "outputs" / "theirs"
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["vqa/file/real/all/bleu1"]["n"] == 40
    assert json.loads((folder / "evaluate.json").read_text())["scorers"]["file"]["bleu1"] == metrics["vqa/file/real/all/bleu1"]["value"]
    stored = predictions_file.read_predictions(folder / "predictions" / "file.real.jsonl")
    assert stored == [{"question": "what?", "source": "file", **item} for item in some(40)]


def test_what_a_file_says_of_its_answers_is_kept_and_empty_ones_are_counted(tmp_path, capsys):
    lines = [{"id": str(n), "question": "q", "references": ["left"], "prediction": "left"} for n in range(4)]
    lines[0] |= {"prediction": " ", "closed": True}
    lines[1] |= {"cut": True}
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = evaluate_file(config(predictions=file, outputs=tmp_path / "outputs", benchmarks="slake", resamples=9))
    said = json.loads((folder / "evaluate.json").read_text())
    assert said["empty"] == said["cut"] == {"slake": {"real": 1}}
    assert said["metrics"]["vqa/slake/real/closed/accuracy"]["n"] == 1
    assert "slake            real                   1 answers are empty" in summary.summary_text(said)
    assert "theirs.jsonl: ids not checked" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "sentence"), [("vqa_med2019", "did you mean 'vqa_med_2019'"), ("../x", "is not known without data_root")])
def test_the_benchmark_of_a_file_must_be_one(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence) as mistake:
        evaluate_file(config(predictions=tmp_path / "theirs.jsonl", outputs=tmp_path, benchmarks=name))
    assert "\n" not in str(mistake.value)


def test_a_file_cannot_bring_its_own_answers(tmp_path, shards):
    items = benchmark.read_benchmark("alpha", root=shards).items
    file = tmp_path / "theirs.jsonl"

    def scored(change: dict) -> dict:
        lines = [{**item, "prediction": item["references"][0]} for item in items]
        lines[3] |= change
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys = {"predictions": file, "outputs": tmp_path / "outputs", "benchmarks": "alpha", "data_root": shards, "resamples": 9}
        return json.loads((evaluate_file(config(**keys)) / "evaluate.json").read_text())["metrics"]

    assert scored({"references": [f" {items[3]['references'][0].upper()}"]})["vqa/alpha/real/all/exact"]["value"] == 1
    with pytest.raises(UserError, match=r"question 'test3' has the references \['mine'\], the benchmark has .*cannot bring its own$"):
        scored({"references": ["mine"], "prediction": "mine"})


def test_ids_are_held_to_the_benchmark_where_its_shards_are_given(tmp_path, shards):
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps({**item, "question": "what?"}) + "\n" for item in some(3)))
    with pytest.raises(UserError, match=r"not those of the benchmark's 8 questions: 8 ids are missing .* and 3 are extra"):
        evaluate_file(config(predictions=file, outputs=tmp_path, benchmarks="alpha", data_root=shards))
    assert not (tmp_path / "theirs").exists()


def test_the_benchmark_of_a_file_names_its_keys_and_its_alternatives(tmp_path):
    file = tmp_path / "theirs.jsonl"
    file.write_text(json.dumps({"id": 1, "question": "what?", "references": "lung#heart", "prediction": "heart"}))
    word = normalise_override("benchmark=vqa_med_2019", EvaluateConfig)  # a folder of conf has that name too
    said = to_typed(EvaluateConfig, compose("evaluate", [word, f"predictions={file}", f"outputs={tmp_path}", "name=x", "resamples=9"]))
    metrics = json.loads((evaluate_file(said) / "result.json").read_text())["metrics"]
    assert metrics["vqa/vqa_med_2019/real/all/exact"]["value"] == 1
    with pytest.raises(UserError, match="a predictions file answers one benchmark, 2 were given"):
        evaluate_file(config(predictions=file, outputs=tmp_path, benchmarks="[pathvqa,slake]"))


def test_a_control_without_likelihoods_stands_beside_a_model_that_has_them():
    """Multiple choice: the model says which option it would take without regard to length, a control does not."""
    about = {"source": "s", "type": "organ", "question": "q", "references": ["lung"], "choices": ["lung", "liver"]}
    model = [{**about, "id": str(n), "image": str(n), "prediction": "lung", "prediction_unnormalised": "liver"} for n in range(8)]
    control = [{**about, "id": str(n), "image": str(n), "prediction": "liver"} for n in range(8)]
    files = {"real": model, "shuffled": model, "majority": control}
    found = summary.summarise({"pmc_vqa": files}, pooled=[], resamples=20, seed=0)["metrics"]
    assert found["vqa/pmc_vqa/real_minus_majority/all/accuracy"]["value"] == 1.0
    assert "p_holm" in found["vqa/pmc_vqa/real_minus_shuffled/all/accuracy_unnormalised"]
    assert "vqa/pmc_vqa/real_minus_majority/all/accuracy_unnormalised" not in found
