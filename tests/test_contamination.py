"""Questions whose image or text the training data held are told from the others."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep.audit import Audit, audit_all
from data_prep.shards import Build, build_all
from src.cli import compose
from src.config import Evaluate, Mix, typed
from src.data import benchmark
from src.data.contamination import _near, mark
from src.evaluate import evaluate
from src.reporting.answers import benchmark_blocks, contamination_table
from src.scoring.vqa import score, slices
from tests.runs import finish
from tests.test_audit import _build_as, _made, line, save, scene


@pytest.fixture
def out(tmp_path):
    """VQA-RAD with two questions on each of 6 images, PubMedQA with texts; the mix holds images 1 and 3 and text 2."""
    raw = tmp_path / "raw"
    rad, text, mix = (_made(raw / name) for name in ("vqa_rad", "pubmedqa", "mix"))
    for n in range(6):
        image = save(rad / f"{n}.jpg", scene(n))
        for question in ("What?", "Where?"):
            line(rad, "test", id=f"{question}{n}", image=image, question=question, answer=f"cell {n}")
        line(text, "test", id=f"t{n}", question=f"Is {n} odd?", answer="no")
    half = scene(3).resize((80, 64), Image.Resampling.BICUBIC)
    for name, image in (("copy", scene(1)), ("half", half), *((f"other{n}", scene(100 + n)) for n in range(20))):
        line(mix, "train", id=name, image=save(mix / f"{name}.jpg", image, 60), caption=f"A scan, {name}")
    line(mix, "train", id="asked", question="is 2  ODD?", answer="No")
    build_all(Build(sources=["mix"], raw=raw, out=tmp_path / "out", workers=1))
    for name in ("vqa_rad", "pubmedqa"):
        _build_as(name, raw, tmp_path / "out")
    return tmp_path / "out"


def test_seen_questions_are_marked(out):
    mix = Mix(shares={"mix": 1.0, "vqa_rad": 0.0}, decontaminate=False)
    images, texts = (benchmark.read(name, root=out) for name in ("vqa_rad", "pubmedqa"))
    assert not mark(images, mix, out)  # nobody has looked yet
    assert "seen" not in images.items[0]
    audit_all(Audit(out=out))
    assert mark(images, mix, out)
    assert sorted(item["references"][0] for item in images.items if item["seen"]) == ["cell 1", "cell 1", "cell 3", "cell 3"]
    assert mark(texts, mix, out)
    assert [item["question"] for item in texts.items if item["seen"]] == ["Is 2 odd?"]
    other = benchmark.read("vqa_rad", root=out)
    assert mark(other, Mix(shares={"vqa_rad": 1.0}, decontaminate=False), out)
    assert not any(item["seen"] for item in other.items)


@pytest.mark.slow
def test_an_evaluation_says_what_training_held(out, words):
    """From the run's configuration to the keys of `evaluate.json`."""
    audit_all(Audit(out=out))
    words = [word for word in words if not word.startswith("mix.shares")]
    folder, trained = finish(words, f"data.root={out}", "mix.shares={mix: 1}", "mix.decontaminate=false")
    asked = ["benchmarks=[vqa_rad]", "images=[real]", "resamples=20", "max_new_tokens=2", "accelerator=cpu"]
    evaluate(typed(Evaluate, compose("evaluate", [f"run={trained.name}", f"outputs={trained.outputs}", *asked])))
    metrics = json.loads((folder / "evaluate.json").read_text())["metrics"]
    counts = [metrics[f"vqa/vqa_rad/real/{part}/bleu1"]["n"] for part in ("all", "seen", "unseen")]
    assert counts == [12, 4, 8]


def test_scores_stand_side_by_side():
    items = [{"id": str(n), "references": ["lung"], "prediction": "lung" if n < 3 else "rib", "seen": n < 4} for n in range(9)]
    found = score(items, resamples=50, seed=0)
    assert (found["seen/exact"]["value"], found["seen/exact"]["n"]) == (0.75, 4)
    assert (found["unseen/exact"]["value"], found["unseen/exact"]["n"]) == (0.0, 5)
    assert "unseen" not in slices([{key: value for key, value in item.items() if key != "seen"} for item in items])
    assert json.dumps(found)


def test_the_report_says_what_may_be_memory():
    items = [{"id": str(n), "references": ["lung"], "prediction": "lung" if n < 3 else "rib", "seen": n < 4} for n in range(9)]
    parts: dict = {}
    for key, metric in score(items, resamples=20, seed=0).items():
        part, name = key.split("/")
        parts.setdefault(part, {})[name] = metric
    table = contamination_table(parts)
    assert [row[:2] for row in table.rows] == [
        ["all questions", 9],
        ["image or text not in the training data", 5],
        ["image or text in the training data", 4],
    ]
    assert [row[3].value for row in table.rows] == [pytest.approx(3 / 9), 0.0, 0.75]
    assert table in benchmark_blocks({"real": parts})
    assert "mirrored, or cut until its perceptual hash is more than 7 bits away, counts as not in the training data" in table.caption


def test_near_hashes_are_found_in_blocks(monkeypatch):
    leaked = np.array([0, 2**63], np.uint64)
    hashes = np.array([0b1111111, 0b11111111, 2**63 + 1, 2**40], np.uint64)
    assert _near(hashes, leaked).tolist() == [True, False, True, True]
    monkeypatch.setattr("src.data.contamination.BLOCK", 1)
    assert _near(hashes, leaked).tolist() == [True, False, True, True]
    assert _near(hashes, leaked[:0]).tolist() == [False] * 4
