"""Metrics of predictions files: keys, pooling and families of differences; and the command on files of other systems."""

import json

import pytest

from src.commands.score import score_predictions
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.evaluate import print_scores
from src.evaluation import benchmark, predictions_file, summary
from src.metrics.vqa import slices
from src.report import report
from src.runtime.cli import compose, normalise_override
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.test_vqa import random_items


def config(**keys) -> EvaluateConfig:
    return to_typed(EvaluateConfig, compose("evaluate", [f"{name}={value}" for name, value in keys.items()]))


def summarise(predictions: dict, pooled: list[str]) -> dict:
    return summary.summarise(predictions, pooled=pooled, resamples=1000, seed=0)


@pytest.fixture
def predictions() -> dict:
    real = random_items(60, correct=0.9)
    blind = [{**item, "prediction": "no"} for item in real]
    text = [{**item, "image": ""} for item in random_items(20, seed=3)]
    first = {"real": real, "shuffled": blind, "blank": real[::-1], "majority": blind}
    return {
        "medqa": {"none": text, "majority": text},
        "pathvqa": first,
        "vqa_rad": {"real": random_items(30, seed=2), "shuffled": random_items(30, seed=2)},
    }


def test_pooled_contains_shared_conditions_and_keeps_images_distinct(predictions):
    metrics = summarise(predictions, ["pathvqa", "vqa_rad"])["metrics"]
    assert metrics["vqa/pooled/real/all/bleu1"]["n"] == 90
    assert metrics["vqa/pooled/shuffled/all/bleu1"]["n"] == 90
    assert not any(key.startswith(("vqa/pooled/blank", "vqa/pooled/majority", "vqa/pooled/none")) for key in metrics)
    once, twice = (
        summarise({"pathvqa": predictions["pathvqa"], "x": predictions["pathvqa"]}, pooled) for pooled in (["pathvqa"], ["pathvqa", "x"])
    )
    key = "vqa/pooled/real/all/bleu1"
    width = [result["metrics"][key]["high"] - result["metrics"][key]["low"] for result in (once, twice)]
    assert width[1] < 0.9 * width[0]


def test_differences_under_one_key_are_a_family(predictions):
    metrics = summarise(predictions, ["pathvqa"])["metrics"]
    others = ("shuffled", "blank", "majority")
    rows = [metrics[f"vqa/pathvqa/real_minus_{other}/all/bleu1"] for other in others]
    assert rows[1]["p_holm"] == rows[1]["p"] == 1
    assert rows[0]["p_holm"] == pytest.approx(3 * rows[0]["p"])
    assert not any("medqa/real" in key for key in metrics)


def test_summary_text_describes_the_clusters(predictions):
    result = summarise(predictions, ["pathvqa"])
    assert {key.count("/") for key in result["metrics"]} == {4}
    lines = summary.summary_text(result)
    assert "pathvqa          95% intervals by bootstrap over 20 images" in lines
    assert "medqa            95% intervals by bootstrap over 20 questions without an image name" in lines
    assert set(result["scorers"]) == {"medqa", "pathvqa", "vqa_rad", "pooled"}


def test_answers_unchanged_by_another_image_are_metrics_and_printed(predictions):
    result = summarise(predictions, ["pathvqa", "vqa_rad"])
    keys = {key for key in result["metrics"] if key.endswith("all/unchanged")}
    names = ("pathvqa/shuffled", "pathvqa/blank", "vqa_rad/shuffled", "pooled/shuffled")
    assert keys == {f"vqa/{name}/all/unchanged" for name in names}  # neither baselines nor questions without images
    assert result["metrics"]["vqa/pathvqa/blank/all/unchanged"]["value"] == 1
    real = predictions["pathvqa"]["real"]
    share = sum(item["prediction"].lower() == "no" for item in real) / len(real)
    assert result["metrics"]["vqa/pathvqa/shuffled/all/unchanged"]["value"] == pytest.approx(share)
    assert "vqa_rad          shuffled               unchanged   1.000  [1.000, 1.000]  n=30" in summary.summary_text(result)


