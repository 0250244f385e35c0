"""Multi-label classification sets: splits, thresholds, scores, probes, fine-tuning, results and protocol `paper`."""

import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_average_precision,
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from src.classification import multilabel, scores
from src.classification.dataset import build_dataset
from src.classification.finetune import FineTuneLoader, build_classifier, finetune, paper_pooling, paper_schedule
from src.classification.layouts import ClassificationConfig, Example, npz_layout
from src.classification.multilabel import MultilabelResult, f1_thresholds, label_scores
from src.classification.probe import Split, few_shot_probe, knn_probe, linear_probe
from src.classification.results import TransferResultFile, read_result
from src.classification.scores import auroc_and_precision, resampling_weights
from src.classification.splits import strata
from src.classification.table import transfer_table
from src.config.transfer import FineTuneConfig, PaperConfig
from src.model.vision import load_vision
from src.runtime.errors import UserError
from tests.test_finetune import SCRATCH
from tests.test_transfer import root, run, small_grid  # noqa: F401, fixtures

CLASSES = ["nodule", "edema", "hernia"]


def example(n, *labels, split="", group=""):
    """An image whose left, middle and right third is bright if it has the first, second and third label."""
    pixels = np.random.default_rng(n).integers(0, 60, (18, 18)).astype(np.uint8)
    for label in labels:
        if label in CLASSES:
            pixels[:, 6 * CLASSES.index(label) :][:, :6] += 150
    return Example(str(n), split, labels, group or str(n), pixels)


