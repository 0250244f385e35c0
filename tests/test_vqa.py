"""Headline scores: values computed by hand, properties, slices and intervals."""

import random

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score

from src.metrics.protocols import SCORERS
from src.metrics.published import bleu1_pathvqa
from src.metrics.vqa import HEADLINE, accuracy, bleu1, exact, f1, is_closed, paired_difference, score, slices, unchanged
from src.runtime.errors import UserError

WORDS = ["yes", "no", "left", "right", "lung", "mri", "ct", "carcinoma", "of", "hering", "canals", "in", "tissue", "two", "x-ray"]


def random_items(count: int, *, seed: int = 0, correct: float = 0.4) -> list[dict]:
    """Items in clusters of three, whose prediction equals the reference with probability `correct`."""
    rng = random.Random(seed)
    items = []
    for n in range(count):
        reference = rng.choice(["yes", "no", " ".join(rng.choices(WORDS[2:], k=rng.randint(1, 4)))])
        prediction = reference if rng.random() < correct else " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
        items.append(
            {
                "id": f"q{n}",
                "image": f"i{n // 3}",
                "type": rng.choice(["organ", "size"]),
                "references": [reference],
                "prediction": prediction,
            }
        )
    return items


@pytest.mark.parametrize(
    ("scorer", "prediction", "references", "value"),
    [
        (bleu1, "Left lung.", ["left lung"], 1.0),
        (bleu1, "the left lung", ["left lung"], 2 / 3),
        (bleu1, "lung lung", ["left lung"], 1 / 2),
        (bleu1, "lung", ["left lung"], np.exp(1 - 2)),
        (bleu1, "lung", ["left lung", "Lung!"], 1.0),
        (bleu1, "x ray", ["X-ray"], 1.0),
        (bleu1, "yes.", ["yes"], 1.0),
        (exact, "The left  lung.", ["left lung"], 1.0),
        (exact, "two", ["2"], 1.0),
        (exact, "none", ["0"], 1.0),
        (exact, "left", ["left lung"], 0.0),
        (exact, "ct", ["mri", "CT"], 1.0),
        (f1, "left lung", ["lung"], 2 / 3),
        (f1, "lung lung", ["lung"], 2 / 3),
        (f1, "lung lung", ["lung", "a lung, a lung"], 2 / 3),
        (f1, "mri", ["ct"], 0.0),
        (accuracy, "Yes, there is.", ["yes"], 1.0),
        (accuracy, "normal", ["no"], 0.0),
        (accuracy, "it is not", ["no"], 0.0),
        (accuracy, "yes and no", ["no"], 0.0),
        (accuracy, "pleural effusion", ["pleural effusion"], 1.0),
        (accuracy, "pleural", ["pleural effusion"], 0.0),
    ],
)
def test_score_values(scorer, prediction, references, value):
    assert scorer(prediction, references) == pytest.approx(value)


@pytest.mark.parametrize("name", HEADLINE)
@pytest.mark.parametrize("references", [["left lung"], ["yes"], ["2"], ["ct", "mri of the brain"]])
def test_empty_answer_scores_zero_and_correct_answer_scores_one(name, references):
    assert HEADLINE[name]("", references) == 0
    assert HEADLINE[name](" .", references) == 0
    assert all(HEADLINE[name](reference, references) == 1 for reference in references)


def test_bleu1_equals_the_official_one_without_punctuation():
    for item in random_items(300):
        prediction, references = item["prediction"].replace("-", ""), [item["references"][0].replace("-", "")]
        expected = pytest.approx(float(bleu_score([prediction], [references], n_gram=1)), abs=1e-6)
        assert bleu1(prediction, references) == bleu1_pathvqa(prediction, references) == expected


def test_is_closed_only_for_yes_no_references():
    assert is_closed(["Yes"])
    assert is_closed(["no."])
    assert not is_closed(["yes", "partly"])
    assert not is_closed(["normal"])


def test_slices_are_not_empty_and_cover_all_questions():
    items = random_items(50)
    masks = slices([*items, {**items[0], "id": "x", "type": "yes/no"}, {**items[0], "id": "y", "type": ""}])
    assert list(masks) == ["all", "open", "closed", "type=organ", "type=size", "type=yes-no"]
    assert (masks["open"] ^ masks["closed"]).all()
    assert masks["type=yes-no"].sum() == 1
    assert "closed" not in slices([{**items[0], "references": ["lung"]}])


