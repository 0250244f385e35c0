"""The answers section: one row per benchmark; a difference is significant only if the interval and Holm's p-value agree."""

from src.evaluation import summary
from src.reporting import answers
from src.reporting.blocks import Table
from src.reporting.run_data import scores_by_benchmark
from src.reporting.unchanged import unchanged_blocks
from tests.stored import items


def make_scores(**predictions: list[dict]) -> dict:
    return scores_by_benchmark(summary.summarise({"alpha": predictions}, pooled=[], resamples=200, seed=0)["metrics"])["alpha"]


def column(table: Table, name: str) -> list:
    return [row[table.columns.index(name)] for row in table.rows]


def test_benchmark_table_has_a_row_per_benchmark_and_no_difference_without_images():
    scores = {
        "alpha": make_scores(real=items("", 8), shuffled=items("", 2)),
        "gamma": make_scores(none=items("", 4), majority=items("", 2)),
    }
    table = answers.benchmark_table(scores)
    assert column(table, "benchmark") == ["alpha", "gamma"]
    assert column(table, "image") == ["real", "none"]
    assert str(column(table, "... above shuffled")[0]).startswith("+0.750")
    assert column(table, "... above shuffled")[1] is None
    assert column(table, "majority answer")[1].value == 0.25


def test_verdict_requires_interval_and_corrected_p():
    metric = {"value": 0.2, "low": 0.01, "high": 0.4, "n": 50, "p": 0.03}
    assert answers._verdict_cells(metric | {"p_holm": 0.03})[1:] == ["0.03", "real is better"]
    assert answers._verdict_cells(metric | {"p_holm": 0.12})[1:] == ["0.12", "no significant difference"]
    assert answers._verdict_cells(metric | {"p_holm": 0.03, "low": -0.01})[-1] == "no significant difference"
    lines = answers.verdicts({"real_minus_blank": {"all": {"bleu1": metric | {"p_holm": 0.12}}}})
    assert lines[0].startswith("No significant difference between the question's own image and a blank image")
    lines = answers.verdicts({"real_minus_shuffled": {"all": {"bleu1": metric | {"p_holm": 0.03}}}})
    assert lines == [
        "With its own image the model scores 0.200 more than with another test image, 95% interval 0.010 to 0.400 (BLEU-1, 50 questions)."
    ]


def test_multiple_choice_table_has_both_likelihood_rules():
    options = [
        {**item, "choices": ["yes", "no", "left", "right"], "prediction_unnormalised": item["references"][0]} for item in items("", 4)
    ]
    table = answers.condition_table(make_scores(real=options, majority=items("", 2)), pooled=False)
    assert column(table, "accuracy, not length-normalised")[0].value == 1
    assert column(table, "accuracy")[0].value == 0.5


def test_question_types_fall_back_to_the_most_frequent():
    parts = {"all": {}, **{f"type={name}": {"exact": {"n": n}} for name, n in (("plane", 3), ("organ", 9), ("yes-no", 5), ("site", 4))}}
    assert answers._question_types(parts) == ["type=organ", "type=yes-no", "type=site"]
    assert answers._question_types({**parts, "type=count": {"exact": {"n": 1}}}) == ["type=count"]


def test_answers_that_need_no_image_have_a_row_per_kind_of_question():
    (table,) = unchanged_blocks(make_scores(real=items("", 8), shuffled=items("", 2), blank=items("", 8), majority=items("", 2)))
    assert table.columns == ["questions on", "n", "same with blank image", "same with another test image"]
    assert column(table, "questions on") == ["all", "open", "closed", "presence", "side"]
    assert [cell.value for cell in column(table, "same with blank image")] == [1, 1, 1, 1, 1]
    assert [cell.value for cell in column(table, "same with another test image")] == [0.25, 0, 0.5, 0.5, 0]
    assert unchanged_blocks(make_scores(none=items("", 4), majority=items("", 2))) == []