def make_set(n=80, *, split=True):
    """A set in which a label has positives in each split; an eighth of the images have no label."""
    names = ("train", "train", "train", "val", "test")
    examples = [example(k, *(CLASSES[j] for j in range(3) if k >> j & 1), split=names[k // 8 % 5] if split else "") for k in range(n)]
    return build_dataset("lungs", examples, classes=CLASSES)


def make_result(*, n=300, labels=4, seeds=1, groups=40, seed=0, absent=()):
    rng = np.random.default_rng(seed)
    labels_NK = rng.random((n, labels)) < 0.3
    labels_NK[:, list(absent)] = False
    p_SNK = (0.6 * rng.random((seeds, n, labels)) + 0.4 * labels_NK).round(2)  # with ties
    return MultilabelResult(labels_NK, np.arange(n) % groups, p_SNK >= 0.6, p_SNK)


def torch_scores(result, rows):
    labels, p = torch.from_numpy(result.labels_NK[rows].astype(int)), torch.from_numpy(result.probabilities_SNK[0][rows])
    predicted = torch.from_numpy(result.predictions_SNK[0][rows].astype(int))
    at_half, occurs, k = (p >= 0.5).int(), labels.any(0), labels.shape[1]  # torchmetrics itself compares with >
    precision, recall = (score(at_half, labels, k, average=None)[occurs].mean() for score in (multilabel_precision, multilabel_recall))
    values = {
        "macro_f1@val": multilabel_f1_score(predicted, labels, k, average=None)[occurs].mean(),
        "macro_f1@0.5": multilabel_f1_score(at_half, labels, k, average=None)[occurs].mean(),
        "auroc": multilabel_auroc(p[:, occurs], labels[:, occurs], int(occurs.sum()), average=None).mean(),
        "map": multilabel_average_precision(p[:, occurs], labels[:, occurs], int(occurs.sum()), average=None).mean(),
        "cf1@0.5": 2 * precision * recall / (precision + recall),
    }
    return {name: value.item() for name, value in values.items()}


# Sets


def test_labels_are_an_indicator_in_the_order_of_the_classes():
    data = make_set()
    assert data.multilabel
    assert data.labels[:8].tolist() == [[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)]
    assert data.counts()["test"] == dict.fromkeys(CLASSES, 8)
    assert data.absent_classes() == {"train": [], "val": [], "test": []}


def test_stratum_is_the_rarest_label():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert strata(labels).tolist() == [1, 0, 2, -1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_generated_split_keeps_groups_together_and_rare_labels_in_every_split(seed):
    rng = np.random.default_rng(seed)
    rare = set(rng.choice(100, 10, replace=False).tolist())
    examples = [
        example(n, *(["nodule"] if rng.random() < 0.4 else []), *(["hernia"] if n // 3 in rare else []), group=f"p{n // 3}")
        for n in range(300)
    ]
    data = build_dataset("x", examples, classes=["nodule", "hernia"])
    assert len({(e.group, e.split) for e in data.examples}) == 100
    counts = data.counts()
    assert counts["val"]["hernia"] == counts["test"]["hernia"] == 6
    assert data.examples == build_dataset("x", examples, classes=["nodule", "hernia"]).examples


def test_the_only_group_of_a_label_is_assigned_to_train():
    for only in range(10):
        labels = [["nodule", "hernia"] if n == only else ["nodule"] for n in range(10)]
        data = build_dataset("x", [example(n, *names) for n, names in enumerate(labels)], classes=["nodule", "hernia"])
        assert data.absent_classes() == {"train": [], "val": ["hernia"], "test": ["hernia"]}


def in_splits(train, val, test):
    return [example(n, *labels, split=split) for n, (split, labels) in enumerate({"train": train, "val": val, "test": test}.items())]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([example(0, "nodul")], r"0 has the label 'nodul'; did you mean 'nodule'\?"),
        ([example(0), example(1)], "no image has a label; give at least two classes"),
        ([example(0, "edema"), example(1)], "there is only one class .'edema'."),
        (in_splits(["edema"], ["nodule"], ["hernia"]), "the train split has no image of 'nodule', 'hernia'"),
        (in_splits(CLASSES, [], CLASSES), "the val split has no image of 'nodule', 'edema', 'hernia'"),
    ],
)
def test_invalid_set_is_reported_in_one_line(examples, message):
    with pytest.raises(UserError, match=message):
        build_dataset("x", examples, classes=CLASSES)


def test_npz_labels_become_tuples(tmp_path):
    arrays = {f"{split}_images": np.zeros((2, 8, 8), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.array([[1, 0, 1], [0, 0, 0]]) for split in ("train", "val", "test")}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    config = ClassificationConfig("npz", "x.npz", classes=CLASSES, multilabel=True)
    assert [e.label for e in npz_layout(tmp_path, config)][:2] == [("nodule", "hernia"), ()]
    with pytest.raises(UserError, match=r"must be 0/1 of shape \(N, 2\)"):
        list(npz_layout(tmp_path, ClassificationConfig("npz", "x.npz", classes=CLASSES[:2], multilabel=True)))


# Thresholds and scores


def test_thresholds_have_the_highest_f1_of_all():
    rng = np.random.default_rng(0)
    labels_NK, p_NK = rng.random((60, 3)) < 0.3, rng.random((60, 3)).round(1)
    labels_NK[:, 2] = False
    thresholds_K = f1_thresholds(labels_NK, p_NK)
    for k in range(2):
        f1 = {t: f1_of(labels_NK[:, k], p_NK[:, k] >= t) for t in [*np.linspace(0, 1, 101), thresholds_K[k]]}
        assert f1[thresholds_K[k]] == max(f1.values())
    assert thresholds_K[2] == 0.5


def f1_of(labels_N, predicted_N):
    return 2 * (labels_N & predicted_N).sum() / (labels_N.sum() + predicted_N.sum())


def test_score_values_are_means_over_labels_with_positives():
    result = make_result(absent=[2])
    values, expected = multilabel.score_values(result), torch_scores(result, np.arange(300))
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert values["macro_f1"] == values["macro_f1@val"]
    assert [row["auroc"] is None for row in label_scores(result)] == [False, False, True, False]


def test_label_without_predictions_counts_as_zero():
    labels_NK = np.array([[1, 1], [1, 0], [0, 1]], bool)
    p_NK = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.1]])
    values = multilabel.score_values(MultilabelResult(labels_NK, np.arange(3), (p_NK >= 0.5)[None], p_NK[None]))
    assert values["macro_f1@0.5"] == 0.5
    assert values["cf1@0.5"] == 0.5  # mean precision 1/2, mean recall 1/2


@pytest.mark.parametrize("absent", [[], [1]])
def test_resampled_scores_equal_torchmetrics_on_the_repeated_images(absent):
    result = make_result(absent=absent)
    (w_RG,) = resampling_weights(40, resamples=5, seed=0, name="x")
    resampled = multilabel.resampled_scores(result, [w_RG[:2], w_RG[2:]], seed=0)
    for r in range(5):
        rows = np.repeat(np.arange(300), w_RG[r, result.groups_N].astype(int))
        for name, value in torch_scores(result, rows).items():
            assert resampled[name][r] == pytest.approx(value, abs=1e-5), name


def test_resampled_scores_draw_seeds():
    same, different = make_result(seeds=2, groups=300), make_result(seeds=2, groups=300)
    same.predictions_SNK[1], different.predictions_SNK[1] = same.predictions_SNK[0], False
    weights = [np.ones((50, 300), np.float32)]
    assert np.ptp(multilabel.resampled_scores(same, weights, seed=0)["macro_f1"]) < 1e-6
    assert len(set(multilabel.resampled_scores(different, weights, seed=0)["macro_f1"].round(6))) == 3


def test_rankings_of_weighted_images():
    p_N = np.array([0.5, 0.5, 0.2, 0.9, 0.9])
    positive_N = np.array([0, 1, 0, 1, 0])
    weights_N2 = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 0]]).T
    areas, precisions = auroc_and_precision(positive_N[:, None], p_N[:, None], weights_N2)
    for r, weights_N in enumerate(weights_N2.T):
        p, labels = torch.from_numpy(np.repeat(p_N, weights_N)), torch.from_numpy(np.repeat(positive_N, weights_N))
        assert precisions[r, 0] == pytest.approx(binary_average_precision(p, labels).item())
        pairs = p[labels == 1][:, None] - p[labels == 0][None]
        assert areas[r, 0] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).float().mean().item())
    areas, precisions = auroc_and_precision(positive_N[:, None], p_N[:, None], np.array([[1.0, 0, 1, 0, 1]]).T)
    assert np.isnan([areas[0, 0], precisions[0, 0]]).all()


