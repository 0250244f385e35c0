"""What the page says of answers: one row per benchmark, and a difference only where Holm's p-value and the interval agree."""

from src.evaluation import summary
from src.reporting import answers
from src.reporting.blocks import Table
from tests.stored import items


def scored(**files: list[dict]) -> dict:
    return answers.grouped(summary.summarise({"alpha": files}, pooled=[], resamples=200, seed=0)["metrics"])["alpha"]


def column(table: Table, name: str) -> list:
    return [row[table.columns.index(name)] for row in table.rows]


def test_every_benchmark_has_its_row_and_one_without_images_no_difference():
    found = {"alpha": scored(real=items("", 8), shuffled=items("", 2)), "gamma": scored(none=items("", 4), majority=items("", 2))}
    table = answers.benchmark_table(found)
    assert column(table, "benchmark") == ["alpha", "gamma"]
    assert column(table, "image") == ["real", "none"]
    assert str(column(table, "... above shuffled")[0]).startswith("+0.750")
    assert column(table, "... above shuffled")[1] is None
    assert column(table, "majority answer")[1].value == 0.25


def test_no_difference_is_shown_where_the_corrected_p_is_not_small():
    metric = {"value": 0.2, "low": 0.01, "high": 0.4, "n": 50, "p": 0.03}
    assert answers._verdict(metric | {"p_holm": 0.03})[1:] == ["0.03", "real is better"]
    assert answers._verdict(metric | {"p_holm": 0.12})[1:] == ["0.12", "no difference shown"]
    assert answers._verdict(metric | {"p_holm": 0.03, "low": -0.01})[-1] == "no difference shown"
    lines = answers.verdicts({"real_minus_blank": {"all": {"bleu1": metric | {"p_holm": 0.12}}}})
    assert lines[0].startswith("No difference shown between the question's own image and a blank image")
    lines = answers.verdicts({"real_minus_shuffled": {"all": {"bleu1": metric | {"p_holm": 0.03}}}})
    assert lines == [
        "With its own image the model scores 0.200 more than with another test image, 95% interval 0.010 to 0.400 (BLEU-1, 50 questions)."
    ]


def test_options_have_both_rules_of_likelihood():
    options = [
        {**item, "choices": ["yes", "no", "left", "right"], "prediction_unnormalised": item["references"][0]} for item in items("", 4)
    ]
    table = answers.condition_table(scored(real=options, majority=items("", 2)), pooled=False)
    assert column(table, "accuracy, not length-normalised")[0].value == 1
    assert column(table, "accuracy")[0].value == 0.5


def test_question_types_of_other_data_are_the_most_frequent():
    parts = {"all": {}, **{f"type={name}": {"exact": {"n": n}} for name, n in (("plane", 3), ("organ", 9), ("yes-no", 5), ("site", 4))}}
    assert answers._types(parts) == ["type=organ", "type=yes-no", "type=site"]
    assert answers._types({**parts, "type=count": {"exact": {"n": 1}}}) == ["type=count"]
