"""Questions whose image or text the training data held are told from the others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageOps

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.config.evaluate import EvaluateConfig
from src.data.datamodule import data_fingerprint
from src.data.train_val_split import open_sources
from src.evaluate import evaluate, mark_seen
from src.evaluation import benchmark, predictions_file
from src.metrics.vqa import score, slices
from src.reporting.answers import benchmark_blocks, contamination_table
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from tests.runs import finish
from tests.test_audit import _build_as, _made, line, save, scene


@pytest.fixture
def out(tmp_path):
    """VQA-RAD with two questions on each of 6 images, PubMedQA with texts; the mix holds images 1, 3 and 5 and text 2; `clean` none."""
    raw = tmp_path / "raw"
    rad, text, mix = (_made(raw / name) for name in ("vqa_rad", "pubmedqa", "mix"))
    for n in range(6):
        image = save(rad / f"{n}.jpg", scene(n))
        for question in ("What?", "Where?"):
            line(rad, "test", id=f"{question}{n}", image=image, question=question, answer=f"cell {n}")
        line(text, "test", id=f"t{n}", question=f"Is {n} odd?", answer="no")
    half = scene(3).resize((80, 64), Image.Resampling.BICUBIC)
    mirrored = ImageOps.mirror(scene(5))
    for name, image in (("copy", scene(1)), ("half", half), ("mirrored", mirrored), *((f"other{n}", scene(100 + n)) for n in range(20))):
        line(mix, "train", id=name, image=save(mix / f"{name}.jpg", image, 60), caption=f"A scan, {name}")
    line(mix, "train", id="asked", question="is 2  ODD?", answer="No")
    line(_made(raw / "clean"), "train", question="What is a lung?", answer="an organ")
    build_all(BuildConfig(sources=["mix", "clean"], raw=raw, out=tmp_path / "out", workers=1))
    for name in ("vqa_rad", "pubmedqa"):
        _build_as(name, raw, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def train(out, words, tmp_path):
    """`train("name", "key=value", ...)` is the folder of a run on the sources `mix` and `clean`, as training leaves it."""

    def trained(name: str, *changes: str) -> Path:
        run = [word for word in words if not word.startswith(("mix.shares", "name="))]
        folder, config = finish([f"name={name}", *run], f"data.root={out}", "mix.shares={mix: 1, clean: 1}", *changes)
        path = folder / "checkpoints" / "best.ckpt"
        print_of = data_fingerprint(open_sources(out, config.mix), config.mix, seed=config.seed, data=config.data)
        torch.save(torch.load(path, weights_only=True) | {"DataModule": {"consumed": 1, "fingerprint": print_of}}, path)
        return folder

    return trained


def marked(folder: Path, out: Path) -> tuple[list[str], list[str], dict[str, dict]]:
    """Ids of the questions of VQA-RAD and PubMedQA that are marked seen, of those marked unseen, and what is said of the benchmarks."""
    tests = [benchmark.read_benchmark(name, root=out) for name in ("vqa_rad", "pubmedqa")]
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    said = mark_seen(tests, stored, folder / "checkpoints" / "best.ckpt", outputs=str(folder.parent))
    items = [item for test in tests for item in test.items]
    name = {item["id"]: item["references"][0] if item["image"] else item["question"] for item in items}
    seen, unseen = ([name[item["id"]] for item in items if item.get("seen") is value] for value in (True, False))
    return sorted(seen), sorted(unseen), said


SEEN = ["Is 2 odd?", "cell 1", "cell 1", "cell 3", "cell 3", "cell 5", "cell 5"]  # image 3 at half size, image 5 mirrored


@pytest.mark.slow
def test_seen_questions_are_marked_by_an_audit_before_or_after_training(out, train, capsys):
    early = train("early")  # mix.decontaminate=true, and nobody has looked yet
    assert marked(early, out)[:2] == ([], [])
    assert "vqa_rad, pubmedqa: run 'early': mix has no audit of its present build; run `make audit`\n" in capsys.readouterr().out
    audit_all(AuditConfig(out=out))
    seen, unseen, said = marked(early, out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)
    assert said["vqa_rad"] == {"records": {"mix": 3}, "complete": True, "notes": [NEWER]}
    assert f"vqa_rad, pubmedqa: {NEWER}\n" in capsys.readouterr().out
    assert marked(train("clean"), out)[0] == []
    seen, unseen, _ = marked(train("dirty", "mix.decontaminate=false"), out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)


NEWER = "run 'early': the audit of mix has changed since the training, which left out other records"


@pytest.mark.slow
def test_child_has_seen_what_its_parents_have_seen(out, train):
    train("grandparent")
    audit_all(AuditConfig(out=out))
    train("parent", "init=run:grandparent")
    seen, unseen, _ = marked(train("child", "init=run:parent"), out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)
    shutil.rmtree(out.parent / "outputs" / "grandparent")
    seen, unseen, said = marked(out.parent / "outputs" / "child", out)
    assert (seen, unseen, said["vqa_rad"]["complete"]) == ([], [], False)
    assert said["vqa_rad"]["notes"] == [f"run 'grandparent', whose weights were continued, is gone from {out.parent}/outputs/"]


def test_what_is_known_to_be_seen_is_marked_where_not_all_is_known(out, train):
    audit_all(AuditConfig(out=out))
    train("parent", "mix.decontaminate=false", "init=run:gone")
    seen, unseen, _ = marked(train("child", "init=run:parent"), out)
    assert (seen, unseen) == (SEEN, [])


def test_an_evaluation_says_what_training_held(out, train):
    """From the run's configuration to the keys of `evaluate.json`, and in the files, where a mark that no longer holds goes."""
    audit_all(AuditConfig(out=out))
    folder = train("dirty", "mix.decontaminate=false")
    asked = ["benchmarks=[vqa_rad]", "images=[real]", "resamples=20", "max_new_tokens=2", "accelerator=cpu"]
    config = to_typed(EvaluateConfig, compose("evaluate", ["run=dirty", f"outputs={folder.parent}", *asked]))
    evaluate(config)
    said = json.loads((folder / "evaluate.json").read_text())
    assert [said["metrics"][f"vqa/vqa_rad/real/{part}/bleu1"]["n"] for part in ("all", "seen", "unseen")] == [12, 6, 6]
    assert said["seen"]["vqa_rad"]["records"] == {"mix": 3}
    (out / "mix" / "audit.json").unlink()
    evaluate(config)
    assert not any("seen" in item for item in predictions_file.read_predictions(folder / "predictions" / "vqa_rad.real.jsonl"))


def test_scores_stand_side_by_side():
    items = [{"id": str(n), "references": ["lung"], "prediction": "lung" if n < 3 else "rib", "seen": n < 4} for n in range(9)]
    found = score(items, resamples=50, seed=0)
    assert (found["seen/exact"]["value"], found["seen/exact"]["n"]) == (0.75, 4)
    assert (found["unseen/exact"]["value"], found["unseen/exact"]["n"]) == (0.0, 5)
    known = [{key: value for key, value in item.items() if value is not False} for item in items]
    assert "seen" in slices(known)  # of which it is known, though of the others it is not
    assert "unseen" not in slices(known)
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
    unseen = {key: part for key, part in parts.items() if key != "seen"}
    sentence = "The audits found no question of this benchmark in the training data"
    assert any(sentence in getattr(block, "text", "") for block in benchmark_blocks({"real": unseen}))
    assert [row[0] for row in contamination_table({key: part for key, part in parts.items() if key != "unseen"}).rows] == [
        "all questions",
        "image or text in the training data",
    ]
