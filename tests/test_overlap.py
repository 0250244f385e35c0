"""Overlap of a classification set with the training data of a run: all four test images of the set are among the training records."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig
from PIL import Image

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.classification.reader import read_dataset
from src.config.train import DataConfig, MixConfig
from src.data.fingerprint import data_fingerprint
from src.data.lineage import write_lineage
from src.data.shards import Shards
from src.evaluation.overlap import training_overlap
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

DATA = {
    "packing_window": 8,
    "global_batch_size": 4,
    "max_seq_len": 64,
    "workers": 0,
    "exact_decode": False,
    "images": True,
    "val_samples": 0,
    "val_generations": 0,
}


@pytest.fixture
def root(tmp_path) -> Path:
    """Shards of a source `mix` that contains every image of the classification set `dots`, and ten others."""
    rng = np.random.default_rng(0)
    lines = []
    (tmp_path / "raw/mix").mkdir(parents=True)
    for n in range(30):
        folder = tmp_path / "raw/dots" / "ab"[n % 2] if n < 20 else tmp_path / "raw/mix"
        folder.mkdir(parents=True, exist_ok=True)
        blocks = np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(blocks).save(folder / f"{n}.png")
        (tmp_path / f"raw/mix/{n}.png").write_bytes((folder / f"{n}.png").read_bytes())
        lines.append(json.dumps({"id": str(n), "image": f"{n}.png", "caption": f"picture {n}"}))
    (tmp_path / "raw/mix/train.jsonl").write_text("\n".join(lines))
    build_all(BuildConfig(sources=["mix"], raw=tmp_path / "raw", out=tmp_path / "shards", workers=1))
    return tmp_path


def audit(root: Path) -> None:
    audit_all(AuditConfig(out=root / "shards", raw=root / "raw", benchmarks=["dots"]))


def make_run(
    root: Path, name: str, *, decontaminate: bool = True, init: str | None = None, val_samples: int = 0, with_lineage: bool = True
) -> Path:
    """The checkpoint of a run on the present shards; without lineage.json, as older code left it."""
    mix = {"shares": {"mix": 1.0}, "decontaminate": decontaminate}
    vision = {"format": "open_clip", "path": "org/weights", "architecture": ""}
    data = {"root": str(root / "shards"), **DATA, "val_samples": val_samples}
    config = {"name": name, "data": data, "mix": mix, "vision": vision, "init": init}
    checkpoint = root / "outputs" / name / "checkpoints/best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    folder = checkpoint.parents[1]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shards = {"mix": Shards(root / "shards/mix")}
    fingerprint = data_fingerprint(shards, to_typed(MixConfig, DictConfig(mix)), seed=0, data=to_typed(DataConfig, DictConfig(data)))
    torch.save({"state_dict": {}, "DataModule": {"consumed": 1, "fingerprint": fingerprint}}, checkpoint)
    if with_lineage:
        write_lineage(folder, fingerprint=fingerprint, manifests={"mix": shards["mix"].manifest})
    else:
        (folder / "train.json").write_text(json.dumps({key: fingerprint[key] for key in ("shards", "records")}))
    return checkpoint


def overlap(root: Path, checkpoint: Path, test_set: str = "dots") -> tuple[dict, bool | None]:
    result = training_overlap(checkpoint, test_set, fingerprint=read_dataset("dots", raw=root / "raw").fingerprint)
    return result["found"], result["trained_on"]


def test_overlap_is_unknown_without_an_audit_of_the_set(root):
    checkpoint = make_run(root, "early")
    assert overlap(root, checkpoint) == ({}, None)
    audit(root)
    assert overlap(root, checkpoint, "spots") == ({}, None)


def test_decontaminated_records_are_not_trained_on(root):
    audit(root)
    assert overlap(root, make_run(root, "clean")) == ({"mix": 4}, False)
    assert overlap(root, make_run(root, "dirty", decontaminate=False)) == ({"mix": 4}, True)


def test_validation_records_do_not_look_like_a_changed_audit(root):
    audit(root)
    assert overlap(root, make_run(root, "clean", val_samples=5)) == ({"mix": 4}, False)


def test_audit_after_training_removed_nothing(root):
    checkpoint = make_run(root, "early")
    audit(root)
    assert overlap(root, checkpoint) == ({"mix": 4}, True)


@pytest.mark.parametrize("with_lineage", [True, False])
def test_child_run_inherits_the_overlap_of_its_parent(root, with_lineage):
    make_run(root, "parent", with_lineage=with_lineage)
    audit(root)
    child = make_run(root, "child", init="run:parent", with_lineage=with_lineage)
    assert overlap(root, child) == ({"mix": 4}, True)
    orphan = make_run(root, "orphan", init="run:gone", with_lineage=with_lineage)
    assert overlap(root, orphan) == ({"mix": 4}, None)
    assert training_overlap(orphan, "spots", fingerprint="")["notes"][-1] == (
        "run 'orphan': its init=run:gone has no training record, because the folder is missing or was trained anew; "
        "put the original folder back"
    )


def test_child_run_inherits_the_overlap_of_a_deleted_parent(root):
    make_run(root, "parent")
    audit(root)
    child = make_run(root, "child", init="run:parent")
    shutil.rmtree(root / "outputs/parent")
    assert overlap(root, child) == ({"mix": 4}, True)


def test_copied_record_counts_and_not_a_retrained_parent(root):
    make_run(root, "parent", decontaminate=False)
    audit(root)
    child = make_run(root, "child", init="run:parent")
    shutil.rmtree(root / "outputs/parent")
    make_run(root, "parent")
    assert overlap(root, child) == ({"mix": 4}, True)


def test_overlap_is_unknown_for_rebuilt_shards(root):
    audit(root)
    checkpoint = make_run(root, "before")
    state = torch.load(checkpoint, weights_only=True)
    state["DataModule"]["fingerprint"]["shards"]["mix"] = "another build"
    torch.save(state, checkpoint)
    assert overlap(root, checkpoint) == ({"mix": 4}, None)


def test_overlap_is_unknown_for_another_build_of_the_test_set(root):
    audit(root)
    result = training_overlap(make_run(root, "clean"), "dots", fingerprint="another build")
    assert result["trained_on"] is None
    assert result["notes"] == ["run 'clean': the audit of mix checked another build of dots; run `make audit`"]


def test_overlap_is_unknown_with_the_audit_of_an_earlier_build(root):
    audit(root)
    checkpoint = make_run(root, "clean")
    path = root / "shards/mix/audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest": "another build"}))
    assert overlap(root, checkpoint) == ({}, None)


@pytest.mark.parametrize("with_lineage", [True, False])
def test_overlap_is_unknown_for_runs_that_name_each_other_as_init(root, with_lineage):
    audit(root)
    make_run(root, "parent", init="run:child", with_lineage=False)
    assert overlap(root, make_run(root, "child", init="run:parent", with_lineage=with_lineage)) == ({"mix": 4}, None)


def test_training_overlap_names_the_initial_weights(root):
    checkpoint = make_run(root, "one")
    assert training_overlap(checkpoint, "dots", fingerprint="")["start"] == "org/weights"
    path = checkpoint.parents[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["vision"]["format"] = "scratch"
    path.write_text(yaml.safe_dump(config))
    assert training_overlap(checkpoint, "dots", fingerprint="")["start"] is None


def test_audit_of_a_classification_set_needs_its_raw_folder(root):
    with pytest.raises(UserError, match=r"^benchmarks=dots: raw= is missing; give the folder that holds these sets, raw=\.\.\.$"):
        audit_all(AuditConfig(out=root / "shards", benchmarks=["dots"]))
    with pytest.raises(UserError, match="did you mean 'dots'"):
        audit_all(AuditConfig(out=root / "shards", raw=root / "raw", benchmarks=["dotts"]))