def test_table_of_protocols_is_printed_for_a_predictions_file(tmp_path, capsys):
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "q", "references": ["yes"], "prediction": "Yes, it is"}))
    folder = score_predictions(config(predictions=path, outputs=tmp_path, resamples=10))
    print_scores(folder, str(tmp_path), protocols=True)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("exact_lmms_eval")).split()[1] == "0.0"
    assert next(line for line in lines if line.startswith("closed_medevalkit ")).split(maxsplit=2)[1:] == [
        "100.0",
        "yes/no only; substring, wrong if both occur",
    ]


def test_cut_answers_are_counted_and_printed(predictions):
    predictions["pathvqa"]["real"] = [{**item, "cut": True} if n < 3 else item for n, item in enumerate(predictions["pathvqa"]["real"])]
    result = summarise(predictions, [])
    assert result["cut"] == {"medqa": {}, "pathvqa": {"real": 3}, "vqa_rad": {}}
    assert "pathvqa          real                   3 answers reached max_new_tokens and were cut" in summary.summary_text(result)


def test_predictions_file_of_another_system_is_scored(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({**item, "question": "what?"}) + "\n" for item in random_items(40)))
    folder = score_predictions(config(predictions=file, outputs=tmp_path / "outputs", resamples=50))
    assert folder == tmp_path / "outputs" / "answers"
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["vqa/file/real/all/bleu1"]["n"] == 40
    assert json.loads((folder / "evaluate.json").read_text())["scorers"]["file"]["bleu1"] == metrics["vqa/file/real/all/bleu1"]["value"]
    stored = predictions_file.read_predictions(folder / "predictions" / "file.real.jsonl")
    assert stored == [{"question": "what?", "source": "file", **item} for item in random_items(40)]


def test_flags_of_a_predictions_file_are_used_and_empty_answers_counted(tmp_path, capsys):
    lines = [{"id": str(n), "question": "q", "references": ["left"], "prediction": "left"} for n in range(4)]
    lines[0] |= {"prediction": " ", "closed": True}
    lines[1] |= {"cut": True}
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = score_predictions(config(predictions=file, outputs=tmp_path / "outputs", benchmarks="slake", resamples=9))
    result = json.loads((folder / "evaluate.json").read_text())
    assert result["empty"] == result["cut"] == {"slake": {"real": 1}}
    assert result["metrics"]["vqa/slake/real/closed/accuracy"]["n"] == 1
    assert "slake            real                   1 answers are empty" in summary.summary_text(result)
    assert "answers.jsonl: ids not checked" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [("vqa_med2019", "did you mean 'vqa_med_2019'"), ("../x", "unknown without data_root")])
def test_unknown_benchmark_of_a_predictions_file_is_rejected(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        score_predictions(config(predictions=tmp_path / "answers.jsonl", outputs=tmp_path, benchmarks=name))
    assert "\n" not in str(error.value)


def test_references_that_differ_from_the_benchmark_are_rejected(tmp_path, shards):
    items = benchmark.read_benchmark("alpha", root=shards).items
    file = tmp_path / "answers.jsonl"

    def score_with(change: dict) -> dict:
        lines = [{**item, "prediction": item["references"][0]} for item in items]
        lines[3] |= change
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys = {"predictions": file, "outputs": tmp_path / "outputs", "benchmarks": "alpha", "data_root": shards, "resamples": 9}
        return json.loads((score_predictions(config(**keys)) / "evaluate.json").read_text())["metrics"]

    assert score_with({"references": [f" {items[3]['references'][0].upper()}"]})["vqa/alpha/real/all/exact"]["value"] == 1
    with pytest.raises(
        UserError, match=r"question 'test3' has 1 references that differ from the 1 of the benchmark; use those of the benchmark$"
    ):
        score_with({"references": ["wrong"], "prediction": "wrong"})


def test_ids_are_compared_with_the_shards_of_the_benchmark(tmp_path, shards):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({**item, "question": "what?"}) + "\n" for item in random_items(3)))
    with pytest.raises(UserError, match=r"the benchmark has 8 questions; 8 ids are missing .* and 3 are extra"):
        score_predictions(config(predictions=file, outputs=tmp_path, benchmarks="alpha", data_root=shards))
    assert not (tmp_path / "answers").exists()


