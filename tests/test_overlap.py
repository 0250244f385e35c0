"""Whether a benchmark may be called unseen, for a set of one's own whose four test images all stand among the training records."""

import json
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
from src.classification import dataset
from src.config.train import DataConfig, MixConfig
from src.data.datamodule import data_fingerprint
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
def place(tmp_path) -> Path:
    """Shards of a source `mix` that holds every image of the classification set `dots`, and ten others."""
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


def audit(place: Path) -> None:
    audit_all(AuditConfig(out=place / "shards", raw=place / "raw", benchmarks=["dots"]))


def trained(place: Path, name: str, *, decontaminate: bool = True, init: str | None = None) -> tuple[dict, Path]:
    """A run on the shards as they are now: its configuration and its checkpoint."""
    mix = {"shares": {"mix": 1.0}, "decontaminate": decontaminate}
    vision = {"format": "open_clip", "path": "org/weights", "architecture": ""}
    run = {"name": name, "data": {"root": str(place / "shards"), **DATA}, "mix": mix, "vision": vision, "init": init}
    path = place / "outputs" / name / "checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    (path.parents[1] / "config.yaml").write_text(yaml.safe_dump(run))
    shards = {"mix": Shards(place / "shards/mix")}
    print_of = data_fingerprint(shards, to_typed(MixConfig, DictConfig(mix)), seed=0, data=to_typed(DataConfig, DictConfig(run["data"])))
    torch.save({"state_dict": {}, "DataModule": {"consumed": 1, "fingerprint": print_of}}, path)
    return run, path


def fingerprint_of(place: Path) -> str:
    return dataset.read_dataset("dots", raw=place / "raw").fingerprint


def answer(place: Path, run: tuple[dict, Path], benchmark: str = "dots") -> tuple[dict, bool | None]:
    said = training_overlap(*run, benchmark, fingerprint=fingerprint_of(place), outputs=str(place / "outputs"))
    return said["found"], said["trained_on"]


def test_nothing_is_known_before_an_audit_or_of_a_set_that_it_did_not_look_for(place):
    run = trained(place, "early")
    assert answer(place, run) == ({}, None)
    audit(place)
    assert answer(place, run, "spots") == ({}, None)


def test_what_an_audit_left_out_was_not_trained_on(place):
    audit(place)
    assert answer(place, trained(place, "clean")) == ({"mix": 4}, False)
    assert answer(place, trained(place, "dirty", decontaminate=False)) == ({"mix": 4}, True)


def test_an_audit_that_came_after_training_left_nothing_out(place):
    run = trained(place, "early")
    audit(place)
    assert answer(place, run) == ({"mix": 4}, True)


def test_a_run_has_seen_what_the_run_that_it_continues_has_seen(place):
    trained(place, "parent")
    audit(place)
    assert answer(place, trained(place, "child", init="run:parent")) == ({"mix": 4}, True)
    assert answer(place, trained(place, "orphan", init="run:gone")) == ({"mix": 4}, None)


def test_an_audit_of_other_shards_says_nothing_of_those_of_then(place):
    audit(place)
    run, path = trained(place, "then")
    stored = torch.load(path, weights_only=True)
    stored["DataModule"]["fingerprint"]["shards"]["mix"] = "another build"
    torch.save(stored, path)
    assert answer(place, (run, path)) == ({"mix": 4}, None)


def test_an_audit_of_another_build_of_the_test_set_says_nothing(place):
    audit(place)
    run = trained(place, "clean")
    said = training_overlap(*run, "dots", fingerprint="another build", outputs=str(place / "outputs"))
    assert said["trained_on"] is None
    assert said["notes"] == ["run 'clean': the audit of mix has looked for another build of dots; run `make audit`"]


def test_an_audit_of_a_former_build_says_nothing(place):
    audit(place)
    run = trained(place, "clean")
    path = place / "shards/mix/audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest": "another build"}))
    assert answer(place, run) == ({}, None)


def test_runs_that_continue_each_other_in_a_circle_are_told(place):
    audit(place)
    trained(place, "parent", init="run:child")
    assert answer(place, trained(place, "child", init="run:parent")) == ({"mix": 4}, None)


def test_weights_that_a_run_began_with_are_named(place):
    run, path = trained(place, "one")
    assert training_overlap(run, path, "dots", fingerprint="", outputs="nowhere")["start"] == "org/weights"
    run["vision"]["format"] = "scratch"
    assert training_overlap(run, path, "dots", fingerprint="", outputs="nowhere")["start"] is None


def test_a_set_of_ones_own_needs_the_folder_that_it_stands_in(place):
    with pytest.raises(UserError, match=r"^benchmarks=dots: raw= is missing; give the folder that holds these sets, raw=\.\.\.$"):
        audit_all(AuditConfig(out=place / "shards", benchmarks=["dots"]))
    with pytest.raises(UserError, match="did you mean 'dots'"):
        audit_all(AuditConfig(out=place / "shards", raw=place / "raw", benchmarks=["dotts"]))
