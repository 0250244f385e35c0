"""Orders of the options and wordings: the questions, and their scores computed by hand."""

from types import SimpleNamespace

import pytest

from src.config.evaluate import EvaluateConfig, check_evaluate_config
from src.data.record import Record
from src.evaluation.benchmark import Benchmark
from src.evaluation.summary import summarise, summary_text
from src.evaluation.variants import PARAPHRASES, kind, rephrase, variants_of
from src.metrics.variants import order_scores, prompt_scores
from src.reporting.run_data import scores_by_benchmark
from src.reporting.variants import variant_blocks
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

RECORDS = [
    Record("q1", "own", "test", turns=[("Which?", "a")], choices=["a", "b", "c"]),
    Record("q2", "own", "test", turns=[("Where?", "y")], choices=["x", "y"]),
    Record("q3", "own", "test", turns=[("first?", "no"), ("Is {} seen?", "yes")]),
    Record("q4", "own", "test", turns=[("What?", "a cyst")]),
]


class Texts(SimpleNamespace):
    """Shards of `RECORDS`, without images."""

    def text(self, row: int) -> Record:
        return RECORDS[row]

    def column(self, name: str):
        import numpy as np

        return np.zeros(len(RECORDS), int)


def make_benchmark(rows: list[int]) -> Benchmark:
    return Benchmark("own", Texts(), rows, rows, pooled=False, choices=True)


def test_orders_are_all_rotations_and_keep_ids_and_marks():
    test = make_benchmark([0, 1, 2, 3])
    test.items[0]["seen"] = True
    orders = variants_of(test, ["orders"])
    assert {name: [(item["id"], item["choices"]) for item in order.items] for name, order in orders.items()} == {
        "order1": [("q1", ["b", "c", "a"]), ("q2", ["y", "x"])],
        "order2": [("q1", ["c", "a", "b"])],
    }
    assert [item.get("seen") for item in orders["order1"].items] == [True, None]
    assert orders["order1"].record(0).answer == "a"


def test_orders_of_a_benchmark_without_options_are_left_out(capsys):
    assert variants_of(make_benchmark([2, 3]), ["orders"]) == {}
    assert capsys.readouterr().out == "own: without variants=[orders], because its questions have no options\n"


def test_wording_replaces_the_last_question_only():
    assert [kind(record) for record in RECORDS] == ["choice", "choice", "closed", "open"]
    assert rephrase(RECORDS[2], 1).turns == [("first?", "no"), ("Yes or no: Is {} seen?", "yes")]
    assert all(len(set(wordings)) == 3 and all("{}" in text for text in wordings) for wordings in PARAPHRASES.values())
    prompts = variants_of(make_benchmark([0, 3]), ["prompts"])
    assert list(prompts) == ["prompt1", "prompt2", "prompt3"]
    assert [item["question"] for item in prompts["prompt1"].items] == ["Which? Choose one of the options.", "What? Answer briefly."]


def answers(**predictions: str) -> list[dict]:
    """Items of `RECORDS` with these predictions."""
    records = {record.key: record for record in RECORDS}
    return [
        {"id": key, "references": [records[key].answer], "choices": records[key].choices, "prediction": text}
        for key, text in predictions.items()
    ]


def values(rows: dict[str, dict]) -> dict[str, float]:
    return {key: row["value"] for key, row in rows.items() if key.startswith("all/")}


@pytest.mark.parametrize(
    ("given", "orders", "accuracy", "every_order"),
    [
        # q1 is right in two of three orders, q2 in both: (2/3 + 1) / 2; only q2 in every order
        ({"q1": "a", "q2": "y"}, [{"q1": "a", "q2": "y"}, {"q1": "b"}], 5 / 6, 0.5),
        ({"q1": "a", "q2": "y"}, [{"q1": "a", "q2": "y"}, {"q1": "a"}], 1, 1),
        # always the first option of the order: 1/3 and 1/2, wherever the dataset puts the right one
        ({"q1": "a", "q2": "x"}, [{"q1": "b", "q2": "y"}, {"q1": "c"}], 5 / 12, 0),
    ],
)
def test_order_scores_equal_those_by_hand(given, orders, accuracy, every_order):
    rows = order_scores(answers(**given, q4="a cyst"), [answers(**order) for order in orders], resamples=20, seed=0)
    given_order = sum(answer in ("a", "y") for answer in given.values()) / 2
    assert values(rows) == pytest.approx({"all/given_order": given_order, "all/accuracy": accuracy, "all/every_order": every_order})
    assert rows["all/accuracy"]["n"] == 2  # q4 has no options


def test_prompt_scores_are_the_mean_and_the_range_over_all_wordings():
    given, wordings = answers(q3="yes", q4="a cyst"), [answers(q4="a cyst", q3="no"), answers(q3="no", q4="?"), answers(q3="yes", q4="?")]
    rows = prompt_scores(given, wordings, resamples=20, seed=0)
    assert {key: rows["all/exact"][key] for key in ("value", "lowest", "highest", "n")} == {"value": 0.5, "lowest": 0, "highest": 1, "n": 2}
    assert {key: rows["closed/accuracy"][key] for key in ("value", "lowest", "highest")} == {"value": 0.5, "lowest": 0, "highest": 1}
    with pytest.raises(UserError, match="needs the same questions"):
        prompt_scores(given, [answers(q4="a cyst")], resamples=20, seed=0)


def test_variants_are_printed_and_reported():
    given = answers(q1="a", q2="y")
    files = {"order1": answers(q1="a", q2="y"), "order2": answers(q1="b"), "prompt1": answers(q1="b", q2="y")}
    result = summarise({"own": {"real": given}}, pooled=[], variants={"own": files}, resamples=20, seed=0)
    lines = [line for line in summary_text(result).splitlines() if " orders " in line or " prompts " in line]
    assert [line.split("[")[0].split() for line in lines[:2]] == [
        ["own", "orders", "accuracy", "0.833"],
        ["own", "orders", "every_order", "0.500"],
    ]
    assert lines[-1].endswith("n=2  by wording 0.500 to 1.000")
    orders, prompts = variant_blocks(scores_by_benchmark(result["metrics"])["own"], "accuracy")
    assert [str(cell)[:5] for cell in orders.rows[0]] == ["all", "2", "1.000", "0.833", "0.500"]
    assert [str(cell)[:5] for cell in prompts.rows[0]] == ["all", "2", "1.000", "0.750", "0.5", "1.0"]
    assert variant_blocks({"real": {}}, "exact") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["variants=[order]"], r"variants='order'; did you mean 'orders'"),
        (["variants=[prompts]", "images=[blank]"], r"variants=\['prompts'\]: they are asked under images=\[real\], else \[none\]"),
        (["variants=[orders]", "run=null", "predictions=x.jsonl"], r"variants=\['orders'\]: they need the model"),
    ],
)
def test_variants_that_cannot_be_asked_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        check_evaluate_config(to_typed(EvaluateConfig, compose("evaluate", ["run=mini", *words])))
