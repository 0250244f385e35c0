"""Controls that need no model: the majority answer, and the one that sees colours only."""

import numpy as np
import pytest

from src.metrics.baselines import colour_answers, histogram, majority_answers


def test_majority_per_type():
    train = [
        {"type": "organ", "references": [answer]} for answer in ("Lung", "lung", "heart", "heart", "brain")
    ] + [{"type": "size", "references": ["small"]}] * 4  # fmt: skip
    test = [{"type": kind} for kind in ("organ", "size", "colour", None)]
    assert majority_answers(train, test) == ["heart", "small", "small", "small"]
    assert majority_answers([], test) == [""] * 4


def test_majority_with_options_is_a_place():
    train = [{"type": "", "references": ["b"], "choices": ["a", "b", "c"]}] * 2 + [{"type": "", "references": ["x"], "choices": ["x", "y"]}]
    assert majority_answers(train, [{"choices": ["p", "q", "r"]}, {"choices": ["only"]}]) == ["q", "only"]


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, 8, 6))


def test_histogram_counts_each_pixel_once_per_kind_of_bin():
    found = histogram(picture((255, 0, 64)))
    assert found.shape == (64 + 3 * 16,)
    assert np.flatnonzero(found).tolist() == [3 * 16 + 0 * 4 + 1, 64 + 15, 64 + 16, 64 + 32 + 4]
    assert found.sum() == pytest.approx(4)


def test_histogram_does_not_see_where_a_colour_is():
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    assert np.array_equal(histogram(image), histogram(image[:, ::-1, ::-1]))


def items(answers: list[str], **more) -> list[dict]:
    return [{"type": "stain", "references": [answer], **more} for answer in answers]


def test_what_colour_tells_is_answered_and_the_rest_is_the_majority():
    red, blue = histogram(picture((250, 0, 0))), histogram(picture((0, 0, 250)))
    train = [*items(["Red", "blue", "blue"] * 5), *({"type": "organ", "references": ["lung"]} for _ in range(3))]
    seen = np.stack([red, blue, blue] * 5 + [red] * 3)
    test = [*items(["red", "blue"]), {"type": "organ", "references": ["heart"]}, {"type": "new", "references": ["x"]}]
    assert colour_answers(seen, train, np.stack([red, blue, red, red]), test) == ["red", "blue", "lung", "blue"]


def test_with_options_it_names_a_place():
    red, blue = histogram(picture((250, 0, 0))), histogram(picture((0, 0, 250)))
    train = items(["a", "b"] * 5)
    train = [{**item, "choices": ["a", "b"]} for item in train]
    test = items(["p", "q"], choices=["p", "q"])
    assert colour_answers(np.stack([red, blue] * 5), train, np.stack([blue, red]), test) == ["q", "p"]


def test_without_training_items_it_is_silent():
    assert colour_answers(np.zeros((0, 112)), [], np.zeros((1, 112)), items(["red"])) == [""]