def test_metadata_of_the_items_adds_slices():
    item = {"id": "1", "prediction": "a", "references": ["a"], "slices": {"modality": "CT/MR", "system": "eye"}}
    masks = slices([item, {**item, "slices": {"modality": "eye"}}, {"id": "3", "references": ["a"]}])
    expected = {"modality=CT-MR": [1, 0, 0], "modality=eye": [0, 1, 0], "system=eye": [1, 0, 0]}
    assert {name: mask.tolist() for name, mask in masks.items() if "=" in name} == expected


def test_type_open_or_closed_overrides_the_references():
    base = {"prediction": "left", "references": ["left"]}
    items = [{**base, "id": "1", "type": "CLOSED"}, {**base, "id": "2", "type": "open", "references": ["yes"]}, {**base, "id": "3"}]
    assert slices(items)["closed"].tolist() == [True, False, False]
    scores = score(items, resamples=10, seed=0)
    assert scores["closed/accuracy"] == {"value": 1, "low": 0, "high": 1, "n": 1}
    assert "open/accuracy" not in scores


def test_score_is_the_mean_over_the_slice():
    items = random_items(200)
    scores = score(items, resamples=200, seed=0)
    closed = [item for item in items if is_closed(item["references"])]
    assert scores["all/bleu1"]["value"] == pytest.approx(np.mean([bleu1(item["prediction"], item["references"]) for item in items]))
    assert scores["closed/accuracy"]["value"] == pytest.approx(np.mean([accuracy(i["prediction"], i["references"]) for i in closed]))
    assert scores["closed/accuracy"]["n"] == len(closed)
    assert all(row["low"] <= row["value"] <= row["high"] for row in scores.values())


def test_accuracy_needs_a_closed_set_of_answers_for_every_question():
    items = random_items(60)
    assert {key for key in score(items, resamples=10, seed=0) if key.endswith("accuracy")} == {"closed/accuracy"}
    options = [{**item, "choices": ["ct", *item["references"]]} for item in items]
    assert "all/accuracy" in score(options, resamples=10, seed=0)


def test_options_are_scored_with_and_without_normalisation():
    items = [
        {**item, "choices": ["ct", *item["references"]], "prediction_unnormalised": item["references"][0]} for item in random_items(60)
    ]
    scores = score(items, resamples=10, seed=0)
    assert scores["all/accuracy_unnormalised"]["value"] == 1 > scores["all/accuracy"]["value"]
    assert not any("unnormalised" in key for key in score([*items, *random_items(1)], resamples=10, seed=0) if key.startswith("all/"))


@pytest.mark.parametrize(
    ("reference", "prediction", "value"),
    [
        ("> 5 cm", "< 5 cm", 0.0),
        ("> 5 cm", ">  5 CM", 1.0),
        ("A", "A", 1.0),
        ("+", "+", 1.0),
        ("+", "-", 0.0),
        ("No", "No, because it is small", 0.0),
        ("No", "no", 1.0),
        ("lung", "", 0.0),
    ],
)
def test_options_are_compared_without_normalisation(reference, prediction, value):
    item = {"id": "1", "references": [reference], "choices": [reference, "other"], "prediction": prediction}
    item["prediction_unnormalised"] = prediction or "other"
    scores = score([item], resamples=5, seed=0)
    assert scores["all/accuracy"]["value"] == scores["all/accuracy_unnormalised"]["value"] == SCORERS["accuracy"]([item]) == value


def test_closed_of_the_dataset_overrides_the_references():
    base = {"prediction": "left", "references": ["left"], "type": "side"}
    items = [{**base, "id": "1", "closed": True}, {**base, "id": "2", "closed": False, "references": ["yes"]}, {**base, "id": "3"}]
    assert slices(items)["closed"].tolist() == [True, False, False]
    assert score(items, resamples=5, seed=0)["closed/accuracy"]["value"] == 1


