"""The run folder: its configuration, its result and what only the first rank writes."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
import yaml

from src.runtime import run_folder
from src.runtime.atomic_file import write_atomically
from src.runtime.environment import busy_cores_note
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_names import match_runs

CONFIG = {
    "name": "x",
    "seed": 0,
    "data": {"root": "a", "packing_window": 8},
    "trainer": {"devices": 1, "keep_last": 2},
    "logger": {"api_key": "secret"},
}


def test_folder_accepts_only_its_own_configuration(tmp_path):
    folder = tmp_path / "x"
    run_folder.open_run(folder, CONFIG)
    run_folder.open_run(folder, CONFIG | {"data": {"root": "b", "packing_window": 8}, "trainer": {"devices": 4, "keep_last": 9}})
    with pytest.raises(
        UserError, match=r"x holds a different configuration \(data.packing_window was 8, now 16; seed was 0, now 1\); choose another"
    ):
        run_folder.open_run(folder, CONFIG | {"seed": 1, "data": {"root": "a", "packing_window": 16}})


def test_secrets_are_not_written(tmp_path):
    run_folder.open_run(tmp_path / "x", CONFIG)
    assert yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())["logger"] == {"api_key": "***"}
    assert run_folder.redact_secrets({"hf_token": "a", "token": "", "max_seq_len": 5}) == {"hf_token": "***", "token": "", "max_seq_len": 5}


@pytest.mark.parametrize("name", ["x", "sweep/seed=0"])
def test_name_of_a_run_is_the_one_that_commands_take(tmp_path, name):
    run_folder.open_run(tmp_path / "old" / name, CONFIG | {"name": name})
    assert run_folder.run_name(tmp_path / "old" / name) == name
    moved = (tmp_path / "old" / name).rename(tmp_path / "old" / name.replace("x", "y"))
    assert run_folder.run_name(moved) == name.replace("x", "y")


def test_unknown_run_gives_error_with_existing_names(tmp_path):
    run_folder.open_run(tmp_path / "mini", CONFIG)
    run_folder.open_run(tmp_path / "sweep" / "seed=1", CONFIG)
    with pytest.raises(UserError, match=r"no run 'mni' in .*; found mini, sweep/seed=1$"):
        run_folder.read_run(tmp_path, "mni")
    assert run_folder.read_run(tmp_path, "sweep/seed=1")[1]["seed"] == 0


def test_result_has_the_metrics_of_every_command_and_the_cost_of_restarts(tmp_path):
    def interrupted_training():
        with run_folder.record(tmp_path, "train"):
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_training()
    assert not (tmp_path / "train.json").exists()
    with run_folder.record(tmp_path, "train") as result:
        result["metrics"] = {"train/fill": {"value": 1.0}}
        result["data"] = "abc"
    with run_folder.record(tmp_path, "evaluate") as result:
        result["metrics"] = {"vqa/a": {"value": 0.5}}
    train, combined = (json.loads((tmp_path / name).read_text()) for name in ("train.json", "result.json"))
    assert train["seconds"] >= 0.2
    assert train["peak_rss_mb"] > 10
    assert set(combined["metrics"]) == {"train/fill", "vqa/a"}
    assert combined["data"] == "abc"
    assert len(combined["commands"]) == 2
    assert not list(tmp_path.glob("*.partial.json")) + list(tmp_path.glob("*.tmp"))


def test_full_disk_while_the_cost_is_written_does_not_hide_the_error_of_the_command(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def training():
        with run_folder.record(tmp_path, "train"):
            monkeypatch.setattr(run_folder, "write_atomically", full)
            raise UserError("out of memory")

    with pytest.raises(UserError, match="out of memory"):
        training()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "no space is left for a.json (No space left on device); free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left (Disk quota exceeded); free some and run the same command again"),
        (RuntimeError("I/O error: File too large (os error 27)"), "no space is left (File too large); free some"),  # safetensors
        (RuntimeError("write failed: No space left on device"), "no space is left (No space left on device); free some"),
    ],
)
def test_full_disk_is_reported_as_one_line(error, message, capsys):
    @report_user_errors
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_other_errors_are_raised():
    @report_user_errors
    def main():
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(OSError, match="Permission denied"):
        main()


def test_failed_write_leaves_the_previous_file_and_no_other(tmp_path, monkeypatch):
    def write_to_full_disk(path, text):
        path.touch()
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "result.json", "{}")
    monkeypatch.setattr(Path, "write_text", write_to_full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "result.json", "{1}")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.json", "{}")]


def test_rank_of_torchrun_takes_precedence_over_the_slurm_task(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("RANK", "0")
    assert run_folder.is_first_rank()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("RANK", "8")
    assert not run_folder.is_first_rank()


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_rank_writes(tmp_path, monkeypatch, variable):
    assert run_folder.is_first_rank()
    monkeypatch.setenv(variable, "1")
    assert not run_folder.is_first_rank()
    run_folder.open_run(tmp_path / "x", CONFIG)
    with run_folder.record(tmp_path / "x", "train") as result:
        result["metrics"] = {}
    assert not list((tmp_path / "x").iterdir())


def test_glob_matches_finished_runs(tmp_path, capsys):
    for name, finished in (("sw/seed=0", True), ("sw/seed=1", True), ("sw/seed=2", False), ("other", True)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("{}")
        if finished:
            (tmp_path / name / "train.json").write_text("{}")
    assert match_runs(tmp_path, "sw/*") == ["sw/seed=0", "sw/seed=1"]
    assert "run=sw/*: 1 of 3 runs have not finished training" in capsys.readouterr().out
    assert match_runs(tmp_path, "other") == ["other"]
    with pytest.raises(UserError, match=r"run=nothing\*: 0 runs in .* match, none of which has finished training"):
        match_runs(tmp_path, "nothing*")


@pytest.mark.parametrize(("busy", "threads", "free"), [(98.0, 2, 1), (50.0, 2, 1), (3.0, 2, None), (98.0, 1, None)])
def test_busy_cores_are_noted_with_the_threads_that_are_free(monkeypatch, busy, threads, free):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy)
    note = busy_cores_note(threads)
    assert (note is None) if free is None else f"OMP_NUM_THREADS={free} in front" in note
