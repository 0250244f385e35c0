"""Questions whose image or text is in the training data are marked as seen and scored separately."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.commands.evaluate import mark_seen
from src.config.evaluate import EvaluateConfig
from src.data.fingerprint import data_fingerprint
from src.data.lineage import write_lineage
from src.data.train_val_split import open_sources
from src.evaluate import evaluate
from src.evaluation import benchmark, predictions_file
from src.metrics.vqa import score, slices
from src.reporting.answers import benchmark_blocks, contamination_table
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from tests.runs import finish
from tests.test_audit import _build_as, _made, line, save, scene


@pytest.fixture
def out(tmp_path):
    """VQA-RAD with two questions on each of 6 images, and PubMedQA; `mix` contains images 1, 3 and 5 and text 2, `clean` none."""
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
    """`train("name", "key=value", ...)` returns the folder of a run on the sources `mix` and `clean`, as after training."""

    def make_run(name: str, *changes: str) -> Path:
        run = [word for word in words if not word.startswith(("mix.shares", "name="))]
        folder, config = finish([f"name={name}", *run], f"data.root={out}", "mix.shares={mix: 1, clean: 1}", *changes)
        path = folder / "checkpoints" / "best.ckpt"
        shards = open_sources(out, config.mix)
        fingerprint = data_fingerprint(shards, config.mix, seed=config.seed, data=config.data)
        torch.save(torch.load(path, weights_only=True) | {"DataModule": {"consumed": 1, "fingerprint": fingerprint}}, path)
        write_lineage(folder, fingerprint=fingerprint, manifests={source: opened.manifest for source, opened in shards.items()})
        return folder

    return make_run


def marked(folder: Path, out: Path) -> tuple[list[str], list[str], dict[str, dict]]:
    """Questions of VQA-RAD and PubMedQA that are marked seen, those that are marked unseen, and the result of `mark_seen`."""
    tests = [benchmark.read_benchmark(name, root=out) for name in ("vqa_rad", "pubmedqa")]
    result = mark_seen(tests, folder / "checkpoints" / "best.ckpt")
    items = [item for test in tests for item in test.items]
    name = {item["id"]: item["references"][0] if item["image"] else item["question"] for item in items}
    seen, unseen = ([name[item["id"]] for item in items if item.get("seen") is value] for value in (True, False))
    return sorted(seen), sorted(unseen), result


AUDIT_CHANGED = "run 'early': the audit of mix changed after the training, which excluded other records"
SEEN = ["Is 2 odd?", "cell 1", "cell 1", "cell 3", "cell 3", "cell 5", "cell 5"]  # image 3 at half size, image 5 mirrored


@pytest.mark.slow
def test_questions_are_marked_by_an_audit_before_or_after_training(out, train, capsys):
    early = train("early")  # mix.decontaminate=true, without an audit
    assert marked(early, out)[:2] == ([], [])
    assert "vqa_rad, pubmedqa: run 'early': mix has no audit of its present build; run `make audit`\n" in capsys.readouterr().out
    audit_all(AuditConfig(out=out))
    seen, unseen, result = marked(early, out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)
    assert result["vqa_rad"] == {"records": {"mix": 3}, "complete": True, "notes": [AUDIT_CHANGED]}
    assert f"vqa_rad, pubmedqa: {AUDIT_CHANGED}\n" in capsys.readouterr().out
    assert marked(train("clean"), out)[0] == []
    seen, unseen, _ = marked(train("dirty", "mix.decontaminate=false"), out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)


@pytest.mark.slow
def test_child_run_inherits_the_seen_questions_of_its_ancestors(out, train):
    train("grandparent")
    audit_all(AuditConfig(out=out))
    train("parent", "init=run:grandparent")
    child = train("child", "init=run:parent")
    seen, unseen, _ = marked(child, out)
    assert (seen, len(unseen)) == (SEEN, 18 - 7)
    for name in ("grandparent", "parent"):
        shutil.rmtree(out.parent / "outputs" / name)
    seen, unseen, _ = marked(child, out)  # from the copied records
    assert (seen, len(unseen)) == (SEEN, 18 - 7)


@pytest.mark.slow
def test_nothing_is_marked_unseen_where_an_older_parent_left_no_record(out, train):
    audit_all(AuditConfig(out=out))
    train("grandparent")
    (train("parent", "init=run:grandparent") / "lineage.json").unlink()
    shutil.rmtree(out.parent / "outputs" / "grandparent")
    seen, unseen, result = marked(train("child", "init=run:parent"), out)
    assert (seen, unseen, result["vqa_rad"]["complete"]) == ([], [], False)
    assert "run 'parent': its init=run:grandparent has no training record" in result["vqa_rad"]["notes"][-1]


@pytest.mark.slow
def test_known_overlap_is_marked_where_the_rest_is_unknown(out, train):
    audit_all(AuditConfig(out=out))
    train("parent", "mix.decontaminate=false", "init=run:gone")
    seen, unseen, _ = marked(train("child", "init=run:parent"), out)
    assert (seen, unseen) == (SEEN, [])


def test_evaluation_scores_seen_and_unseen_questions(out, train):
    """From the run's configuration to the keys of `evaluate.json`; marks that no longer apply are removed from the files."""
    audit_all(AuditConfig(out=out))
    folder = train("dirty", "mix.decontaminate=false")
    overrides = ["benchmarks=[vqa_rad]", "images=[real]", "resamples=20", "max_new_tokens=2", "accelerator=cpu"]
    config = to_typed(EvaluateConfig, compose("evaluate", ["run=dirty", f"outputs={folder.parent}", *overrides]))
    evaluate(config)
    result = json.loads((folder / "evaluate.json").read_text())
    assert [result["metrics"][f"vqa/vqa_rad/real/{part}/bleu1"]["n"] for part in ("all", "seen", "unseen")] == [12, 6, 6]
    assert result["seen"]["vqa_rad"]["records"] == {"mix": 3}
    (out / "mix" / "audit.json").unlink()
    evaluate(config)
    assert not any("seen" in item for item in predictions_file.read_predictions(folder / "predictions" / "vqa_rad.real.jsonl"))


def test_seen_and_unseen_questions_are_scored_separately():
    items = [{"id": str(n), "references": ["lung"], "prediction": "lung" if n < 3 else "rib", "seen": n < 4} for n in range(9)]
    scores = score(items, resamples=50, seed=0)
    assert (scores["seen/exact"]["value"], scores["seen/exact"]["n"]) == (0.75, 4)
    assert (scores["unseen/exact"]["value"], scores["unseen/exact"]["n"]) == (0.0, 5)
    partial = [{key: value for key, value in item.items() if value is not False} for item in items]
    assert "seen" in slices(partial)  # the state of the other items is unknown
    assert "unseen" not in slices(partial)
    assert "unseen" not in slices([{key: value for key, value in item.items() if key != "seen"} for item in items])
    assert json.dumps(scores)


def test_report_tabulates_seen_and_unseen_questions():
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
