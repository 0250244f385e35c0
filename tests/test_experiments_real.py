"""experiments/real: counts of rows, trials from the training to the tables, and the cells of a Pascal VOC set."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

from data_prep import sources
from experiments import tables
from experiments.real import run
from experiments.real.cells import write_cells
from experiments.real.row_counts import COLUMNS, count_source
from experiments.real.trials import SETTINGS, read_experiment, select_trials
from src.classification.reader import read_dataset
from src.config.train import TrainConfig
from src.config.train_rules import check_values
from src.runtime.cli import compose
from src.runtime.schema import to_typed

BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>22</ymax></bndbox></object>"


def test_every_row_is_a_record_or_has_a_reason(tmp_path):
    raw = tmp_path / "slake"
    (raw / "Slake1.0" / "imgs" / "xmlab1").mkdir(parents=True)
    (raw / "Slake1.0" / "imgs" / "xmlab1" / "source.jpg").write_bytes(b"a picture")
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Which organ?", "answer": "Lung", "q_lang": "en"}
    row |= {
        "location": "Lung",
        "modality": "CT",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": [],
        "qid": 0,
    }
    rows = [row, row | {"qid": 1, "q_lang": "zh"}, row | {"qid": 2, "img_name": "xmlab2/source.jpg"}]
    (raw / "Slake1.0" / "train.json").write_text(json.dumps(rows))
    (line,) = count_source(sources.find_source("slake", tmp_path), raw)
    counts = dict(zip(COLUMNS, line, strict=True))
    assert (counts["rows"], counts["records"], counts["left out by a rule"], counts["refused"]) == (3, 1, 1, 1)
    assert counts["why"] == "language 1; image missing 1"


@pytest.fixture
def cells(tmp_path) -> Path:
    """Two photographs per split, each with a red cell, a white cell and a box that is cut off by the edge."""
    voc, rng = tmp_path / "voc", np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{split}_{n}" for n in range(2)]
        (voc / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
        for name in names:
            Image.fromarray(rng.integers(0, 256, (30, 60, 3), np.uint8)).save(voc / f"JPEGImages/{name}.jpg")
            boxes = BOX.format("RBC", 1, 21) + BOX.format("WBC", 30, 50) + BOX.format("WBC", 59, 60)
            (voc / f"Annotations/{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
    write_cells(voc, tmp_path / "raw/cells")
    return tmp_path / "raw/cells"


def test_boxes_become_a_classification_set_grouped_by_photograph(cells):
    data = read_dataset("cells", raw=cells.parent)
    assert data.counts() == {split: {"RBC": 2, "WBC": 2} for split in ("train", "val", "test")}
    assert {example.group for example in data.examples} == {f"{split}_{n}" for split in ("train", "val", "test") for n in range(2)}


def test_every_mix_has_the_same_number_of_image_samples():
    experiment = read_experiment(SETTINGS)
    for trial in select_trials(experiment, ["both", "slake", "vqa_med", "both_text"], seeds=1, shared=[]):
        config = to_typed(TrainConfig, compose("train", trial.train_words()))
        check_values(config)
        shares = config.mix.sampling_weights
        images = 1 - shares.get("pubmedqa", 0) / sum(shares.values())
        assert images * config.data.global_batch_size == pytest.approx(32), trial.name
        assert config.optim.steps == 150
    assert {label for pair in experiment.comparisons for label in pair} == experiment.trials.keys()


def test_second_seed_of_a_continued_trial_starts_from_the_second_seed_of_its_parent():
    trial = select_trials(read_experiment(SETTINGS), ["both_stage2"], seeds=2, shared=[])[1]
    assert (trial.name, trial.train_words()[-2:]) == ("both_stage2-seed1", ["init=run:both-seed1", "seed=2"])


@pytest.fixture
def words(shards, language, cells, tmp_path) -> list[str]:
    """Three trials of two steps on the shards of the tests, and a probe of their encoders."""
    model, configuration = timm.create_model("test_vit", num_classes=5), {"pretrained_cfg": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
    timm.models.save_for_hf(model, tmp_path / "encoder", model_config=configuration, safe_serialization=True)
    settings = ["mix=own", "mix.shares={alpha: 2, gamma: 1}", "language=phantom", "trainer=cpu", "optim.steps=2", "optim.warmup=1"]
    settings += ["data.packing_window=32", "data.global_batch_size=16", "data.max_seq_len=160", "data.workers=0", "data.val_samples=4"]
    experiment = {
        "settings": [*settings, "trainer.val_every=2"],
        "benchmarks": ["alpha"],
        "evaluate": ["max_new_tokens=3", "resamples=50", "accelerator=cpu"],
        "transfer": ["resamples=50", "seeds=1", "accelerator=cpu"],
        "trials": {
            "both": {"images": ["real", "shuffled"]},
            "blind": {"images": ["none"], "settings": ["data.images=false"]},
            "untrained_encoder": {"images": ["real"], "encoder": "random"},
        },
        "comparisons": [["both", "blind"], ["both", "untrained_encoder"]],
    }
    (tmp_path / "trials.yaml").write_text(yaml.safe_dump(experiment))
    words = [f"data={shards}", f"out={tmp_path / 'out'}", f"settings={tmp_path / 'trials.yaml'}", f"language.path={language}"]
    return [*words, "vision.format=timm", f"vision.path={tmp_path / 'encoder'}", "vision.image_size=32", f"cells={cells}"]


@pytest.mark.slow
def test_trials_become_tables_and_are_run_once(words, tmp_path, capsys):
    out = tmp_path / "out"
    run.main(words)
    rows = tables.read_rows(out / "results.csv")
    assert {(row["trial"], row["condition"]) for row in rows} == {
        ("no model", "majority"),
        ("no model", "colour"),
        *(("both", f"real_minus_{other}") for other in ("shuffled", "majority", "colour")),
        ("both", "real"),
        ("both", "shuffled"),
        ("blind", "none"),
        ("untrained_encoder", "real"),
        ("untrained_encoder", "real_minus_majority"),
        ("untrained_encoder", "real_minus_colour"),
        ("both - blind", ""),
        ("both - untrained_encoder", ""),
    }
    assert {row["n"] for row in rows if row["slice"] == "all"} == {"8"}
    exact = {row["trial"]: float(row["value"]) for row in rows if row["score"] == "exact" and row["condition"] in ("real", "none", "")}
    assert exact["both - blind"] == pytest.approx(exact["both"] - exact["blind"], abs=1e-4)
    assert {row["encoder"] for row in tables.read_rows(out / "cells.csv") if row["score"] == "macro_f1"} == {
        *("both", "untrained_encoder", "before training", "scratch"),
    }
    vision = yaml.safe_load((out / "untrained_encoder/config.yaml").read_text())["vision"]
    assert (vision["format"], vision["path"], vision["architecture"], vision["image_size"]) == ("scratch", "", "test_vit", 32)
    for table in tables.REAL[-2:]:
        assert "both" in table.render(tables.read_rows(out / Path(table.file).name))
    text = tables.real_answers(rows, benchmark="alpha")
    assert "| both: real - shuffled | 8 |" in text
    assert "| blind | none | 8 |" in text
    assert len(tables.real_trials(tables.read_rows(out / "trials.csv")).splitlines()) == 2 + 3

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".json", ".jsonl", ".ckpt", ".safetensors")}
    run.main(words)
    assert {path: path.stat().st_mtime_ns for path in written} == written

    with pytest.raises(SystemExit, match="2"):
        run.main([*words, "steps=3"])
    assert "holds a different configuration (optim.steps was 2, now 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trials=bot", "trials=bot; did you mean 'both'?"),
        ("cells=nowhere", "cells=nowhere holds no labels.csv"),
        ("settings=nowhere.yaml", "settings=nowhere.yaml does not exist"),
    ],
)
def test_wrong_argument_is_reported_before_the_first_trial(word, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main([f"data={tmp_path}", f"out={tmp_path / 'out'}", "vision.format=timm", "language.path=x", word])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