def test_resampling_weights_do_not_depend_on_the_block(monkeypatch):
    (whole,) = resampling_weights(30, resamples=20, seed=1, name="x")
    monkeypatch.setattr(scores, "BLOCK", 7)
    assert np.array_equal(np.concatenate(list(resampling_weights(30, resamples=20, seed=1, name="x"))), whole)


# Probes


def splits(*, sizes=(80, 40, 40), gap=5.0, seed=0):
    rng = np.random.default_rng(seed)
    result = []
    for n in sizes:
        labels_NK = (np.arange(n)[:, None] >> np.arange(3) & 1).astype(np.uint8)
        f_NF = rng.standard_normal((n, 8)).astype(np.float32)
        f_NF[:, :3] += gap * labels_NK
        result.append(Split({"cls": rng.standard_normal((n, 8)).astype(np.float32), "mean": f_NF}, labels_NK))
    return result


@pytest.mark.parametrize("method", [linear_probe, knn_probe])
def test_probe_fits_every_label_and_does_not_use_test_labels(method):
    train, val, test = splits(gap=12)
    fit = method(train, val, test, classes=3)
    assert fit.pooling == "mean"
    assert ((fit.probabilities_NK >= fit.thresholds_K) == test.labels).mean() > 0.97
    other = method(train, val, Split(test.features, 1 - test.labels), classes=3)
    assert np.array_equal(fit.probabilities_NK, other.probabilities_NK)
    assert np.array_equal(fit.thresholds_K, other.thresholds_K)


