"""The real wandb, offline: what a run writes is read back from its run file."""

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
from tests.conftest import overrides
from tests.stored import write_run


def ended(path: Path) -> list:
    """The records of a run file; wandb's own process may still be writing its end."""
    until = time.monotonic() + 120
    while not (found := list(read_records(path))) or not found[-1].HasField("exit"):
        assert time.monotonic() < until, found[-1:]
        time.sleep(0.02)
    return found


def files(folder: Path) -> list[Path]:
    """The run files of a run folder, in the order in which they were begun."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def summary(path: Path) -> dict:
    return {
        key: value for record in ended(path) if record.HasField("summary") for key, value in record_items(record.summary.update).items()
    }


def told(path: Path):
    return next(record.run for record in ended(path) if record.HasField("run"))


def ending(path: Path) -> int:
    return next(record.exit.exit_code for record in ended(path) if record.HasField("exit"))


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Nobody is logged in, and nothing is left outside the run folder."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(shards, language, tmp_path_factory) -> Path:
    words = overrides(shards, language, tmp_path_factory.mktemp("outputs"))
    return train.train(to_typed(TrainConfig, compose("train", [*words, "logger=wandb"])))


@pytest.mark.slow
def test_curves_are_those_of_the_log(trained):
    rows = list(csv.DictReader((trained / "log.csv").open()))
    found = read_history(files(trained)[0])
    assert [int(row["step"]) for row in found] == [int(row["step"]) for row in rows]
    for mine, logged in zip(found, rows, strict=True):
        for key, value in logged.items():
            assert (key in mine) == bool(value), key
            if value:
                assert mine[key] == pytest.approx(float(value), rel=1e-4), key
        assert mine["tokens/s"] > mine["samples/s"] > 0
    assert {"loss/alpha", "val/beta", "f1/alpha", "grad_norm", "data_wait", "lr/vision", "lr/language"} <= {
        key for row in found for key in row
    }


@pytest.mark.slow
def test_wherever_a_kill_cuts_the_run_file_each_step_stands_once_after_the_resume(trained, tmp_path):
    (path,) = files(trained)
    whole = read_history(path)
    steps = [row["step"] for row in whole]
    cut = tmp_path / "wandb" / "offline-run-1" / "run-1.wandb"
    cut.parent.mkdir(parents=True)
    shutil.copy(trained / "log.csv", tmp_path / "log.csv")
    rest: list[dict] = []
    run = SimpleNamespace(offline=True, log=rest.append)
    trainer = SimpleNamespace(is_global_zero=True, global_step=6, max_steps=6)
    seen = set()
    for size in range(0, path.stat().st_size + 1, 97):
        cut.write_bytes(path.read_bytes()[:size])
        rest.clear()
        log = CSVLog(tmp_path / "log.csv", sources=["alpha", "beta", "gamma"], parts=["vision", "projector", "language"], log_every=2)
        log.board = wandb_run.WandbRun(run, last=wandb_run.last_logged_step(run, tmp_path))
        log.on_train_start(trainer, None)
        log.on_train_end(trainer, None)
        log.board.log({"step": 4})  # done again
        assert [row["step"] for row in [*read_history(cut), *rest]] == steps
        for key in ("samples/s", "tokens/s"):
            assert [row[key] for row in rest] == pytest.approx([row[key] for row in whole[len(steps) - len(rest) :]], rel=1e-3)
        seen.add(len(rest))
    assert seen == set(range(len(steps) + 1))
    assert rest == []


def test_online_what_never_arrived_is_logged_again(tmp_path):
    assert wandb_run.last_logged_step(SimpleNamespace(offline=False, summary={"step": 30, "loss": 1.0}), tmp_path) == 30
    assert wandb_run.last_logged_step(SimpleNamespace(offline=False, summary={}), tmp_path) == 0


@pytest.mark.slow
def test_the_summary_is_the_result_and_the_config_is_flat(trained):
    (path,) = files(trained)
    result = json.loads((trained / "result.json").read_text())
    for key, metric in result["metrics"].items():
        assert summary(path)[key] == pytest.approx(metric["value"])
    assert summary(path)["data"] == result["data"]
    config = record_items(told(path).config.update)
    assert (config["optim.lr.vision"], config["mix.shares.alpha"], config["data.global_batch_size"]) == (1e-5, 2.0, 16)
    assert (told(path).display_name, told(path).run_group, told(path).project) == ("tiny", "tiny", "openmedq")
    assert ending(path) == 0


@pytest.mark.slow
def test_trials_are_runs_of_their_own_and_a_failed_one_is_finished_then_resumed(words, monkeypatch, capsys):
    step, broken = VLMLightningModule.training_step, True

    def training_step(self, batch, number):
        if broken and self.config.seed == 1 and number == 4:
            raise OSError(28, "No space left on device")
        return step(self, batch, number)

    def command() -> None:
        monkeypatch.setattr("sys.argv", ["src/train.py", "-m", *words, "logger=wandb", "seed=0,1"])
        monkeypatch.setattr(sweep, "failures", {})
        train.main()

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(SystemExit):
        command()
    outputs = Path(next(word for word in words if word.startswith("outputs=")).partition("=")[2])
    good, bad = (outputs / "tiny" / sweep.trial_slug([*words, "logger=wandb", f"seed={seed}"]) for seed in (0, 1))
    assert [ending(files(folder)[0]) for folder in (good, bad)] == [0, 1]
    assert told(files(good)[0]).run_id != told(files(bad)[0]).run_id
    assert [row["step"] for row in read_history(files(bad)[0])] == [2, 3, 4]

    broken = False
    command()
    first, second = (told(path) for path in files(bad))
    assert (first.run_id, first.run_group) == (second.run_id, "tiny")
    assert {"mix: own", "seed=1"} <= set(first.tags)
    assert [[row["step"] for row in read_history(path)] for path in files(bad)] == [[2, 3, 4], [6]]  # 4 was done twice
    assert len(files(good)) == 1
    assert "weights_only" not in capsys.readouterr().err


def test_later_verbs_continue_the_run_with_the_result_and_a_table(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb_run, "ROWS", 5)
    folder = write_run(tmp_path, "tiny", root=str(shards))
    (folder / "wandb.json").write_text(json.dumps({"id": "abc123", "project": "p", "tags": ["mix: own"], "mode": "offline"}))
    for path in folder.glob("predictions/*.jsonl"):  # of the questions whose images the shards have
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    wandb_run.update_run(folder)
    (path,) = files(folder)
    result = json.loads((folder / "result.json").read_text())["metrics"]
    key = "vqa/alpha/real_minus_blank/all/bleu1"
    assert told(path).run_id == "abc123"
    assert [summary(path)[f"{key}{end}"] for end in ("", "/low", "/high")] == pytest.approx(
        [result[key][n] for n in ("value", "low", "high")]
    )
    table = json.loads(next(folder.glob("wandb/offline-run-*/files/media/table/*.json")).read_text())
    assert table["columns"] == ["about", "image", "question", "references", "real", "shuffled", "blank"]
    assert len(table["data"]) == 5
    (artifact,) = (record.artifact for record in ended(path) if record.HasField("artifact"))
    pictures = [entry.local_path for entry in artifact.manifest.contents if entry.path.endswith(".png")]
    assert [Image.open(picture).size for picture in pictures] == [(48, 40)] * 5
    assert not [path for path in folder.rglob("*") if path.is_file() and b"k" * 40 in path.read_bytes()]
    assert not (tmp_path / "home" / ".local").exists()


def test_a_run_without_wandb_stays_without(tmp_path):
    folder = write_run(tmp_path, "tiny")
    wandb_run.update_run(folder)
    assert not (folder / "wandb").exists()


def test_online_without_login_is_one_sentence_before_anything_slow(words):
    with pytest.raises(UserError, match=r"^logger.wandb=online, but nobody is logged in; run `wandb login`, or set logger.wandb=offline"):
        check_overrides("train", TrainConfig, [*words, "logger=wandb", "logger.wandb=online"], validate=train.check_train)


def test_a_key_of_the_wrong_form_is_told(words, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"^logger.wandb=online, but WANDB_API_KEY invalid"):
        check_overrides("train", TrainConfig, [*words, "logger.wandb=online"], validate=train.check_train)


def test_experiment_mix_and_swept_values_are_tags_and_a_sweep_is_a_group(monkeypatch):
    choices = {"experiment": "breadth", "mix": "mini", "vision": "phantom"}
    told = SimpleNamespace(runtime=SimpleNamespace(choices=choices), mode=RunMode.RUN, overrides=SimpleNamespace(task=[]))
    monkeypatch.setattr(wandb_run.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(wandb_run.HydraConfig, "get", lambda: told)
    assert wandb_run._tags() == ["experiment: breadth", "mix: mini"]
    told.mode, told.overrides.task = (
        RunMode.MULTIRUN,
        ["+experiment=breadth", "mix.only=[pathvqa]", "seed=1", "logger=wandb", "a=" + 64 * "1"],
    )
    assert wandb_run._tags()[2:] == ["mix.only=[pathvqa]", "seed=1"]
    assert [wandb_run._group(name) for name in ("mini", "breadth/mix.only=[a]")] == ["mini", "breadth"]