def test_benchmark_of_a_predictions_file_sets_metric_keys_and_alternatives(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"id": 1, "question": "what?", "references": "lung#heart", "prediction": "heart"}))
    word = normalise_override("benchmark=vqa_med_2019", EvaluateConfig)  # there is also a config group with this name
    evaluate_config = to_typed(
        EvaluateConfig, compose("evaluate", [word, f"predictions={file}", f"outputs={tmp_path}", "name=x", "resamples=9"])
    )
    metrics = json.loads((score_predictions(evaluate_config) / "result.json").read_text())["metrics"]
    assert metrics["vqa/vqa_med_2019/real/all/exact"]["value"] == 1
    with pytest.raises(UserError, match="a predictions file answers one benchmark, found 2"):
        score_predictions(config(predictions=file, outputs=tmp_path, benchmarks="[pathvqa,slake]"))


def test_baseline_without_likelihoods_is_compared_by_accuracy_only():
    """In multiple choice a model has `prediction_unnormalised`, a baseline does not."""
    base = {"source": "s", "type": "organ", "question": "q", "references": ["lung"], "choices": ["lung", "liver"]}
    model = [{**base, "id": str(n), "image": str(n), "prediction": "lung", "prediction_unnormalised": "liver"} for n in range(8)]
    baseline = [{**base, "id": str(n), "image": str(n), "prediction": "liver"} for n in range(8)]
    files = {"real": model, "shuffled": model, "majority": baseline}
    metrics = summary.summarise({"pmc_vqa": files}, pooled=[], resamples=20, seed=0)["metrics"]
    assert metrics["vqa/pmc_vqa/real_minus_majority/all/accuracy"]["value"] == 1.0
    assert "p_holm" in metrics["vqa/pmc_vqa/real_minus_shuffled/all/accuracy_unnormalised"]
    assert "vqa/pmc_vqa/real_minus_majority/all/accuracy_unnormalised" not in metrics


def test_types_open_and_closed_are_the_slices_of_these_names():
    items = [{"id": str(n), "type": kind, "references": ["yes"], "prediction": "yes"} for n, kind in enumerate(("open", "Closed", "side"))]
    assert slices(items).keys() == {"all", "open", "closed", "type=side"}


def test_summary_text_does_not_repeat_a_single_benchmark_as_pooled(predictions):
    one = {"alpha": next(iter(predictions.values()))}
    text = summary.summary_text(summarise(one, pooled=["alpha"]))
    assert "alpha" in text
    assert "pooled" not in text


def test_score_of_a_predictions_file_ends_with_the_report_of_its_whole_name(tmp_path, capsys):
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "q", "references": ["a"], "prediction": "a"}))
    folder = score_predictions(config(predictions=path, outputs=tmp_path, name="sw/theirs", resamples=10))
    print_scores(folder, str(tmp_path))
    assert capsys.readouterr().out.endswith(f"next: python -m src.report runs=sw/theirs outputs={tmp_path}\n")


def test_report_of_a_predictions_file_gives_no_advice_on_training(tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "question": "q", "references": ["a"], "prediction": "a"}) + "\n" for n in range(3)))
    score_predictions(config(predictions=path, outputs=tmp_path, resamples=10))
    text = report(to_typed(ReportConfig, compose("report", ["runs=theirs", f"outputs={tmp_path}"]))).with_suffix(".md").read_text()
    assert "src.train" not in text
    assert "src.transfer" not in text
    assert "clustered by image" not in text
    assert "by bootstrap over 3 questions without an image name" in text
