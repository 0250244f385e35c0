"""Published scorers: against the libraries that they call, and by hand where the peculiarity lies."""

import math
import random
import warnings

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from torchmetrics.functional.text import bleu_score

from src.metrics import bleu, published
from src.metrics.text import CONTRACTIONS, normalise, words
from src.metrics.vqa import SCORERS

PERFECT = [name for name in SCORERS if name not in ("bleu1_van_sonsbeek", "bleu4_imageclef_new_nltk")]


@pytest.fixture
def sentences() -> list[tuple[list[str], list[str]]]:
    rng = random.Random(0)
    return [(rng.choices("abcd", k=rng.randint(0, 7)), rng.choices("abcd", k=rng.randint(1, 7))) for _ in range(400)]


@pytest.mark.filterwarnings("ignore")
def test_bleu_is_that_of_nltk(sentences):
    for said, meant in sentences:
        assert bleu.bleu1(said, meant) == pytest.approx(sentence_bleu([meant], said, weights=(1, 0, 0, 0)), abs=1e-12)
        whole = sentence_bleu([meant], said, smoothing_function=SmoothingFunction().method0)
        assert bleu.bleu4(said, meant, old_nltk=False) == pytest.approx(whole, abs=1e-12)


def test_old_nltk_differs_only_where_an_order_has_no_match(sentences):
    for said, meant in sentences:
        old, new = (bleu.bleu4(said, meant, old_nltk=kind) for kind in (True, False))
        assert old == new if new > 1e-9 else old >= new


@pytest.mark.parametrize(("said", "old", "new"), [("cyst", 1.0, 0.0), ("left renal cyst", 1.0, 0.0), ("left renal simple cyst", 1.0, 1.0)])
def test_a_right_answer_needs_four_words_under_new_nltk(said, old, new):
    assert published.bleu4_imageclef_old_nltk(said, [said]) == pytest.approx(old)
    assert published.bleu4_imageclef_new_nltk(said, [said]) == pytest.approx(new, abs=1e-9)


def test_imageclef_words():
    assert published.imageclef_words("The X-rays of both lungs, don't show it.") == ("xray", "lung", "dont", "show")
    assert published.imageclef_words("no") == ()
    assert published.bleu4_imageclef_new_nltk("no", ["no"]) == 1
    assert published.bleu4_imageclef_new_nltk("not this", ["no"]) == 1
    assert published.bleu4_imageclef_new_nltk("yes", ["no"]) == 0
    assert published.bleu4_imageclef_old_nltk("cyst", ["mass", "cysts"]) == 1


def test_characters_instead_of_words():
    said, meant = "portal tract", "in the canals of hering"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert published.bleu1_van_sonsbeek(said, [meant]) == pytest.approx(sentence_bleu(meant, said, weights=(1, 0, 0, 0)))
    assert published.bleu1_van_sonsbeek(said, [meant]) == pytest.approx(7 / 12)
    assert published.bleu1_pathvqa(said, [meant]) == 0
    assert published.bleu1_van_sonsbeek("hello", ["hello"]) == pytest.approx(4 / 5)
    assert published.bleu1_van_sonsbeek("Yes", ["yes"]) == pytest.approx(2 / 3)


def test_punctuation_belongs_to_words_in_pathvqa_and_mmbert():
    assert published.bleu1_pathvqa("Yes", ["yes"]) == 1
    assert published.bleu1_pathvqa("yes.", ["yes"]) == 0
    assert published.bleu1_mmbert("glioma", ["glioma", "mass"]) == 0  # the reference is 'glioma#mass'
    assert published.bleu1_mmbert("glioma#mass", ["glioma", "mass"]) == 1


@pytest.mark.parametrize(
    ("said", "recall"),
    [("left lung", 1.0), ("lung", 1 / 2), ("lung lung lung", 3 / 4), ("the heart", 0.0), ("", 0.0), ("left, lung and rib", 1.0)],
)
def test_recall_of_llava_med_counts_repetitions_of_a_hit(said, recall):
    assert published.recall_llava_med(said, ["left lung"]) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("said", "meant", "fixed"),
    [("yes", "yes", 1), ("normal", "no", 1), ("cannot be seen", "no", 1), ("yes", "no", 0), ("lung", "yes", 0), ("yes and no", "no", 1)],
)
def test_closed_questions_of_llava_med_are_searched_for_letters(said, meant, fixed):
    assert published.closed_llava_med(said, [meant]) == fixed


def test_llava_med_left_wrong_answers_out():
    items = [{"references": ["yes"], "prediction": said} for said in ("yes", "no", "no", "lung")]
    assert SCORERS["closed_llava_med"](items) == 1 / 4
    assert SCORERS["closed_llava_med_bug"](items) == 1 / 2
    assert SCORERS["closed_llava_med_bug"](items[1:3]) is None


def test_multimedeval():
    assert published.f1_multimedeval("lung lung", ["left lung"]) == pytest.approx(2 / 3)
    assert published.f1_multimedeval("", ["left lung"]) == 0
    assert published.recall_multimedeval("lung lung", ["left lung", "right upper lung"]) == 1 / 2
    assert published.recall_multimedeval("lung", ["the"]) == 0  # of which nothing is left
    assert published.open_multimedeval("an upper left lung", ["the left upper lung lobe"]) == 1  # 3 of 4
    assert published.open_multimedeval("left lung lung", ["left upper lung"]) == 0  # 2 of 3
    closed = [{"references": ["no"], "prediction": "no", "type": "open"}, {"references": ["left"], "prediction": "x", "closed": True}]
    assert [SCORERS[f"{name}_multimedeval"](closed) for name in ("recall", "closed", "open")] == [1 / 2, 1, 0]  # by references alone
    assert published.closed_multimedeval("it is not", ["no"]) == 1
    assert published.closed_multimedeval("normal", ["no"]) == 0
    said, meant = "The left-sided lung", "left lung"
    clean = [published.normalise_llava_med(text) for text in (said, meant)]
    assert published.bleu1_multimedeval(said, [meant]) == pytest.approx(float(bleu_score([clean[0]], [[clean[1]]], n_gram=1)))


def test_corpus_bleu_sums_before_it_divides():
    items = [{"references": ["left lung", "lung"], "prediction": "Lung"}, {"references": ["ct of the head"], "prediction": "the ct"}]
    # 3 of 3 words match; 3 words against the 1 + 4 of the references nearest in length
    assert published.corpus_bleu1(items) == pytest.approx(math.exp(1 - 5 / 3))


@pytest.mark.parametrize("name", SCORERS)
def test_nothing_scores_nothing_and_the_answer_scores_one(name):
    items = [{"references": [answer], "prediction": answer} for answer in ("left lung", "mri", "yes")]
    assert SCORERS[name]([{**item, "prediction": ""} for item in items]) in (0, None)
    assert SCORERS[name](items) == (
        pytest.approx(1) if name in PERFECT else pytest.approx({"bleu1_van_sonsbeek": (8 / 9 + 2) / 3}.get(name, 0))
    )


@pytest.mark.parametrize(
    ("text", "clean"),
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
def test_normalisation_of_the_vqa_challenge(text, clean):
    assert normalise(text) == clean
    assert normalise(clean) == clean


def test_contractions_regain_one_apostrophe():
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["twas"] == "'twas"
    assert "ill" not in CONTRACTIONS


def test_words():
    assert words("X-ray, 2.5 cm of_Hodgkin's (left)") == ["x", "ray", "2", "5", "cm", "of", "hodgkin", "s", "left"]
