"""Parts of the trials that damage raw data, kill commands and fill the disk (`make soak ONLY=fuzz,interrupt,disk`)."""

import csv
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from experiments.soak import forked, fuzz, interrupt, mutations, raw_trees, small_run
from src.runtime.errors import UserError


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    for name in ("medqa", "medmcqa", "own_csv"):  # JSON lines, parquet, CSV and images
        raw_trees.write_phantom(folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_mutations_repeat_with_their_seed(intact, tmp_path):
    results = []
    for copy in ("a", "b"):
        shutil.copytree(intact / "own_csv", tmp_path / copy)
        applied = [mutations.mutate(tmp_path / copy, random.Random(seed)) for seed in range(5)]
        results.append((applied, contents(tmp_path / copy)))
    assert results[0] == results[1]
    assert results[0][1] != contents(intact / "own_csv")


@pytest.mark.parametrize("mutation", [*mutations.BYTES, *mutations.ENCODINGS, *mutations.ROWS])
def test_every_mutation_changes_a_table(intact, mutation):
    data = next((intact / "medqa").rglob("*train.jsonl")).read_bytes()
    changes = {**mutations.BYTES, **mutations.ENCODINGS}
    for seed in range(20):
        rng = random.Random(seed)
        if mutation in changes:
            changed = changes[mutation](data, rng)
        else:
            changed = mutations._mutate_rows(".jsonl", data, rng, mutations.ROWS[mutation])
        if changed != data:
            return
    assert mutation in ("other delimiter",)  # the table holds no `|`


@pytest.mark.parametrize(("source", "suffix"), [("medmcqa", ".parquet"), ("own_csv", ".csv")])
def test_rows_of_tables_can_be_changed(intact, source, suffix):
    path = next((intact / source).rglob(f"*{suffix}"))
    changed = mutations._mutate_rows(suffix, path.read_bytes(), random.Random(0), lambda rows, rng: rows.pop())
    assert 0 < len(changed) < len(path.read_bytes())


@pytest.mark.slow
def test_damaged_folders_have_no_faults(intact):
    for source in ("medqa", "own_csv"):
        path = intact / source
        result = fuzz.Child(lambda path=path: fuzz.build_tree(path, path.parent / "shards")).result()
        assert result["faults"] == []
        path.with_name(f"{source}.rows").write_text(str(result["counts"]["in"]))
        assert [fuzz.DamagedTree(path, f"test-{number}").result()["faults"] for number in range(4)] == [[]] * 4


def test_lost_rows_are_a_fault(intact, monkeypatch):
    (intact / "medqa.rows").write_text("1000")
    monkeypatch.setattr(fuzz, "mutate", lambda folder, rng: [("deleted", Path("a.jpg"))])
    result = fuzz.DamagedTree(intact / "medqa", "test").result()
    assert result["faults"] == ["counts"]
    assert "rows instead of 1000" in result["detail"]


def test_crash_and_endless_build_are_faults(monkeypatch):
    assert fuzz.Child(lambda: os.kill(os.getpid(), signal.SIGKILL)).result()["detail"] == "killed by SIGKILL"
    assert "ZeroDivisionError" in fuzz.Child(lambda: 1 / 0).result()["detail"]
    monkeypatch.setattr(fuzz, "TIME_LIMIT", 0.1)
    assert fuzz.Child(signal.pause).result()["faults"] == ["no end"]


@pytest.mark.parametrize(
    ("reason", "clear"),
    [
        ("image missing: a.jpg", True),
        ("/data/raw/x.csv: no column 'id'", True),
        ("unexpected field type: AttributeError 'NoneType' object has no attribute 'get'", False),
        ("broken image: list index out of range", False),
        ("two\nlines", False),
        ("", False),
    ],
)
def test_reason_is_clear_without_text_of_an_exception(reason, clear):
    assert fuzz.is_clear(reason) is clear


def test_part_of_a_real_dataset_has_the_files_that_its_reader_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_trees, "REAL_ROWS", 4)
    (tmp_path / "real" / "own").mkdir(parents=True)
    rows = [{"image": f"{n}.jpg", "question": "what?", "answer": str(n)} for n in range(8)]
    (tmp_path / "real" / "own" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in range(8):
        (tmp_path / "real" / "own" / f"{n}.jpg").write_bytes(b"x" * n)
    child = fuzz.Child(lambda: raw_trees.copy_part(tmp_path / "real" / "own", tmp_path / "part" / "own") or {"faults": []})
    assert child.result()["faults"] == []
    assert sorted(contents(tmp_path / "part" / "own")) == ["0.jpg", "2.jpg", "4.jpg", "6.jpg", "train.jsonl"]


def test_forked_command_has_its_own_output_folder_and_exit_code(tmp_path):
    (tmp_path / "table.json").write_text("[1]")
    assert forked.run(["json.tool", "table.json"], tmp_path, tmp_path / "log") == (0, "[\n    1\n]\n")
    code, output = forked.run(["json.tool", "missing.json"], tmp_path, tmp_path / "log")
    assert code
    assert "missing.json" in output
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        forked.call(lambda: 1 / 0, tmp_path)


def test_snapshot_ignores_speed_and_notices_other_differences(tmp_path):
    for name, seconds, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.4)):
        folder = tmp_path / name / "outputs"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"seconds": seconds, "metrics": {"loss": loss}}))
        torch.save({"state_dict": {"w": torch.tensor([loss])}, "callbacks": {"Log": {"seconds": seconds}}}, folder / "best.ckpt")
        with (folder / "log.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["step", "seconds", "loss"], [1, seconds, loss]])
    a, b, c = (small_run.snapshot(tmp_path / name) for name in "abc")
    assert small_run.differences(a, b) == []
    assert small_run.differences(a, c) == ["outputs/best.ckpt", "outputs/log.csv", "outputs/result.json"]


def test_small_commands_have_valid_configurations(tmp_path):
    from src.config.train import TrainConfig
    from src.config.train_rules import check_train_config, check_values
    from src.runtime.cli import compose
    from src.runtime.schema import to_typed

    config = to_typed(TrainConfig, compose("train", small_run.train(["slake"], tmp_path)[1:]))
    check_values(config)
    with pytest.raises(UserError, match="shards"):
        check_train_config(config)


def test_command_has_started_when_one_of_its_outputs_changes(tmp_path):
    assert not interrupt.has_written(tmp_path, ["outputs/small"], since=0)
    (tmp_path / "outputs/small").mkdir(parents=True)
    path = tmp_path / "outputs/small/log.csv"
    path.write_text("step\n")
    assert interrupt.has_written(tmp_path, ["outputs/small"], since=path.stat().st_mtime_ns - 1)
    assert not interrupt.has_written(tmp_path, ["outputs/small"], since=path.stat().st_mtime_ns)
    assert not interrupt.has_written(tmp_path, ["shards", "outputs/small/*.json"], since=0)