def test_linear_probe_equals_one_regression_per_label():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, val, test = splits(gap=1.0)
    for split in (train, val, test):
        del split.features["cls"]
    fit = linear_probe(train, val, test, classes=3)
    scaler = StandardScaler().fit(train.features["mean"])
    model = LogisticRegression(C=fit.setting["C"], class_weight="balanced", max_iter=1000)
    x_NF, y_NF = scaler.transform(train.features["mean"]), scaler.transform(test.features["mean"])
    expected = np.stack([model.fit(x_NF, train.labels[:, k]).predict_proba(y_NF)[:, 1] for k in range(3)], axis=1)
    assert fit.probabilities_NK == pytest.approx(expected, abs=5e-3)


def test_label_that_all_or_no_training_images_have_is_constant():
    train, val, test = splits()
    train.labels[:, 1], train.labels[:, 2] = 1, 0
    p_NK = linear_probe(train, val, test, classes=3).probabilities_NK
    assert np.ptp(p_NK[:, 0]) > 0.5
    assert p_NK[:, 1] == pytest.approx(1, abs=1e-6)
    assert p_NK[:, 2] == pytest.approx(0, abs=1e-6)


def test_few_shot_draws_images_per_label_and_without_label(monkeypatch):
    train, val, test = splits()
    drawn = []
    monkeypatch.setattr("src.classification.probe.linear_probe", lambda subset, *args, **kwargs: drawn.append(subset.labels))
    for shots, seed in ((1, 0), (5, 0), (1000, 0)):
        few_shot_probe(train, val, test, shots=shots, seed=seed, classes=3)
    one, five, every = drawn
    assert len(one) <= 4
    assert one.sum(0).min() >= 1
    assert (~five.any(1)).sum() == 5
    assert five.sum(0).min() >= 5
    assert len(every) == 80


# Fine-tuning


def build():
    torch.manual_seed(0)
    return load_vision(SCRATCH)


def tune(data, tmp_path, **changes):
    config = FineTuneConfig(**({"steps": 80, "batch": 16, "lr": [3e-3], "warmup": 3, "weight_decay": 0.0} | changes))
    return finetune(build, data, pooling="mean", seed=0, config=config, threads=1, device=torch.device("cpu"), folder=tmp_path)


@pytest.mark.slow
def test_finetune_learns_every_label(tmp_path):
    data = make_set(160)
    fit = tune(data, tmp_path)
    test = data.rows("test")
    assert fit.validation > 0.9
    assert ((fit.probabilities_NK >= fit.thresholds_K) == data.labels[test]).mean() > 0.9