def test_scores_do_not_depend_on_the_order_of_items():
    items = random_items(120)
    shuffled = random.Random(1).sample(items, len(items))
    first, second = (score(order, resamples=50, seed=3) for order in (items, shuffled))
    assert first.keys() == second.keys()
    for key in first:
        assert first[key] == pytest.approx(second[key], abs=1e-12)
    for function in SCORERS.values():
        assert function(items) == pytest.approx(function(shuffled), abs=1e-12)


def test_intervals_depend_only_on_the_seed():
    items = random_items(120)
    assert score(items, resamples=100, seed=5) == score(items, resamples=100, seed=5)
    assert score(items, resamples=100, seed=5) != score(items, resamples=100, seed=6)


def test_answers_on_one_image_are_not_independent():
    """With eight copies of each question on its image the interval keeps its width. Without image names it shrinks by sqrt(8)."""
    items = [{**item, "image": item["id"]} for item in random_items(150)]
    copies = [{**item, "id": f"{item['id']} {n}"} for item in items for n in range(8)]
    once, clustered = (score(group, resamples=2000, seed=0)["all/exact"] for group in (items, copies))
    unclustered = score([{k: v for k, v in item.items() if k != "image"} for item in copies], resamples=2000, seed=0)["all/exact"]
    width = once["high"] - once["low"]
    assert clustered["high"] - clustered["low"] == pytest.approx(width, rel=0.1)
    assert unclustered["high"] - unclustered["low"] == pytest.approx(width / 8**0.5, rel=0.15)


def test_one_image_gives_the_widest_interval():
    items = [{**item, "image": "i"} for item in random_items(20)]
    assert {(row["low"], row["high"]) for row in score(items, resamples=20, seed=0).values()} == {(0.0, 1.0)}
    assert {(row["low"], row["high"]) for row in paired_difference(items, items, resamples=20, seed=0).values()} == {(-1.0, 1.0)}


def test_paired_difference_subtracts_the_scores():
    better, worse = random_items(300, correct=0.9), [{**item, "prediction": "mri"} for item in random_items(300, correct=0.9)][::-1]
    scores = paired_difference(better, worse, resamples=500, seed=0)
    first, second = score(better, resamples=2, seed=0), score(worse, resamples=2, seed=0)
    for key, row in scores.items():
        assert row["value"] == pytest.approx(first[key]["value"] - second[key]["value"])
        assert row["n"] == first[key]["n"]
    assert scores["all/bleu1"]["low"] > 0
    assert scores["all/bleu1"]["p"] == pytest.approx(1 / 501)
    same = paired_difference(better, better[::-1], resamples=500, seed=0)["all/bleu1"]
    assert (same["value"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_paired_difference_needs_the_same_questions():
    items = random_items(10)
    with pytest.raises(UserError, match="same questions on both sides, found 10 and 9 with 9 in common"):
        paired_difference(items, items[1:], resamples=10, seed=0)


def test_unchanged_is_the_share_of_equal_answers_by_kind_of_question():
    items = [{"id": str(n), "image": f"i{n // 2}", "type": f"t{n % 2}", "references": ["x"], "prediction": "Left  lung"} for n in range(8)]
    others = [{**item, "prediction": "left lung" if int(item["id"]) < 6 else "rib"} for item in items][::-1]
    others[-1]["prediction"] = ""
    rows = unchanged(items, others, resamples=500, seed=0)
    assert {key: row["value"] for key, row in rows.items()} == {
        "all/unchanged": 5 / 8,
        "open/unchanged": 5 / 8,
        "type=t0/unchanged": 2 / 4,
        "type=t1/unchanged": 3 / 4,
    }
    assert unchanged(items, items, resamples=9, seed=0)["all/unchanged"] == {"value": 1, "low": 1, "high": 1, "n": 8}
    with pytest.raises(UserError, match="same questions"):
        unchanged(items, others[1:], resamples=9, seed=0)


def test_scorer_without_an_applicable_question_is_none():
    assert SCORERS["closed_llava_med"]([{"id": "1", "references": ["lung"], "prediction": "lung"}]) is None
    assert all(function([]) is None for function in SCORERS.values())
    assert all(function.__doc__ for function in SCORERS.values())
