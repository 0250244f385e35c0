import numpy as np
import pytest

from src.classification import probe
from src.classification.probe import Split, few_shot_probe, knn_probe, linear_probe


def splits(*, gap=3.0, classes=3, sizes=(60, 30, 30), seed=0, noise_pooling=True):
    rng = np.random.default_rng(seed)
    result = []
    for n in sizes:
        labels_N = np.arange(n) % classes
        f_NF = rng.standard_normal((n, 8)).astype(np.float32)
        f_NF[np.arange(n), labels_N] += gap
        noise = {"cls": rng.standard_normal((n, 8)).astype(np.float32)} if noise_pooling else {}
        result.append(Split({**noise, "mean": f_NF}, labels_N))
    return result


@pytest.mark.parametrize("method", [linear_probe, knn_probe])
def test_pooling_is_chosen_on_validation(method):
    train, val, test = splits(gap=8)
    fit = method(train, val, test, classes=3)
    assert fit.pooling == "mean"
    assert fit.validation == 1.0
    assert (fit.probabilities_NK.argmax(1) == test.labels).all()
    assert fit.probabilities_NK.sum(1) == pytest.approx(1)


@pytest.mark.parametrize("method", [linear_probe, knn_probe])
def test_probes_do_not_use_test_labels(method):
    train, val, test = splits()
    other = Split(test.features, test.labels[::-1].copy())
    assert np.array_equal(method(train, val, test, classes=3).probabilities_NK, method(train, val, other, classes=3).probabilities_NK)


def test_linear_probe_ignores_features_constant_in_training():
    train, val, test = splits(classes=2, noise_pooling=False)
    for split in (train, val, test):
        split.features["mean"][:, 7] = 5.0
    test.features["mean"][:, 7] = 500.0  # constant in training, so it is ignored
    fit = linear_probe(train, val, test, classes=2)
    assert (fit.probabilities_NK.argmax(1) == test.labels).mean() > 0.9


def test_linear_probe_equals_sklearn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    assert len(probe.GRID) <= 10
    train, val, test = splits(gap=1.0, noise_pooling=False)
    fit = linear_probe(train, val, test, classes=3)
    scaler = StandardScaler().fit(train.features["mean"])
    model = LogisticRegression(C=fit.setting["C"], class_weight="balanced", max_iter=1000).fit(
        scaler.transform(train.features["mean"]), train.labels
    )
    assert fit.probabilities_NK == pytest.approx(model.predict_proba(scaler.transform(test.features["mean"])), abs=5e-3)


def test_knn_probe_values():
    x = Split({"mean": np.array([[1.0, 0.0], [0.0, 1.0]])}, np.array([0, 1]))
    fit = knn_probe(x, x, Split({"mean": np.array([[3.0, 1.0], [1.0, 9.0]])}, np.array([0, 1])), classes=2)
    assert fit.setting == {"k": 1}
    assert fit.probabilities_NK.tolist() == [[1, 0], [0, 1]]


@pytest.mark.slow
def test_few_shot_subset_depends_on_the_seed():
    train, val, test = splits(gap=1.0)
    one = few_shot_probe(train, val, test, shots=1, seed=0, classes=3).probabilities_NK
    assert np.array_equal(one, few_shot_probe(train, val, test, shots=1, seed=0, classes=3).probabilities_NK)
    assert not np.array_equal(one, few_shot_probe(train, val, test, shots=1, seed=1, classes=3).probabilities_NK)
    full = few_shot_probe(train, val, test, shots=50, seed=0, classes=3).probabilities_NK  # there are 20 per class
    assert np.array_equal(full, linear_probe(train, val, test, classes=3).probabilities_NK)
