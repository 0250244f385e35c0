import numpy as np
import pytest

from src.classification import probe
from src.classification.probe import Split, few_shot_probe, knn_probe, linear_probe


def splits(*, gap=3.0, classes=3, sizes=(60, 30, 30), seed=0, noise_pooling=True):
    rng = np.random.default_rng(seed)
    out = []
    for n in sizes:
        labels_N = np.arange(n) % classes
        f_NF = rng.standard_normal((n, 8)).astype(np.float32)
        f_NF[np.arange(n), labels_N] += gap
        noise = {"cls": rng.standard_normal((n, 8)).astype(np.float32)} if noise_pooling else {}
        out.append(Split({**noise, "mean": f_NF}, labels_N))
    return out


@pytest.mark.parametrize("method", [linear_probe, knn_probe])
def test_pooling_is_chosen_on_validation(method):
    train, val, test = splits(gap=8)
    found = method(train, val, test, classes=3)
    assert found.pooling == "mean"
    assert found.validation == 1.0
    assert (found.probabilities_NK.argmax(1) == test.labels_N).all()
    assert found.probabilities_NK.sum(1) == pytest.approx(1)


@pytest.mark.parametrize("method", [linear_probe, knn_probe])
def test_nothing_is_learnt_from_test_labels(method):
    train, val, test = splits()
    other = Split(test.features, test.labels_N[::-1].copy())
    assert np.array_equal(method(train, val, test, classes=3).probabilities_NK, method(train, val, other, classes=3).probabilities_NK)


def test_two_classes_and_constant_features():
    train, val, test = splits(classes=2, noise_pooling=False)
    for split in (train, val, test):
        split.features["mean"][:, 7] = 5.0
    test.features["mean"][:, 7] = 500.0  # was constant in training: says nothing
    found = linear_probe(train, val, test, classes=2)
    assert (found.probabilities_NK.argmax(1) == test.labels_N).mean() > 0.9


def test_the_grid_is_small_and_its_answer_that_of_sklearn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    assert len(probe.GRID) <= 10
    train, val, test = splits(gap=1.0, noise_pooling=False)
    found = linear_probe(train, val, test, classes=3)
    scaler = StandardScaler().fit(train.features["mean"])
    model = LogisticRegression(C=found.setting["C"], class_weight="balanced", max_iter=1000).fit(
        scaler.transform(train.features["mean"]), train.labels_N
    )
    assert found.probabilities_NK == pytest.approx(model.predict_proba(scaler.transform(test.features["mean"])), abs=5e-3)


def test_nearest_neighbour_by_hand():
    x = Split({"mean": np.array([[1.0, 0.0], [0.0, 1.0]])}, np.array([0, 1]))
    found = knn_probe(x, x, Split({"mean": np.array([[3.0, 1.0], [1.0, 9.0]])}, np.array([0, 1])), classes=2)
    assert found.setting == {"k": 1}
    assert found.probabilities_NK.tolist() == [[1, 0], [0, 1]]


@pytest.mark.slow
def test_few_shots_are_drawn_per_class_and_by_seed():
    train, val, test = splits(gap=1.0)
    one = few_shot_probe(train, val, test, shots=1, seed=0, classes=3).probabilities_NK
    assert np.array_equal(one, few_shot_probe(train, val, test, shots=1, seed=0, classes=3).probabilities_NK)
    assert not np.array_equal(one, few_shot_probe(train, val, test, shots=1, seed=1, classes=3).probabilities_NK)
    whole = few_shot_probe(train, val, test, shots=50, seed=0, classes=3).probabilities_NK  # 20 per class are all there are
    assert np.array_equal(whole, linear_probe(train, val, test, classes=3).probabilities_NK)
