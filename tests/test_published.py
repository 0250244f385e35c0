"""Published scorers, compared with the libraries that they call and, for their peculiarities, with values computed by hand."""

import math
import random
import warnings

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from torchmetrics.functional.text import bleu_score

from src.metrics import bleu, published
from src.metrics.protocols import SCORERS
from src.metrics.text import CONTRACTIONS, normalise, words

NEEDS_MORE = ("choice_medevalkit", "choice_medevalkit_bug", "choice_lmms_eval", *(name for name in SCORERS if name.startswith("judged")))
PERFECT = [name for name in SCORERS if name not in ("bleu1_van_sonsbeek", "bleu4_imageclef_new_nltk", *NEEDS_MORE)]


@pytest.fixture
def sentences() -> list[tuple[list[str], list[str]]]:
    rng = random.Random(0)
    return [(rng.choices("abcd", k=rng.randint(0, 7)), rng.choices("abcd", k=rng.randint(1, 7))) for _ in range(400)]


@pytest.mark.filterwarnings("ignore")
def test_bleu_equals_nltk(sentences):
    for prediction, reference in sentences:
        assert bleu.bleu1(prediction, reference) == pytest.approx(sentence_bleu([reference], prediction, weights=(1, 0, 0, 0)), abs=1e-12)
        expected = sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method0)
        assert bleu.bleu4(prediction, reference, old_nltk=False) == pytest.approx(expected, abs=1e-12)


def test_old_nltk_differs_only_without_a_match_of_some_order(sentences):
    for prediction, reference in sentences:
        old, new = (bleu.bleu4(prediction, reference, old_nltk=old_nltk) for old_nltk in (True, False))
        assert old == new if new > 1e-9 else old >= new


@pytest.mark.parametrize(
    ("prediction", "old", "new"), [("cyst", 1.0, 0.0), ("left renal cyst", 1.0, 0.0), ("left renal simple cyst", 1.0, 1.0)]
)
def test_correct_answer_needs_four_words_under_new_nltk(prediction, old, new):
    assert published.bleu4_imageclef_old_nltk(prediction, [prediction]) == pytest.approx(old)
    assert published.bleu4_imageclef_new_nltk(prediction, [prediction]) == pytest.approx(new, abs=1e-9)


def test_imageclef_preprocessing_removes_stop_words_and_stems():
    assert published.imageclef_words("The X-rays of both lungs, don't show it.") == ("xray", "lung", "dont", "show")
    assert published.imageclef_words("no") == ()
    assert published.bleu4_imageclef_new_nltk("no", ["no"]) == 1
    assert published.bleu4_imageclef_new_nltk("not this", ["no"]) == 1
    assert published.bleu4_imageclef_new_nltk("yes", ["no"]) == 0
    assert published.bleu4_imageclef_old_nltk("cyst", ["mass", "cysts"]) == 1


def test_van_sonsbeek_compares_characters():
    prediction, reference = "portal tract", "in the canals of hering"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert published.bleu1_van_sonsbeek(prediction, [reference]) == pytest.approx(
            sentence_bleu(reference, prediction, weights=(1, 0, 0, 0))
        )
    assert published.bleu1_van_sonsbeek(prediction, [reference]) == pytest.approx(7 / 12)
    assert published.bleu1_pathvqa(prediction, [reference]) == 0
    assert published.bleu1_van_sonsbeek("hello", ["hello"]) == pytest.approx(4 / 5)
    assert published.bleu1_van_sonsbeek("Yes", ["yes"]) == pytest.approx(2 / 3)


def test_punctuation_is_part_of_words_in_pathvqa_and_mmbert():
    assert published.bleu1_pathvqa("Yes", ["yes"]) == 1
    assert published.bleu1_pathvqa("yes.", ["yes"]) == 0
    assert published.bleu1_mmbert("glioma", ["glioma", "mass"]) == 0  # the reference is 'glioma#mass'
    assert published.bleu1_mmbert("glioma#mass", ["glioma", "mass"]) == 1


