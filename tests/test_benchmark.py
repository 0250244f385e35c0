"""Benchmarks: their questions, and the images under each condition."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.config.train import MixConfig
from src.data.record import Record
from src.data.remote import CacheConfig
from src.evaluation import benchmark
from src.evaluation.baselines import row_histograms
from src.evaluation.benchmark import BenchmarkConfig, _closed, benchmarks_of_mix, image_conditions, image_rows, read_benchmark
from src.evaluation.condition_images import condition_images
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.fixtures import jpeg

NAMES = sorted(path.stem for path in benchmark.FOLDER.glob("*.yaml") if "layout:" not in path.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four images with three questions each; the group of one image is also in the training split."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    (raw / "own").mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        (raw / "own" / f"{n}.jpg").write_bytes(jpeg(rng))
    test = [
        {"id": f"{n}-{k}", "image": f"{n}.jpg", "group": f"g{n}", "question": f"what {k}?", "answer": "lung"}
        for n in range(4)
        for k in range(3)
    ]
    train = [{"id": "t", "image": "2.jpg", "group": "g2", "question": "which?", "answer": "rib"}]
    for split, lines in (("test", test), ("train", train)):
        (raw / "own" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_all(BuildConfig(sources=["own"], raw=raw, out=out, workers=1))
    return out


def test_benchmark_has_one_item_per_question(root):
    test = read_benchmark("own", root=root)
    assert len(test.items) == len({item["id"] for item in test.items}) == 12
    assert len({item["image"] for item in test.items}) == 4
    assert test.pooled
    assert not test.choices


def test_limit_is_spread_over_the_split(root):
    test = read_benchmark("own", root=root, limit=4)
    assert len({item["image"] for item in test.items}) == 4
    assert read_benchmark("own", root=root, limit=99).rows == read_benchmark("own", root=root).rows


def test_shuffled_images_form_one_cycle(root):
    test = read_benchmark("own", root=root)
    for seed in range(5):
        own, other = image_rows("real", test, seed=seed), image_rows("shuffled", test, seed=seed)
        group = {row: item["image"] for row, item in zip(test.rows, test.items, strict=True)}
        moved = {(group[a], group[b]) for a, b in zip(own, other, strict=True)}
        assert len(moved) == 4  # all questions on one image get the same other one
        assert all(a != b for a, b in moved)
        at, steps = next(iter(moved))[0], 0
        while steps == 0 or at != next(iter(moved))[0]:
            at, steps = dict(moved)[at], steps + 1
        assert steps == 4
    assert image_rows("shuffled", test, seed=0) == image_rows("shuffled", test, seed=0)


def test_condition_images_of_each_condition(root):
    test = read_benchmark("own", root=root)
    mean = torch.tensor([0.5, 0.25, 1.0])
    numbers = [0, 1, 3]
    real = condition_images(test, numbers, "real", image_rows("real", test, seed=0), mean=mean, size=16, exact=False)
    assert real[0][0] == real[1][0] != real[2][0]  # one name per image
    assert real[0][1][0] is real[1][1][0]  # decoded once
    blank = condition_images(test, numbers, "blank", None, mean=mean, size=16, exact=False)
    assert blank[0][1][0].shape == (3, 16, 16)
    assert blank[0][1][0][:, 3, 5].tolist() == [128, 64, 255]
    assert condition_images(test, numbers, "none", None, mean=mean, size=16, exact=False) == [("none", [])] * 3


def test_disjoint_benchmark_excludes_images_of_the_training_split(root, tmp_path, monkeypatch):
    (tmp_path / "separate.yaml").write_text("source: own\nsplit: test\npooled: true\nchoices: false\ndisjoint: true\n")
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    assert len(read_benchmark("separate", root=root).rows) == 9


def test_image_conditions_are_validated(root, shards):
    assert image_conditions(read_benchmark("own", root=root), ["real", "blank"]) == ["real", "blank"]
    text = read_benchmark("gamma", root=shards)
    assert not text.pooled
    assert image_conditions(text, ["real", "none"]) == ["none"]
    with pytest.raises(UserError, match="has no images"):
        image_conditions(text, ["real"])
    with pytest.raises(UserError, match="images"):
        image_conditions(text, ["nothing"])


def test_shuffling_needs_two_images(root):
    test = read_benchmark("own", root=root)
    with pytest.raises(UserError, match="at least two different images"):
        image_rows("shuffled", replace(test, all_rows=test.rows[:1]), seed=0)


def test_other_modality_shows_an_image_of_another_named_modality(root, monkeypatch, capsys):
    test = read_benchmark("own", root=root)
    group = {row: item["image"] for row, item in zip(test.rows, test.items, strict=True)}
    names = dict(zip(sorted(set(group.values())), ("ct", "mri", "ct", ""), strict=True))
    monkeypatch.setattr(benchmark, "_modalities", lambda _, rows: [names[group[row]] for row in rows])
    assert image_conditions(test, ["real", "other_modality"]) == ["real", "other_modality"]
    for seed in range(5):
        pairs = {(names[group[a]], names[group[b]]) for a, b in zip(test.rows, image_rows("other_modality", test, seed=seed), strict=True)}
        assert pairs >= {("ct", "mri"), ("mri", "ct")}
        assert all(own != other and other for own, other in pairs)
    names |= dict.fromkeys(names, "ct")
    assert image_conditions(test, ["real", "other_modality"]) == ["real"]
    assert "own: without other_modality, because its records do not name several modalities" in capsys.readouterr().out


def test_limit_does_not_change_the_shuffled_image(root):
    full, limited = (read_benchmark("own", root=root, limit=limit) for limit in (0, 5))
    other = dict(zip(full.rows, image_rows("shuffled", full, seed=3), strict=True))
    assert image_rows("shuffled", limited, seed=3) == [other[row] for row in limited.rows]


def test_images_of_one_patient_are_distinct(tmp_path):
    """Two patients with three images each and two questions per image: all six images are shuffled, and have their own colours."""
    (tmp_path / "raw" / "own").mkdir(parents=True)
    rng, lines = np.random.default_rng(1), []
    for n in range(6):
        (tmp_path / "raw" / "own" / f"{n}.jpg").write_bytes(jpeg(rng))
        fields = {"image": f"{n}.jpg", "group": f"patient{n % 2}", "answer": "lung"}
        lines += [{"id": f"{n}-{k}", "question": f"what {k}?", **fields} for k in range(2)]
    (tmp_path / "raw" / "own" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_all(BuildConfig(sources=["own"], raw=tmp_path / "raw", out=tmp_path / "out", workers=1))
    test = read_benchmark("own", root=tmp_path / "out")
    image = {row: test.shards[row].images[0] for row in test.rows}
    moved = {(image[row], image[other]) for row, other in zip(test.rows, image_rows("shuffled", test, seed=0), strict=True)}
    assert len(moved) == len({own for own, _ in moved}) == len({other for _, other in moved}) == 6
    assert all(own != other for own, other in moved)
    assert len(np.unique(row_histograms(test.shards, test.rows), axis=0)) == 6


def test_closed_is_read_from_the_answer_type_of_the_dataset():
    fields = {"key": "k", "source": "slake", "split": "test", "turns": [("left or right?", "left")]}
    answer_types = ("CLOSED", "OPEN ", "other", None)
    results = [_closed(Record(**fields, meta={"answer_type": word} if word else {})) for word in answer_types]
    assert results == [{"closed": True}, {"closed": False}, {}, {}]


def test_benchmark_name_is_not_a_path(root):
    with pytest.raises(UserError, match=r"benchmark '../own': a name has no '/'"):
        read_benchmark("../own", root=root)
    assert {"pathvqa", "vqa_rad_disjoint"} < set(benchmark.benchmark_names())
    assert "malaria" not in benchmark.benchmark_names()


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_files_are_valid(name):
    config = to_typed(BenchmarkConfig, OmegaConf.load(benchmark.FOLDER / f"{name}.yaml"))
    assert config.split in ("test", "val")
    assert not (config.pooled and config.choices)  # headlines are about free text on images


def test_text_only_items_have_an_empty_image(root, shards):
    assert {item["image"] for item in read_benchmark("gamma", root=shards).items} == {""}
    assert all(item["image"] for item in read_benchmark("own", root=root).items)


def test_default_benchmarks_are_those_of_the_mix_with_test_questions(shards, tmp_path):
    """`beta` has captions only. All trials of an ablation are asked the same."""
    mix = MixConfig({"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "pathvqa": 1.0}, decontaminate=True, leave_out=["gamma"])
    assert benchmarks_of_mix(mix, shards, cache=CacheConfig()) == ["alpha", "gamma"]
    with pytest.raises(UserError, match=r"^benchmarks: the mix of the run has alpha, beta, gamma, pathvqa, and no test questions of these"):
        benchmarks_of_mix(mix, tmp_path, cache=CacheConfig())
    shutil.copytree(shards / "alpha", tmp_path / "vqa_med_2019")
    mix = MixConfig({"vqa_med_2019": 1.0}, decontaminate=True)
    assert benchmarks_of_mix(mix, tmp_path, cache=CacheConfig()) == ["vqa_med_2019"]


def test_classification_set_with_shards_is_a_free_text_benchmark(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    (tmp_path / "alpha.yaml").write_text("layout: folder")
    assert read_benchmark("alpha", root=shards).items
