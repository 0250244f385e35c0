"""Callbacks, further trainer arguments and the objective of a sweep, as a user of Lightning and Hydra expects them."""

import inspect
import json
import logging
import os
from typing import ClassVar

import lightning
import pytest
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import src.train
from src.config.trainer_extra import ALLOWED, RESERVED
from src.runtime.errors import UserError
from src.runtime.sweep import common_keys, expand_trials
from src.training.callbacks.csv_log import best_validation_value
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer
from tests.fixtures import parts
from tests.test_train import same, steps, stop_after, trained

train = src.train.train


class Recorder(lightning.Callback):
    """The metrics that a callback sees after each micro-batch and each validation."""

    def __init__(self):
        self.after_batch: list[tuple[int, dict[str, float]]] = []
        self.after_validation: list[tuple[int, dict[str, float]]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after_batch.append((trainer.global_step, {name: float(value) for name, value in trainer.callback_metrics.items()}))

    def on_validation_end(self, trainer, module):
        self.after_validation.append((trainer.global_step, {name: float(value) for name, value in trainer.callback_metrics.items()}))


class StopAt(lightning.Callback):
    """Asks for a stop after a micro-batch."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or batch_idx + 1 == self.batch


def worsening(monkeypatch) -> None:
    """The validation loss grows with the step."""
    monkeypatch.setattr(VLMLightningModule, "validation_losses", lambda self: {"alpha": float(self.trainer.global_step)})


@pytest.mark.slow
def test_callback_metrics_hold_the_values_of_the_log(configure):
    recorder = Recorder()
    folder = train(configure(), callbacks=[recorder])
    rows = {int(row["step"]): row for row in steps(folder)}
    assert [step for step, _ in recorder.after_validation] == [3, 6]
    for step, metrics in recorder.after_validation:
        for name in ("loss", "loss/alpha", "val", "val/beta", "f1/gamma", "grad_norm", "lr/vision", "lr/projector", "lr/language"):
            assert metrics[name] == pytest.approx(float(rows[step][name]), rel=1e-4), name
    assert dict(recorder.after_batch)[4]["loss"] == pytest.approx(float(rows[4]["loss"]), rel=1e-4)  # a row without a validation
    assert "val" not in dict(recorder.after_batch)[2]


@pytest.mark.slow
def test_early_stopping_by_val_ends_the_run(configure, monkeypatch, capsys):
    worsening(monkeypatch)
    config = configure("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.val_every=1")
    folder = train(config)
    assert "stopped by a callback at step 3 of 6 and saved; the run is finished" in capsys.readouterr().out
    assert [row["step"] for row in steps(folder)] == ["1", "2", "3"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "step=2.ckpt", "step=3.ckpt"]
    assert "train/samples_per_second" in json.loads((folder / "result.json").read_text())["metrics"]


@pytest.mark.slow
def test_resumed_early_stopping_counts_the_validations_before_the_kill(configure, monkeypatch):
    worsening(monkeypatch)
    config = configure("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.val_every=1")
    stop_after(config, 2)
    assert [row["step"] for row in steps(train(config))] == ["1", "2", "3"]


@pytest.mark.slow
def test_early_stopping_of_the_user_can_monitor_the_training_loss(configure):
    """A loss that has to fall by 100 per validation counts as no improvement."""
    stopping = EarlyStopping(monitor="loss", patience=1, min_delta=100)
    folder = train(configure("trainer.val_every=1", "trainer.log_every=5"), callbacks=[stopping])
    assert [row["step"] for row in steps(folder)] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "step", "validated"), [(3, 2, False), (6, 3, True)])
def test_stop_within_an_accumulation_window_waits_for_the_step(configure, batch, step, validated):
    config = configure("trainer.accumulate=2", "trainer.log_every=1")
    folder = train(config, callbacks=[StopAt(batch)])
    rows = steps(folder)
    assert [int(row["step"]) for row in rows] == list(range(1, step + 1))
    assert bool(rows[-1]["val"]) == validated
    assert (folder / "checkpoints" / f"step={step}.ckpt").exists()
    (folder / "train.json").unlink()
    whole = train(configure("trainer.accumulate=2", "trainer.log_every=1", "name=whole"))
    assert same(trained(train(config)), trained(whole))


@pytest.mark.slow
def test_callbacks_do_not_change_the_weights(configure, tmp_path):
    saver = ModelCheckpoint(monitor="f1/alpha", mode="max", filename="by-f1")
    callbacks = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=9",
        "+callbacks.lr_monitor={}",
        "+callbacks.device_stats={cpu_stats: true}",
    ]
    one, other = train(configure("name=one", *callbacks), callbacks=[saver]), train(configure("name=other"))
    assert same(trained(one), trained(other))
    assert (one / "checkpoints" / "by-f1.ckpt").exists()
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if any(name.startswith("lr-AdamW") for name in line)} == {1, 3, 5}  # every second step, from 0
    assert any("DeviceStatsMonitor.on_train_batch_start/cpu_percent" in line for line in lines)
    assert not (other / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.extra.max_steps=3", "trainer.extra.max_steps: .*; use the config key optim.steps instead"),
        ("+trainer.extra.gradient_clip_val=1", "trainer.extra.gradient_clip_val: .*; use the config key optim.clip instead"),
        ("+trainer.extra.profilr=simple", "trainer.extra.profilr: lightning.Trainer has no such argument; did you mean 'profiler'?"),
        ("callbacks.early_stopping={mode: least}", "callbacks.early_stopping.mode='least'; allowed: max, min"),
        ("callbacks.early_stopping={patience: 0}", "callbacks.early_stopping.patience must be at least 1, found 0"),
    ],
)
def test_settings_of_the_trainer_and_of_callbacks_are_checked(configure, override, message):
    with pytest.raises(UserError, match=message):
        src.train.check_train(configure(override))


def test_every_argument_that_the_trainer_gets_from_the_configuration_is_reserved(configure, monkeypatch):
    arguments = {}
    monkeypatch.setattr(lightning, "Trainer", lambda **given: arguments.update(given))
    build_trainer(configure("+trainer.extra.max_time=00:01:00:00"), callbacks=[])
    assert arguments.pop("max_time") == "00:01:00:00"
    assert arguments.keys() - RESERVED.keys() == {"enable_progress_bar", "enable_model_summary"}
    monkeypatch.undo()
    assert {*RESERVED, *ALLOWED} == inspect.signature(lightning.Trainer).parameters.keys()


@pytest.mark.slow
def test_profiler_writes_its_table_into_the_run_folder(configure):
    folder = train(configure("+trainer.extra.profiler=simple"))
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text()


@pytest.mark.slow
def test_run_that_max_time_stops_is_finished(configure, capsys):
    folder = train(configure("optim.steps=100000", "+trainer.extra.max_time={seconds: 2}"))
    assert "stopped by a callback at step" in capsys.readouterr().out
    assert (folder / "train.json").exists()
    assert list((folder / "checkpoints").glob("step=*.ckpt"))


@pytest.mark.slow
def test_fast_dev_run_leaves_the_run_folder_alone(configure, capsys):
    config = configure("+trainer.extra.fast_dev_run=1", "logger=wandb")
    assert not train(config).exists()
    assert "fast_dev_run=1: training, validation and checkpoints work; nothing was kept" in capsys.readouterr().out


class JobRecorder(Callback):
    """A Hydra callback that keeps what each trial returns to the sweeper."""

    jobs: ClassVar[list[JobReturn]] = []

    def on_job_end(self, config, job_return: JobReturn, **kwargs) -> None:
        self.jobs.append(job_return)


@pytest.fixture
def sweep_jobs(words, monkeypatch):
    """Runs a sweep of `src.train` in this process and returns what each trial returned."""

    def run(*overrides: str) -> list[JobReturn]:
        monkeypatch.setattr(JobRecorder, "jobs", [])
        recorder = "+hydra.callbacks.recorder._target_=tests.test_callbacks.JobRecorder"
        monkeypatch.setattr("sys.argv", ["src/train.py", "-m", *words, recorder, *overrides])
        src.train.main()
        return JobRecorder.jobs

    return run


@pytest.mark.slow
def test_the_objective_is_the_best_validation_value_of_each_trial(sweep_jobs, tmp_path):
    """What the Hydra task returns is what a sweeper (Optuna, Ax, ...) optimises."""
    jobs = sweep_jobs("optim.lr.projector=1e-4,1e-2", "trainer.val_every=2")
    assert len(jobs) == 2
    for job in jobs:
        log = tmp_path / "outputs" / "tiny" / next(word for word in job.overrides if word.startswith("optim.lr.projector")) / "log.csv"
        values = [float(row["val"]) for row in steps(log.parent) if row["val"]]
        assert len(values) == 3
        assert job.return_value == min(values) == best_validation_value(log)
    assert jobs[0].return_value != jobs[1].return_value


@pytest.mark.slow
def test_run_without_validation_has_no_objective(sweep_jobs):
    assert [job.return_value for job in sweep_jobs("seed=0", "data.val_samples=0")] == [None]


def test_trial_of_an_interval_is_checked_at_its_bounds_and_named_by_it():
    """Optuna samples the interval later. Trials that differ in the sample only must not share a folder."""
    trials = expand_trials(["optim.lr.vision=tag(log, interval(1e-6, 1e-3))", "seed=0,1", "optim.steps=9"])
    assert [trial[:2] for trial in trials] == [
        [f"optim.lr.vision={rate}", f"seed={seed}"] for rate in ("1e-06", "0.001") for seed in (0, 1)
    ]
    assert common_keys(trials) == ["optim.steps"]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.slow
def test_ranks_get_equally_many_validation_batches(configure, world):
    """DDP synchronises every forward pass: a rank without a batch would let the others wait."""
    _, data = parts(configure("data.max_seq_len=60"))
    batches = [data.validation_batches(rank=rank, world=world) for rank in range(world)]
    assert len({len(own) for own in batches}) == 1
    assert sorted(key for own in batches for batch in own for key in batch.keys) == sorted(
        key for batch in data.validation_batches() for key in batch.keys
    )
    _, empty = parts(configure("data.val_samples=0"))
    assert [len(empty.validation_batches(rank=rank, world=world)) for rank in range(world)] == [1] * world


@pytest.mark.slow
def test_training_shows_no_tips_of_lightning(configure, tmp_path, monkeypatch, recwarn):
    """Lightning warns on every machine with `srun`, and its import sets its loggers to the level of its advertisements."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    train(configure("optim.steps=1", "optim.warmup=0"))
    assert not [str(warning.message) for warning in recwarn if "srun" in str(warning.message)]
    assert [logger.level for logger in loggers] == [logging.WARNING] * 2