def test_training_loss_is_the_binary_cross_entropy_over_all_labels():
    data = make_set()
    config = FineTuneConfig(steps=1, batch=16, lr=[1e-3], warmup=1, weight_decay=0.0)
    model = build_classifier(build(), data, pooling="mean", lr=1e-3, config=config)
    batch = next(iter(FineTuneLoader(data, data.rows("train"), size=16, batch=16, threads=1)))
    loss = model.training_step(batch, 0)  # the head is zero except for its bias
    z_K = model.head.bias.double()
    expected = -(batch[1] * z_K.sigmoid().log() + (1 - batch[1].double()) * (-z_K).sigmoid().log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.predict(batch[0]).shape == (16, 3)


@pytest.mark.parametrize(
    ("poolings", "expected"),
    [
        (("cls", "cls_norm", "mean", "mean_norm"), "cls_norm+mean_norm"),
        (("cls", "mean"), "cls+mean"),
        (("mean", "mean_norm"), "mean_norm+mean"),
        (("mean",), "mean"),
    ],
)
def test_paper_pooling_replaces_a_missing_cls_token(poolings, expected):
    assert paper_pooling(poolings) == expected


def test_joined_poolings_are_one_feature_of_twice_the_width():
    vision, x = build(), torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    features = vision.features(x)
    joined = vision.pooled(x, "cls_norm+mean_norm")
    assert torch.equal(joined, torch.cat([features["cls_norm"], features["mean_norm"]], 1))
    assert joined.shape == (2, 2 * vision.width)
    with pytest.raises(UserError, match="no pooling 'max'"):
        vision.pooled(x, "cls+max")


def test_paper_schedule_shows_each_image_once_per_epoch():
    schedule = paper_schedule(PaperConfig(epochs=100, batch=64, lr=[5e-5], warmup=0.05, weight_decay=0.05), images=546)
    assert (schedule.steps, schedule.warmup, schedule.batch) == (854, 43, 64)
    data = make_set()
    schedule = paper_schedule(PaperConfig(epochs=3, batch=16, lr=[5e-5], warmup=0, weight_decay=0), images=48)
    loader = FineTuneLoader(data, data.rows("train"), size=16, batch=16, threads=1, steps=schedule.steps)
    assert np.unique(loader.rows, return_counts=True)[1].tolist() == [3] * 48


# Results and tables


def write(folder, fits, *, data=None, encoder="clip", protocol="probe"):
    file = TransferResultFile(folder, "lungs", encoder, protocol)
    file.write(data or make_set(), fits, {"ours": encoder.startswith("run:"), "depends_on": {}})
    return read_result(file.path)


def test_result_file_round_trip(tmp_path):
    data, (train, val, test) = make_set(), splits(sizes=(48, 16, 16))
    fit = linear_probe(train, val, test, classes=3)
    fit.probabilities_NK[0, 0] = 1.23456789e-7  # rankings need relative precision
    metadata, result = write(tmp_path, [fit, fit], data=data)
    rows = data.rows("test")
    assert np.array_equal(result.labels_NK, data.labels[rows])
    assert np.array_equal(result.predictions_SNK[1], fit.probabilities_NK >= fit.thresholds_K)
    assert result.probabilities_SNK[0] == pytest.approx(fit.probabilities_NK, rel=1e-5)
    assert metadata["thresholds"] == [fit.thresholds_K.tolist()] * 2
    line = json.loads((tmp_path / "transfer/lungs/clip/probe.jsonl").read_text().splitlines()[3])
    assert line["label"] == ["nodule", "edema"]


def single_label_result():
    labels_N = np.arange(60) % 2
    p_NK = np.eye(2)[labels_N] * 0.6 + 0.2
    return scores.TransferResult(labels_N, np.arange(60), labels_N[None], p_NK[None])


def test_table_of_both_kinds_of_sets_has_both_means():
    names = {"encoder": "clip", "protocol": "probe", "ours": False, "depends_on": {}}
    result = make_result(absent=[3])
    one = ({"benchmark": "lungs", "classes": ["a", "b", "c", "d"], "multilabel": True, **names}, result)
    two = ({"benchmark": "dots", "classes": ["a", "b"], **names}, single_label_result())
    table = transfer_table([one, two], resamples=40, seed=0)
    keys = {key.removeprefix("transfer/lungs/clip/probe/") for key in table["metrics"] if "lungs" in key}
    assert keys == {"macro_f1", "macro_f1@val", "macro_f1@0.5", "auroc", "map", "cf1@0.5"}
    assert {key.split("/")[-1] for key in table["metrics"] if "dots" in key} == {"macro_f1", "balanced_accuracy", "auroc", "ece"}
    values = multilabel.score_values(result)
    for name, expected in (("macro_f1", values["macro_f1@val"]), ("macro_f1@0.5", values["macro_f1@0.5"])):
        assert table["metrics"][f"transfer/mean/clip/probe/{name}"]["value"] == pytest.approx((expected + 1) / 2)
    cell = next(cell for cell in table["transfer"]["cells"] if cell["benchmark"] == "lungs")
    assert cell["labels_scored"] == {"scored": 3, "labels": 4, "without_positive": ["d"]}
    assert "confusion" not in cell
    assert cell["per_class"][0]["f1"] == pytest.approx(f1_of(result.labels_NK[:, 0], result.predictions_SNK[0, :, 0]), abs=1e-6)
    shots = ({**one[0], "protocol": "probe_5shot"}, result)
    assert transfer_table([shots], resamples=10, seed=0)["transfer"]["few_shot"][0]["shots"] == 5
    single = transfer_table([two, ({**two[0], "benchmark": "spots"}, two[1])], resamples=10, seed=0)
    assert "macro_f1@0.5" not in single["transfer"]["means"][0]


# The command


@pytest.fixture
def lungs(root):  # noqa: F811
    """A multi-label set in the layout of ChestMNIST, whose test split has no image of the last class, beside the sets of `root`."""
    folder = root / "raw/lungs"
    if not folder.exists():
        folder.mkdir()
        data = make_set(160)
        arrays = {}
        for split in ("train", "val", "test"):
            keep = [n for n in data.rows(split) if split != "test" or not data.labels[n, 2]]
            arrays |= {f"{split}_images": np.stack([data.examples[n].image for n in keep]), f"{split}_labels": data.labels[keep]}
        np.savez(folder / "lungs.npz", **arrays)
    return root


@pytest.fixture
def lungs_config(tmp_path, monkeypatch):
    (tmp_path / "lungs.yaml").write_text(f"layout: npz\npath: lungs.npz\nmultilabel: true\nclasses: {CLASSES}\n")
    monkeypatch.setattr("src.classification.reader.FOLDER", tmp_path)


@pytest.mark.slow
def test_command_evaluates_all_protocols_on_a_multilabel_set(lungs, lungs_config, monkeypatch, capsys):
    monkeypatch.setattr("src.classification.probe.SHOTS", (5,))
    words = ["seeds=1", "paper.epochs=1", "paper.batch=16", "+benchmark_lists.two=[lungs,dots]"]
    protocols = "protocol=[probe,knn,few_shot,finetune,paper]"
    folder = run(lungs, "encoder=run:mini", "benchmark=two", protocols, "name=multi", *words)
    printed = capsys.readouterr().out
    assert "warning: benchmark 'lungs': the test split has no image of 'hernia'; scores are means over the other 2" in printed
    assert "protocol paper: 1 epochs take about" in printed
    tables = json.loads((folder / "transfer.json").read_text())["transfer"]
    cells = {(cell["benchmark"], cell["protocol"]): cell for cell in tables["cells"]}
    assert cells.keys() == {(name, protocol) for name in ("lungs", "dots") for protocol in ("probe", "knn", "finetune", "paper")}
    assert cells["lungs", "paper"]["pooling"] == ["cls_norm+mean_norm"]
    assert cells["lungs", "probe"]["labels_scored"]["without_positive"] == ["hernia"]
    assert cells["lungs", "probe"]["absent"] == {"train": [], "val": [], "test": ["hernia"]}
    assert {row["protocol"] for row in tables["means"] if "macro_f1@0.5" in row} >= {"probe", "knn", "finetune", "paper"}
    run(lungs, "encoder=run:mini", "benchmark=two", protocols, "name=multi", *words)
    assert "protocol paper:" not in capsys.readouterr().out  # nothing is missing
    run(lungs, "encoder=run:mini", "benchmark=lungs", "protocol=paper", "name=multi", *words, "paper.epochs=2")
    left_out = json.loads((folder / "transfer.json").read_text())["transfer"]["left_out"]
    assert left_out == [{"file": "transfer/dots/run:mini/paper.json", "why": "the settings of paper of run:mini changed"}]


def test_name_of_a_list_is_suggested(lungs):
    with pytest.raises(UserError, match="did you mean 'paper_eight'"):
        run(lungs, "encoder=run:mini", "benchmark=paper_eigt", "name=none")


def test_one_label_per_image_is_rejected_for_a_multilabel_set(lungs, tmp_path, monkeypatch):
    (tmp_path / "dots.yaml").write_text("layout: folder\nmultilabel: true\n")
    monkeypatch.setattr("src.classification.reader.FOLDER", tmp_path)
    with pytest.raises(UserError, match="layout=folder gives one label per image; set multilabel: false"):
        run(lungs, "encoder=run:mini", "benchmark=dots", "name=none")
