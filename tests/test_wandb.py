"""wandb in offline mode: the tests read the run files that a run writes."""

import csv
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from PIL import Image

from src import train
from src.config.train import TrainConfig
from src.runtime import sweep
from src.runtime.cli import check_overrides, compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.tracking import wandb_run
from src.tracking.wandb_history import read_history, read_records, record_items
from src.training.callbacks.csv_log import CSVLog
from src.training.lightning_module import VLMLightningModule
from tests.fixtures import overrides
from tests.stored import write_run


def complete_records(path: Path) -> list:
    """The records of a run file; waits for the process of wandb to finish it."""
    deadline = time.monotonic() + 120
    while not (records := list(read_records(path))) or not records[-1].HasField("exit"):
        assert time.monotonic() < deadline, records[-1:]
        time.sleep(0.02)
    return records


def run_files(folder: Path) -> list[Path]:
    """The run files of a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def summary(path: Path) -> dict:
    return {
        key: value
        for record in complete_records(path)
        if record.HasField("summary")
        for key, value in record_items(record.summary.update).items()
    }


def run_settings(path: Path):
    return next(record.run for record in complete_records(path) if record.HasField("run"))


def exit_code(path: Path) -> int:
    return next(record.exit.exit_code for record in complete_records(path) if record.HasField("exit"))


@pytest.fixture(autouse=True)
def without_login(tmp_path, monkeypatch):
    """wandb has no API key, and its folders are inside `tmp_path`."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained_run(shards, language, tmp_path_factory) -> Path:
    words = overrides(shards, language, tmp_path_factory.mktemp("outputs"))
    folder = train.train(to_typed(TrainConfig, compose("train", [*words, "logger=wandb"])))
    complete_records(run_files(folder)[0])
    return folder


@pytest.mark.slow
def test_history_equals_the_csv_log(trained_run):
    rows = list(csv.DictReader((trained_run / "log.csv").open()))
    history = read_history(run_files(trained_run)[0])
    assert [int(row["step"]) for row in history] == [int(row["step"]) for row in rows]
    for logged, row in zip(history, rows, strict=True):
        for key, value in row.items():
            assert (key in logged) == bool(value), key
            if value:
                assert logged[key] == pytest.approx(float(value), rel=1e-4), key
        assert logged["tokens/s"] > logged["samples/s"] > 0
    assert {"loss/alpha", "val/beta", "f1/alpha", "grad_norm", "data_wait", "lr/vision", "lr/language"} <= {
        key for row in history for key in row
    }


@pytest.mark.slow
def test_each_step_is_logged_once_after_a_kill_and_a_resume(trained_run, tmp_path):
    (path,) = run_files(trained_run)
    history = read_history(path)
    steps = [row["step"] for row in history]
    truncated = tmp_path / "wandb" / "offline-run-1" / "run-1.wandb"
    truncated.parent.mkdir(parents=True)
    shutil.copy(trained_run / "log.csv", tmp_path / "log.csv")
    resumed_rows: list[dict] = []
    run = SimpleNamespace(offline=True, log=resumed_rows.append)
    trainer = SimpleNamespace(is_global_zero=True, global_step=6, max_steps=6)
    numbers_of_rows = set()
    for size in range(0, path.stat().st_size + 1, 97):
        truncated.write_bytes(path.read_bytes()[:size])
        resumed_rows.clear()
        log = CSVLog(tmp_path / "log.csv", sources=["alpha", "beta", "gamma"], parts=["vision", "projector", "language"], log_every=2)
        log.wandb_run = wandb_run.WandbRun(run, last=wandb_run.last_logged_step(run, tmp_path))
        log.on_train_start(trainer, None)
        log.on_train_end(trainer, None)
        log.wandb_run.log({"step": 4})  # a repeated step
        assert [row["step"] for row in [*read_history(truncated), *resumed_rows]] == steps
        for key in ("samples/s", "tokens/s"):
            expected = [row[key] for row in history[len(steps) - len(resumed_rows) :]]
            assert [row[key] for row in resumed_rows] == pytest.approx(expected, rel=1e-3)
        numbers_of_rows.add(len(resumed_rows))
    assert numbers_of_rows == set(range(len(steps) + 1))
    assert resumed_rows == []


def test_online_steps_that_did_not_arrive_are_logged_again(tmp_path):
    assert wandb_run.last_logged_step(SimpleNamespace(offline=False, summary={"step": 30, "loss": 1.0}), tmp_path) == 30
    assert wandb_run.last_logged_step(SimpleNamespace(offline=False, summary={}), tmp_path) == 0


@pytest.mark.slow
def test_summary_is_the_result_and_config_is_flat(trained_run):
    (path,) = run_files(trained_run)
    result = json.loads((trained_run / "result.json").read_text())
    for key, metric in result["metrics"].items():
        assert summary(path)[key] == pytest.approx(metric["value"])
    assert summary(path)["data"] == result["data"]
    config = record_items(run_settings(path).config.update)
    assert (config["optim.lr.vision"], config["mix.shares.alpha"], config["data.global_batch_size"]) == (1e-5, 2.0, 16)
    assert (run_settings(path).display_name, run_settings(path).run_group, run_settings(path).project) == ("tiny", "tiny", "openmedq")
    assert exit_code(path) == 0


