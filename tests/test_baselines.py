"""Baselines that need no model: the majority answer and the colour regression."""

import numpy as np
import pytest

from src.evaluation.baselines import colour_answers, colour_histogram, majority_answers


def test_majority_answer_is_counted_per_question_type():
    train = [
        {"type": "organ", "references": [answer]} for answer in ("Lung", "lung", "heart", "heart", "brain")
    ] + [{"type": "size", "references": ["small"]}] * 4  # fmt: skip
    test = [{"type": kind} for kind in ("organ", "size", "colour", None)]
    assert majority_answers(train, test) == ["heart", "small", "small", "small"]
    assert majority_answers([], test) == [""] * 4


def test_majority_answer_among_options_is_a_position():
    train = [{"type": "", "references": ["b"], "choices": ["a", "b", "c"]}] * 2 + [{"type": "", "references": ["x"], "choices": ["x", "y"]}]
    assert majority_answers(train, [{"choices": ["p", "q", "r"]}, {"choices": ["only"]}]) == ["q", "only"]


def uniform_image(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, 8, 6))


RED, BLUE = colour_histogram(uniform_image((250, 0, 0))), colour_histogram(uniform_image((0, 0, 250)))


def test_histogram_counts_each_pixel_once_per_kind_of_bin():
    histogram = colour_histogram(uniform_image((255, 0, 64)))
    assert histogram.shape == (64 + 3 * 16,)
    assert np.flatnonzero(histogram).tolist() == [3 * 16 + 0 * 4 + 1, 64 + 15, 64 + 16, 64 + 32 + 4]
    assert histogram.sum() == pytest.approx(4)


def test_histogram_ignores_the_position_of_pixels():
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    assert np.array_equal(colour_histogram(image), colour_histogram(image[:, ::-1, ::-1]))


def items(answers: list[str], **more) -> list[dict]:
    return [{"type": "stain", "references": [answer], **more} for answer in answers]


def test_colour_baseline_falls_back_to_the_majority_answer():
    train = [*items(["Red", "blue", "blue"] * 5), *({"type": "organ", "references": ["lung"]} for _ in range(3))]
    train_NB = np.stack([RED, BLUE, BLUE] * 5 + [RED] * 3)
    test = [*items(["red", "blue"]), {"type": "organ", "references": ["heart"]}, {"type": "new", "references": ["x"]}]
    assert colour_answers(train_NB, train, np.stack([RED, BLUE, RED, RED]), test) == ["red", "blue", "lung", "blue"]


def test_colour_baseline_among_options_predicts_a_position():
    train = items(["a", "b"] * 5, choices=["a", "b"])
    test = items(["p", "q"], choices=["p", "q"])
    assert colour_answers(np.stack([RED, BLUE] * 5), train, np.stack([BLUE, RED]), test) == ["q", "p"]


def test_colour_baseline_without_training_items_answers_nothing():
    assert colour_answers(np.zeros((0, 112)), [], np.zeros((1, 112)), items(["red"])) == [""]
