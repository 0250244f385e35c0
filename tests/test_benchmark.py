"""Benchmarks: which questions, with which images under each condition."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.data.record import Record
from src.evaluation import benchmark
from src.evaluation.baselines import _histograms
from src.evaluation.benchmark import BenchmarkConfig, _closed, condition_images, image_conditions, read_benchmark, shown_rows
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.conftest import jpeg

NAMES = sorted(path.stem for path in benchmark.FOLDER.glob("*.yaml") if "layout:" not in path.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four images with three questions each; one of them, by its group, in the training split too."""
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


def test_every_question_has_its_line(root):
    test = read_benchmark("own", root=root)
    assert len(test.items) == len({item["id"] for item in test.items}) == 12
    assert len({item["image"] for item in test.items}) == 4
    assert test.pooled
    assert not test.choices


def test_a_limit_is_spread_over_the_split(root):
    test = read_benchmark("own", root=root, limit=4)
    assert len({item["image"] for item in test.items}) == 4
    assert read_benchmark("own", root=root, limit=99).rows == read_benchmark("own", root=root).rows


def test_shuffled_images_change_places_in_one_cycle(root):
    test = read_benchmark("own", root=root)
    for seed in range(5):
        own, other = shown_rows("real", test, seed=seed), shown_rows("shuffled", test, seed=seed)
        group = {row: item["image"] for row, item in zip(test.rows, test.items, strict=True)}
        moved = {(group[a], group[b]) for a, b in zip(own, other, strict=True)}
        assert len(moved) == 4  # all questions on one image get the same other one
        assert all(a != b for a, b in moved)
        at, steps = next(iter(moved))[0], 0
        while steps == 0 or at != next(iter(moved))[0]:
            at, steps = dict(moved)[at], steps + 1
        assert steps == 4
    assert shown_rows("shuffled", test, seed=0) == shown_rows("shuffled", test, seed=0)


def test_what_is_shown(root):
    test = read_benchmark("own", root=root)
    mean = torch.tensor([0.5, 0.25, 1.0])
    numbers = [0, 1, 3]
    real = condition_images(test, numbers, "real", shown_rows("real", test, seed=0), mean=mean, size=16, exact=False)
    assert real[0][0] == real[1][0] != real[2][0]  # one name per image
    assert real[0][1][0] is real[1][1][0]  # decoded once
    blank = condition_images(test, numbers, "blank", None, mean=mean, size=16, exact=False)
    assert blank[0][1][0].shape == (3, 16, 16)
    assert blank[0][1][0][:, 3, 5].tolist() == [128, 64, 255]
    assert condition_images(test, numbers, "none", None, mean=mean, size=16, exact=False) == [("none", [])] * 3


def test_a_disjoint_benchmark_leaves_out_images_of_the_training_split(root, tmp_path, monkeypatch):
    (tmp_path / "apart.yaml").write_text("source: own\nsplit: test\npooled: true\nchoices: false\ndisjoint: true\n")
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    assert len(read_benchmark("apart", root=root).rows) == 9


def test_conditions_are_checked(root, shards):
    assert image_conditions(read_benchmark("own", root=root), ["real", "blank"]) == ["real", "blank"]
    text = read_benchmark("gamma", root=shards)
    assert not text.pooled
    assert image_conditions(text, ["real", "none"]) == ["none"]
    with pytest.raises(UserError, match="has no images"):
        image_conditions(text, ["real"])
    with pytest.raises(UserError, match="images"):
        image_conditions(text, ["nothing"])


def test_shuffling_one_image_is_refused(root):
    test = read_benchmark("own", root=root)
    with pytest.raises(UserError, match="at least two different images"):
        shown_rows("shuffled", replace(test, whole=test.rows[:1]), seed=0)


def test_a_limit_does_not_change_the_other_image(root):
    whole, some = (read_benchmark("own", root=root, limit=limit) for limit in (0, 5))
    other = dict(zip(whole.rows, shown_rows("shuffled", whole, seed=3), strict=True))
    assert shown_rows("shuffled", some, seed=3) == [other[row] for row in some.rows]


def test_the_images_of_one_patient_are_different_images(tmp_path):
    """Three images each of two patients, two questions on each: all six are shown to others, and have their own colours."""
    (tmp_path / "raw" / "own").mkdir(parents=True)
    rng, lines = np.random.default_rng(1), []
    for n in range(6):
        (tmp_path / "raw" / "own" / f"{n}.jpg").write_bytes(jpeg(rng))
        about = {"image": f"{n}.jpg", "group": f"patient{n % 2}", "answer": "lung"}
        lines += [{"id": f"{n}-{k}", "question": f"what {k}?", **about} for k in range(2)]
    (tmp_path / "raw" / "own" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_all(BuildConfig(sources=["own"], raw=tmp_path / "raw", out=tmp_path / "out", workers=1))
    test = read_benchmark("own", root=tmp_path / "out")
    picture = {row: test.shards[row].images[0] for row in test.rows}
    moved = {(picture[row], picture[other]) for row, other in zip(test.rows, shown_rows("shuffled", test, seed=0), strict=True)}
    assert len(moved) == len({own for own, _ in moved}) == len({other for _, other in moved}) == 6
    assert all(own != other for own, other in moved)
    assert len(np.unique(_histograms(test.shards, test.rows), axis=0)) == 6


def test_what_the_dataset_calls_closed_stands_with_the_question():
    about = {"key": "k", "source": "slake", "split": "test", "turns": [("left or right?", "left")]}
    said = ("CLOSED", "OPEN ", "other", None)
    found = [_closed(Record(**about, meta={"answer_type": word} if word else {})) for word in said]
    assert found == [{"closed": True}, {"closed": False}, {}, {}]


def test_a_name_is_no_path(root):
    with pytest.raises(UserError, match=r"benchmark '../own' has a '/'"):
        read_benchmark("../own", root=root)
    assert {"pathvqa", "vqa_rad_disjoint"} < set(benchmark.benchmark_names())
    assert "malaria" not in benchmark.benchmark_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_names_a_source_and_says_what_it_is(name):
    said = to_typed(BenchmarkConfig, OmegaConf.load(benchmark.FOLDER / f"{name}.yaml"))
    assert said.split in ("test", "val")
    assert not (said.pooled and said.choices)  # headlines are about free text on images


def test_text_only_questions_name_no_image(root, shards):
    assert {item["image"] for item in read_benchmark("gamma", root=shards).items} == {""}
    assert all(item["image"] for item in read_benchmark("own", root=root).items)