@pytest.mark.slow
def test_each_trial_has_its_own_run_and_a_failed_one_is_resumed(words, monkeypatch, capsys):
    original_step, disk_is_full = VLMLightningModule.training_step, True

    def training_step(self, batch, number):
        if disk_is_full and self.config.seed == 1 and number == 4:
            raise OSError(28, "No space left on device")
        return original_step(self, batch, number)

    def run_sweep() -> None:
        monkeypatch.setattr("sys.argv", ["src/train.py", "-m", *words, "logger=wandb", "seed=0,1"])
        monkeypatch.setattr(sweep, "failures", {})
        train.main()

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(SystemExit):
        run_sweep()
    outputs = Path(next(word for word in words if word.startswith("outputs=")).partition("=")[2])
    good, bad = (outputs / "tiny" / f"seed={seed}" for seed in (0, 1))
    assert [exit_code(run_files(folder)[0]) for folder in (good, bad)] == [0, 1]
    assert run_settings(run_files(good)[0]).run_id != run_settings(run_files(bad)[0]).run_id
    assert [row["step"] for row in read_history(run_files(bad)[0])] == [2, 3, 4]

    disk_is_full = False
    run_sweep()
    first, second = (run_settings(path) for path in run_files(bad))
    assert (first.run_id, first.run_group) == (second.run_id, "tiny")
    assert {"mix: own", "seed=1"} <= set(first.tags)
    assert [[row["step"] for row in read_history(path)] for path in run_files(bad)] == [[2, 3, 4], [6]]  # step 4 was repeated
    assert len(run_files(good)) == 1
    assert "weights_only" not in capsys.readouterr().err


@pytest.mark.slow
def test_later_commands_add_the_result_and_a_table_to_the_run(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb_run, "ROWS", 5)
    folder = write_run(tmp_path, "tiny", root=str(shards))
    (folder / "wandb.json").write_text(json.dumps({"id": "abc123", "project": "p", "tags": ["mix: own"], "mode": "offline"}))
    for path in folder.glob("predictions/*.jsonl"):  # keeps the questions whose images are in the shards
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    wandb_run.update_run(folder)
    (path,) = run_files(folder)
    result = json.loads((folder / "result.json").read_text())["metrics"]
    key = "vqa/alpha/real_minus_blank/all/bleu1"
    assert run_settings(path).run_id == "abc123"
    assert [summary(path)[f"{key}{end}"] for end in ("", "/low", "/high")] == pytest.approx(
        [result[key][n] for n in ("value", "low", "high")]
    )
    table = json.loads(next(folder.glob("wandb/offline-run-*/files/media/table/*.json")).read_text())
    assert table["columns"] == ["about", "image", "question", "references", "real", "shuffled", "blank"]
    assert len(table["data"]) == 5
    (artifact,) = (record.artifact for record in complete_records(path) if record.HasField("artifact"))
    pictures = [entry.local_path for entry in artifact.manifest.contents if entry.path.endswith(".png")]
    assert [Image.open(picture).size for picture in pictures] == [(48, 40)] * 5
    assert not [path for path in folder.rglob("*") if path.is_file() and b"k" * 40 in path.read_bytes()]
    assert not (tmp_path / "home" / ".local").exists()


def test_run_without_wandb_is_not_added_to_wandb(tmp_path):
    folder = write_run(tmp_path, "tiny")
    wandb_run.update_run(folder)
    assert not (folder / "wandb").exists()


def test_online_without_login_is_refused_before_the_run_starts(words):
    with pytest.raises(UserError, match=r"^logger.wandb=online, but nobody is logged in; run `wandb login`, or set logger.wandb=offline"):
        check_overrides("train", TrainConfig, [*words, "logger=wandb", "logger.wandb=online"], validate=train.check_train)


def test_malformed_api_key_is_refused(words, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"^logger.wandb=online, but WANDB_API_KEY invalid"):
        check_overrides("train", TrainConfig, [*words, "logger.wandb=online"], validate=train.check_train)


def test_tags_are_experiment_mix_and_swept_values_and_group_is_the_sweep(monkeypatch):
    choices = {"experiment": "breadth", "mix": "mini", "vision": "phantom"}
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices=choices), mode=RunMode.RUN, overrides=SimpleNamespace(task=[]))
    monkeypatch.setattr(wandb_run.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(wandb_run.HydraConfig, "get", lambda: hydra)
    assert wandb_run._tags() == ["experiment: breadth", "mix: mini"]
    hydra.mode, hydra.overrides.task = (
        RunMode.MULTIRUN,
        ["+experiment=breadth", "mix.only=[pathvqa]", "seed=1", "logger=wandb", "a=" + 64 * "1"],
    )
    assert wandb_run._tags()[2:] == ["mix.only=[pathvqa]", "seed=1"]
    assert [wandb_run._group(name) for name in ("mini", "breadth/mix.only=[a]")] == ["mini", "breadth"]