@pytest.mark.parametrize(
    ("prediction", "recall"),
    [("left lung", 1.0), ("lung", 1 / 2), ("lung lung lung", 3 / 4), ("the heart", 0.0), ("", 0.0), ("left, lung and rib", 1.0)],
)
def test_llava_med_recall_counts_repeated_matches(prediction, recall):
    assert published.recall_llava_med(prediction, ["left lung"]) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("prediction", "reference", "fixed"),
    [("yes", "yes", 1), ("normal", "no", 1), ("cannot be seen", "no", 1), ("yes", "no", 0), ("lung", "yes", 0), ("yes and no", "no", 1)],
)
def test_llava_med_closed_score_compares_substrings(prediction, reference, fixed):
    assert published.closed_llava_med(prediction, [reference]) == fixed


def test_llava_med_bug_ignores_wrong_answers():
    items = [{"references": ["yes"], "prediction": prediction} for prediction in ("yes", "no", "no", "lung")]
    assert SCORERS["closed_llava_med"](items) == 1 / 4
    assert SCORERS["closed_llava_med_bug"](items) == 1 / 2
    assert SCORERS["closed_llava_med_bug"](items[1:3]) is None


def test_multimedeval_scorers():
    assert published.f1_multimedeval("lung lung", ["left lung"]) == pytest.approx(2 / 3)
    assert published.f1_multimedeval("", ["left lung"]) == 0
    assert published.recall_multimedeval("lung lung", ["left lung", "right upper lung"]) == 1 / 2
    assert published.recall_multimedeval("lung", ["the"]) == 0  # no token is left after normalisation
    assert published.open_multimedeval("an upper left lung", ["the left upper lung lobe"]) == 1  # 3 of 4
    assert published.open_multimedeval("left lung lung", ["left upper lung"]) == 0  # 2 of 3
    closed = [{"references": ["no"], "prediction": "no", "type": "open"}, {"references": ["left"], "prediction": "x", "closed": True}]
    assert [SCORERS[f"{name}_multimedeval"](closed) for name in ("recall", "closed", "open")] == [
        1 / 2,
        1,
        0,
    ]  # closed is decided by the references
    assert published.closed_multimedeval("it is not", ["no"]) == 1
    assert published.closed_multimedeval("normal", ["no"]) == 0
    prediction, reference = "The left-sided lung", "left lung"
    normalised = [published.normalise_llava_med(text) for text in (prediction, reference)]
    assert published.bleu1_multimedeval(prediction, [reference]) == pytest.approx(
        float(bleu_score([normalised[0]], [[normalised[1]]], n_gram=1))
    )


def test_corpus_bleu_sums_counts_before_dividing():
    items = [{"references": ["left lung", "lung"], "prediction": "Lung"}, {"references": ["ct of the head"], "prediction": "the ct"}]
    # 3 of 3 words match; the references nearest in length have 1 + 4 words
    assert published.corpus_bleu1(items) == pytest.approx(math.exp(1 - 5 / 3))


@pytest.mark.parametrize("name", [name for name in SCORERS if name not in NEEDS_MORE])
def test_empty_answers_score_zero_and_correct_answers_score_one(name):
    items = [{"references": [answer], "prediction": answer} for answer in ("left lung", "mri", "yes")]
    assert SCORERS[name]([{**item, "prediction": ""} for item in items]) in (0, None)
    assert SCORERS[name](items) == (
        pytest.approx(1) if name in PERFECT else pytest.approx({"bleu1_van_sonsbeek": (8 / 9 + 2) / 3}.get(name, 0))
    )


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The left, lung", "left lung"),
        ("left,lung", "left lung"),
        ("x-ray", "x ray"),
        ("x -ray", "x ray"),
        ("1,000 cells-a", "1000 cellsa"),
        ("2.5 cm.", "2.5 cm"),
        ("none of two", "0 of 2"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("What?\nYes!", "what yes"),
        ("a", ""),
    ],
)
def test_normalise_follows_the_vqa_challenge(text, normalised):
    assert normalise(text) == normalised
    assert normalise(normalised) == normalised


def test_contractions_restore_one_apostrophe():
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["twas"] == "'twas"
    assert "ill" not in CONTRACTIONS


def test_words_are_runs_of_letters_and_digits():
    assert words("X-ray, 2.5 cm of_Hodgkin's (left)") == ["x", "ray", "2", "5", "cm", "of", "hodgkin", "s", "left"]
