import csv
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.audit.leaks import AuditConfig, audit_all
from src.config.train import TrainConfig
from src.data.datamodule import PackedStream
from src.data.lineage import ancestors
from src.data.packing import Batch
from src.model.cost import AverageSample, average_batch, count_cost
from src.model.vlm import VLM, build_vlm
from src.runtime import run_folder
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.train import train
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.validation import ValidationScores
from src.training.checkpoint import load_checkpoint
from src.training.lightning_module import VLMLightningModule, disable_lora_input_cast
from src.training.optim import epochs_to_steps
from src.training.trainer import validates_after
from tests import processes
from tests.fixtures import overrides
from tests.rounding import forward_steps, rounding


def trained(folder: Path, name: str = "step=6.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def steps(folder: Path) -> list[dict]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[tuple]:
    return [(row["step"], row["samples"], row["tokens"], row["loss"], row["val"], row["grad_norm"]) for row in steps(folder)]


@pytest.fixture(scope="module")
def whole_once(shards, language, tmp_path_factory):
    words = overrides(shards, language, tmp_path_factory.mktemp("outputs"))
    return train(to_typed(TrainConfig, compose("train", [*words, "name=whole", "language.lora.dropout=0.1", "data.workers=2"])))


@pytest.fixture
def whole(whole_once, tmp_path):
    """A copy of an uninterrupted run with dropout and two workers, which a test may damage."""
    return Path(shutil.copytree(whole_once, tmp_path / "outputs" / "whole"))


@pytest.mark.slow
def test_train_warns_of_sources_without_an_audit_and_records_audits(configure, shards, tmp_path, capsys):
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    audit_all(AuditConfig(out=root))
    (root / "beta" / "audit.json").unlink()
    manifest = root / "gamma" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "built again"}))
    capsys.readouterr()
    folder = train(configure(f"data.root={root}", "optim.steps=3", "trainer.val_every=3"))
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "audit" in line]
    assert warning.startswith("warning: no audit has compared the present build of beta, gamma with the test sets")
    assert f"`python -m data_prep.audit out={root} raw=data/raw`" in warning
    alpha = json.loads((root / "alpha" / "audit.json").read_text())["fingerprint"]
    assert json.loads((folder / "train.json").read_text())["audits"] == {"alpha": alpha, "beta": None, "gamma": None}


@pytest.mark.slow
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(configure, whole, tmp_path):
    """SIGKILL after two different steps, with another number of workers each time."""
    config = configure("language.lora.dropout=0.1")
    folder = Path(config.outputs) / config.name
    for checkpoint, workers in (("step=3.ckpt", 0), ("step=5.ckpt", 2)):
        config.data.workers, config.trainer.val_every = workers, 3 if workers == 0 else 1
        process = processes.start(config, tmp_path / "log", stop=(int(checkpoint[5:-5]), signal.SIGKILL))
        assert processes.wait([process]) == [-signal.SIGKILL]
        assert (folder / "checkpoints" / checkpoint).exists()
    config.data.workers, config.trainer.val_every = 1, 3
    train(config)
    assert same(trained(folder), trained(whole))
    ours, theirs = (torch.load(run / "checkpoints" / "step=6.ckpt", weights_only=True)["optimizer_states"] for run in (folder, whole))
    assert str(ours) == str(theirs)
    assert steps(folder)[-1]["samples"] == steps(whole)[-1]["samples"] == "96"


@pytest.mark.slow
def test_signals_save_first_and_the_same_command_resumes(configure, whole, tmp_path):
    """Ctrl-C reaches the data workers too, as it does from a terminal."""
    config = configure("language.lora.dropout=0.1", "data.workers=1", "optim.steps=6", "trainer.log_every=1", "trainer.val_every=100")
    folder = Path(config.outputs) / config.name
    for number, after in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        process = processes.start(config, tmp_path / "log", stop=(after, number))
        assert processes.wait([process]) == [128 + number]
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert saved
    assert all(1 <= int(name[5:-5]) < 6 for name in saved)
    assert "and saved; the same command resumes" in (tmp_path / "log").read_text()
    train(config)
    assert same(trained(folder), trained(whole))
    assert [row["step"] for row in steps(folder)] == list("123456")


@pytest.mark.slow
def test_finished_run_is_not_trained_again(configure, whole, capsys):
    before = (whole / "result.json").read_text()
    capsys.readouterr()
    assert train(configure("name=whole", "language.lora.dropout=0.1")) == whole
    assert "is trained already" in capsys.readouterr().out
    assert (whole / "result.json").read_text() == before


@pytest.mark.slow
def test_resume_skips_a_truncated_checkpoint_with_a_warning(configure, whole, capsys):
    (whole / "train.json").unlink()
    newest = whole / "checkpoints" / "step=6.ckpt"
    expected = trained(whole)
    newest.write_bytes(newest.read_bytes()[:-5000])
    train(configure("name=whole", "language.lora.dropout=0.1"))
    output = capsys.readouterr().out
    assert f"warning: {newest} cannot be read" in output
    assert "resuming from" in output
    assert "step=3.ckpt" in output
    assert same(trained(whole), expected)


def corrupt(path: Path) -> None:
    """Overwrites numbers with zeros, as a crash of the machine does: the archive still opens."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (corrupt, "its checksums are wrong"),
        (lambda path: path.write_bytes(b""), "BadZipFile"),
        (lambda path: torch.save({"x": 1}, path), "it is no checkpoint of a run"),
        (lambda path: torch.save(torch.zeros(3), path), "it is no checkpoint of a run"),
    ],
)
def test_resume_skips_a_file_that_is_no_checkpoint(configure, capsys, damage, reason):
    config = configure("optim.steps=4", "trainer.val_every=2")
    folder = train(config)
    expected = trained(folder, "step=4.ckpt")
    (folder / "train.json").unlink()
    damage(folder / "checkpoints" / "step=4.ckpt")
    shutil.copy(folder / "checkpoints" / "step=2.ckpt", folder / "checkpoints" / "step=2 copy.ckpt")
    train(config)
    assert f"step=4.ckpt cannot be read ({reason}); trying the one before" in capsys.readouterr().out
    assert same(trained(folder, "step=4.ckpt"), expected)
    assert (folder / "checkpoints" / "step=2 copy.ckpt").exists()


@pytest.mark.slow
def test_resume_continues_a_truncated_log(configure):
    config = configure("trainer.log_every=1", "trainer.val_every=2", "optim.steps=4")
    stop_after(config, 3)
    log = Path(config.outputs) / "tiny" / "log.csv"
    log.write_text(log.read_text() + "4,0.1,3\n" + "\0" * 40)
    train(config)
    assert [row["step"] for row in steps(log.parent)] == list("1234")
    assert all(row["grad_norm"] for row in steps(log.parent))


@pytest.mark.slow
def test_run_restarts_if_all_checkpoints_are_damaged(configure, whole, capsys):
    expected = trained(whole)
    (whole / "train.json").unlink()
    for path in (whole / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best.ckpt cannot be read \(BadZipFile\); remove it, and the newest checkpoint"):
        train(configure("name=stage", "init=run:whole"))
    train(configure("name=whole", "language.lora.dropout=0.1"))
    assert "step=3.ckpt cannot be read (BadZipFile); there is none before it" in capsys.readouterr().out
    assert same(trained(whole), expected)


@pytest.mark.parametrize("name", ["log.csv", "checkpoints"])
@pytest.mark.slow
def test_train_names_an_unusable_file_of_the_run_folder(configure, name):
    """A folder in place of a file, or a file in place of a folder, represents every path that the system refuses to open."""
    path = Path(configure().outputs) / "tiny" / name
    if name == "log.csv":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(UserError, match=rf"{name} cannot be used \(.*\); make it readable and writable, or choose another name=\.\.\."):
        train(configure())


def test_run_folder_holds_result_checkpoints_and_log(configure, whole):
    result = json.loads((whole / "result.json").read_text())
    assert set(result) == {"name", "commands", "version", "git", "data", "seconds", "peak_rss_mb", "metrics"}
    assert set(result["metrics"]) == {"train/samples_per_second", "train/tokens_per_second", "train/fill"}
    assert 0.5 < result["metrics"]["train/fill"]["value"] <= 1
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"step=3.ckpt", "step=6.ckpt", "best.ckpt"}
    stored = torch.load(whole / "checkpoints" / "step=6.ckpt", weights_only=True)
    assert stored["config"]["optim"]["steps"] == 6
    assert stored["DataModule"]["consumed"] == 6
    assert not any("lora" not in name for name in stored["state_dict"] if name.startswith("language"))
    rows = steps(whole)
    assert float(rows[-1]["val"]) < float(rows[1]["val"])
    assert float(rows[-1]["lr/projector"]) < float(rows[0]["lr/projector"])


@pytest.mark.slow
def test_another_configuration_in_the_same_folder_is_rejected(configure, whole):
    with pytest.raises(
        UserError, match=r"holds a different configuration \(optim.clip was 1.0, now 2.0\); choose another name=... with init=run:whole"
    ):
        train(configure("name=whole", "language.lora.dropout=0.1", "optim.clip=2.0"))
    with pytest.raises(UserError, match=r"\(language.lora.rank was 8, now 4\); choose another name=..., or remove the folder"):
        train(configure("name=whole", "language.lora.dropout=0.1", "language.lora.rank=4"))


@pytest.mark.slow
def test_damaged_config_is_rejected(configure, whole):
    for damaged in ("", "{{{", "only words", "\0"):
        (whole / "config.yaml").write_text(damaged)
        with pytest.raises(UserError, match=r"config.yaml cannot be read as a configuration; restore it, or remove the folder"):
            train(configure("name=whole", "language.lora.dropout=0.1"))
    (whole / "config.yaml").write_text("name: whole\n")
    with pytest.raises(UserError, match="holds a different configuration"):
        train(configure("name=whole", "language.lora.dropout=0.1"))


DOUBLE = [
    "trainer.precision=64-true",
    "optim.steps=4",
    "trainer.val_every=100",
    "optim.lr={vision: 1e-3, projector: 1e-3, language: 1e-3}",
]
SINGLE = ["trainer.precision=32-true", *DOUBLE[1:]]


def distances(one: Path, other: Path) -> float:
    ours, theirs = trained(one, "step=4.ckpt"), trained(other, "step=4.ckpt")
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.slow
def test_update_does_not_depend_on_accumulation(configure):
    one, many = (train(configure(*DOUBLE, f"name=accumulate{n}", f"trainer.accumulate={n}")) for n in (1, 4))
    assert distances(one, many) < 1e-6
    assert [row["tokens"] for row in steps(one)] == [row["tokens"] for row in steps(many)]


@pytest.mark.slow
def test_update_depends_on_accumulation_by_rounding_only_in_single_precision(configure):
    one, many = (train(configure(*SINGLE, f"name=single{n}", f"trainer.accumulate={n}")) for n in (1, 4))
    start = dict(build_vlm(configure(*SINGLE)).named_parameters())
    ours, theirs = trained(one, "step=4.ckpt"), trained(many, "step=4.ckpt")
    apart = sum((ours[name] - theirs[name]).double().pow(2).sum().item() for name in ours) ** 0.5
    moved = sum((ours[name] - start[name].detach()).double().pow(2).sum().item() for name in ours) ** 0.5
    relative = rounding(
        2 * forward_steps(build_vlm(configure()).language.body.config, length=160), 1
    )  # of a gradient, forward and backward
    # AdamW divides a gradient by its size: where it is smaller than its rounding, the update is arbitrary. The share of such elements
    # is of the order of `relative`, and the root of the sum of squares takes the root of it.
    assert apart < relative**0.5 * moved
    assert [float(row["loss"]) for row in steps(one)] == pytest.approx([float(row["loss"]) for row in steps(many)], rel=relative)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 4)])
def test_accumulation_may_change_between_stop_and_resume(configure, before, after):
    one = train(configure(*DOUBLE, "name=one"))
    config = configure(*DOUBLE, "name=changing", "trainer.val_every=1", f"trainer.accumulate={before}")
    stop_after(config, 1)
    config.trainer.accumulate = after
    train(config)
    assert distances(one, Path(config.outputs) / "changing") < 1e-6


def stop_after(config: TrainConfig, step: int) -> None:
    """Runs `train` until `step` and its checkpoint, if it has one, and ends it there like a kill."""
    import src.commands.train as module

    class Killed(Exception):
        pass

    class Killing(module.CheckpointCallback):
        def on_train_batch_end(self, trainer, *rest) -> None:
            super().on_train_batch_end(trainer, *rest)
            if trainer.global_step == step and not validates_after(trainer, step):
                raise Killed

        def on_validation_end(self, trainer, *rest) -> None:
            super().on_validation_end(trainer, *rest)
            if trainer.global_step == step:
                raise Killed

    usual, module.CheckpointCallback = module.CheckpointCallback, Killing
    try:
        with pytest.raises(Killed):
            train(config)
    finally:
        module.CheckpointCallback = usual


@pytest.mark.slow
def test_a_resumed_run_keeps_the_best_checkpoint(configure, monkeypatch):
    """The run is killed right after the best validation; the later ones are worse."""
    monkeypatch.setattr(VLMLightningModule, "validation_losses", lambda self: {"alpha": {2: 1.0, 4: 3.0, 6: 2.0}[self.trainer.global_step]})
    one, config = train(configure("name=one", "trainer.val_every=2")), configure("name=cut", "trainer.val_every=2")
    stop_after(config, 2)
    cut = train(config)
    ours, theirs = (torch.load(run / "checkpoints" / "best.ckpt", weights_only=True) for run in (cut, one))
    assert ours["global_step"] == theirs["global_step"] == 2
    assert same(ours["state_dict"], theirs["state_dict"])


def run_ranks(config: TrainConfig, log: Path, world: int) -> None:
    config.trainer.devices = world
    codes = processes.wait(processes.ranks(config, log, world=world))
    assert codes == [0] * world, "\n".join(path.read_text()[-3000:] for path in log.parent.glob(f"{log.stem}*"))


@pytest.mark.slow
def test_two_ranks_make_the_same_update_as_one(configure, tmp_path):
    """2 ranks x 2 micro-batches; a quarter of the records has no image, so some micro-batches have none at all."""
    one = train(configure(*DOUBLE, "name=one", "data.max_seq_len=60"))
    config = configure(*DOUBLE, "name=two", "data.max_seq_len=60", "trainer.accumulate=2")
    run_ranks(config, tmp_path / "log", 2)
    two = Path(config.outputs) / "two"
    assert distances(one, two) < 1e-6
    for ours, theirs in zip(steps(one), steps(two), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["samples"] == theirs["samples"]
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)


@pytest.mark.slow
def test_number_of_ranks_may_change_at_every_resume(configure, tmp_path):
    """1 -> 2 -> 4 -> 1 ranks, one step each. The run has eight steps, so that the signal arrives before it ends."""
    longer = [*DOUBLE, "optim.steps=8", "trainer.keep_last=9"]
    one = train(configure(*longer, "name=one", "trainer.val_every=4"))
    config = configure(*longer, "name=elastic", "trainer.val_every=1")
    for step, world in ((1, 1), (2, 2), (3, 4)):
        folder = Path(config.outputs) / "elastic"
        config.trainer.devices = world
        if world == 1:
            stop_after(config, step)
            continue
        stop = (step, signal.SIGTERM)
        alive = processes.ranks(config, tmp_path / f"log{world}", world=world, stops=dict.fromkeys(range(world), stop))
        codes = processes.wait(alive)
        assert all(code == 128 + signal.SIGTERM for code in codes), codes
        for path in (folder / "checkpoints").glob("step=*.ckpt"):
            if int(path.name[5:-5]) > step:
                path.unlink()
        (folder / "train.json").unlink(missing_ok=True)
    config.trainer.devices = 1
    train(config)
    assert distances(one, folder) < 1e-6


@pytest.mark.slow
def test_missing_devices_are_reported(configure, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"trainer.accelerator=gpu and trainer.devices=1, and torch finds 0 GPUs .*; set trainer=cpu"):
        train(configure("trainer.accelerator=gpu"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"trainer.devices=8, and torch finds 2 GPUs on this machine; set trainer.devices=2"):
        train(configure("trainer.accelerator=gpu", "trainer.devices=8"))


def test_more_processes_than_devices_are_rejected(configure, monkeypatch):
    """Two processes of torchrun with trainer.devices=1 would write to the same folder."""
    config = configure()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun started 2 processes, but trainer.devices x trainer.nodes = 1 x 1"):
        train(config)
    assert not Path(config.outputs).exists()


def test_several_nodes_without_a_launcher_are_rejected(configure, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"trainer.nodes=2, but no launcher has set the address of the other nodes.*torchrun or srun"):
        train(configure("trainer.nodes=2"))


def test_unwritable_run_folder_is_reported(configure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/tiny cannot be written \(Not a directory\); choose another outputs="):
        train(configure(f"outputs={tmp_path}/file"))


def break_losses(monkeypatch, times: int) -> None:
    """The losses of the first `times` training batches become nan."""
    usual, left = VLM.forward, [times]

    def forward(self, batch):
        losses, sources = usual(self, batch)
        left[0] -= torch.is_grad_enabled()
        return (losses * float("nan") if left[0] >= 0 and torch.is_grad_enabled() else losses), sources

    monkeypatch.setattr(VLM, "forward", forward)


@pytest.mark.slow
def test_nonfinite_loss_stops_and_lists_its_samples(configure, monkeypatch):
    break_losses(monkeypatch, 1)
    config = configure("trainer.accumulate=2")
    with pytest.raises(
        UserError, match=r"nonfinite.jsonl: the loss became nan or infinite at step 0, and this file lists the samples of that batch"
    ):
        train(config)
    (listed,) = (Path(config.outputs) / "tiny" / "nonfinite.jsonl").read_text().splitlines()
    assert json.loads(listed)["step"] == 0
    assert 4 < len(json.loads(listed)["samples"]) < 16  # one of two micro-batches


@pytest.mark.slow
def test_nonfinite_step_can_be_skipped(configure, monkeypatch):
    """The step changes no parameter and is counted; the run continues."""
    config = configure("trainer.on_nonfinite=skip", "optim.steps=1", "optim.warmup=0", "trainer.log_every=1")
    initial = {name: p.detach().clone() for name, p in build_vlm(config).named_parameters() if p.requires_grad}
    break_losses(monkeypatch, 1)
    folder = train(config)
    assert same(trained(folder, "step=1.ckpt"), initial)
    assert [row["skipped"] for row in steps(folder)] == ["1"]
    assert len((folder / "nonfinite.jsonl").read_text().splitlines()) == 1
    break_losses(monkeypatch, 1)
    longer = train(configure("name=longer", "trainer.on_nonfinite=skip", "trainer.log_every=1"))
    assert [row["skipped"] for row in steps(longer)][:2] == ["1", "0"]
    assert all(torch.isfinite(value).all() for value in trained(longer).values())
    assert not same(trained(longer), initial)


@pytest.mark.slow
def test_epochs_count_the_training_records_of_the_mix(configure, capsys):
    """There are 180 training records, in batches of 16."""
    assert epochs_to_steps(configure("optim.steps=null", "optim.epochs=2")).optim.steps == round(2 * 180 / 16)
    folder = train(configure("optim.steps=null", "optim.epochs=0.2", "optim.warmup=1"))
    assert (folder / "checkpoints" / "step=2.ckpt").exists()
    shortened = epochs_to_steps(configure("optim.steps=null", "optim.epochs=1", "optim.warmup=40")).optim
    assert (shortened.steps, shortened.warmup) == (11, 1)
    assert "optim.warmup=40 is not shorter than the 11 steps of the run; the warm-up is shortened to 1 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_out_of_memory_error_recommends_settings(configure, monkeypatch):
    def training_step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    monkeypatch.setattr("src.commands.plan.device_memory", lambda: 3.0)
    message = (
        "out of memory with trainer.accumulate=1; set trainer.accumulate=2 and trainer.activation_checkpointing=selective, with which "
    )
    with pytest.raises(UserError, match=message):
        train(configure())
    monkeypatch.setattr("src.commands.plan.device_memory", lambda: 2.0)
    with pytest.raises(UserError, match=r"expects it to fit into 2 GB with no trainer.accumulate and trainer.activation_checkpointing"):
        train(configure())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory with trainer.accumulate=1; set trainer.accumulate=2",
        ),
        (
            OSError(28, "No space left on device"),
            r"tiny cannot be written \(No space left on device\); free some space and run the same command",
        ),
    ],
)
def test_missing_memory_or_disk_space_is_reported(configure, monkeypatch, error, message):
    def training_step(*args):
        raise error

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    monkeypatch.setattr("src.commands.plan.device_memory", lambda: 3.0)
    with pytest.raises(UserError, match=message):
        train(configure())


LOST = r"data.workers=1: a data worker was lost \(.*\), usually because the machine or its /dev/shm is out of memory; use fewer workers;"


def test_killed_data_worker_is_reported(configure, monkeypatch):
    """The worker kills itself, so that it is always busy when it dies."""
    usual = PackedStream.batch

    def batch(self, step: int, *, micro_batch: int) -> Batch:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, step, micro_batch=micro_batch)

    monkeypatch.setattr(PackedStream, "batch", batch)
    with pytest.raises(UserError, match=LOST):
        train(configure("data.workers=1"))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("subject", "method"), [(CheckpointCallback, "save"), (ValidationScores, "scores")])
@pytest.mark.slow
def test_data_worker_killed_during_validation_or_save_does_not_interrupt_it(configure, monkeypatch, subject, method):
    """The checkpoint is complete, and the next batch raises the error."""
    usual = getattr(subject, method)

    def killing(*args):
        for worker in multiprocessing.active_children():
            worker.kill()
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # SIGCHLD has been sent
        return usual(*args)

    monkeypatch.setattr(subject, method, killing)
    config = configure("data.workers=1", "trainer.val_every=2")
    with pytest.raises(UserError, match=LOST):
        train(config)
    saved = Path(config.outputs) / "tiny" / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["best.ckpt", "step=2.ckpt"]
    assert torch.load(saved / "step=2.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_run_folder_of_another_process_is_rejected(configure, tmp_path):
    config = configure("optim.steps=100000", "trainer.val_every=1", "data.workers=1")  # it does not end by itself
    process = processes.start(config, tmp_path / "log")
    processes.until((Path(config.outputs) / "tiny" / "checkpoints" / "step=1.ckpt").exists, process)
    with pytest.raises(UserError, match=r"another process is training in .*/tiny; wait for it, stop it, or choose another name="):
        train(config)
    os.kill(process.pid, signal.SIGKILL)  # its worker outlives it for a moment
    processes.wait([process])
    with run_folder.exclusive_lock(Path(config.outputs) / "tiny"):
        pass


@pytest.mark.slow
def test_killed_rank_ends_the_other_with_a_message(configure, tmp_path):
    """The checkpoint is intact: the same command resumes from it."""
    config = configure("optim.steps=6", "trainer.val_every=1", "trainer.devices=2")
    first, second = processes.ranks(config, tmp_path / "log", world=2, stops={1: (1, signal.SIGKILL)})
    saved = Path(config.outputs) / "tiny" / "checkpoints"
    assert processes.wait([first, second]) == [2, -signal.SIGKILL]
    message = "error: another process of this run has ended or cannot be reached; run the same command again: it resumes"
    assert message in (tmp_path / "log.0").read_text()
    config.trainer.val_every = 30
    run_ranks(config, tmp_path / "again", 2)
    assert (saved / "step=6.ckpt").exists()
    assert "resuming from" in (tmp_path / "again.0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_missing_shard_is_reported_from_any_worker(configure, shards, tmp_path, workers):
    shutil.copytree(shards, tmp_path / "root")
    (tmp_path / "root" / "alpha" / "train-000000.tar").unlink()
    with pytest.raises(UserError) as error:
        train(configure(f"data.root={tmp_path}/root", f"data.workers={workers}"))
    assert re.fullmatch(r".*/train-000000.tar: listed in the manifest but missing; .*", f"{error.value}")


@pytest.mark.slow
def test_interrupt_within_a_step_raises_keyboard_interrupt(configure, monkeypatch):
    """As a second Ctrl-C does; Lightning alone would exit with 1 and no message."""

    def training_step(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        train(configure())


@pytest.mark.slow
def test_damaged_image_is_reported(configure, shards, tmp_path):
    """The text of the record is unchanged, so nothing else reveals that the shard differs from its index."""
    tar = shutil.copytree(shards, tmp_path / "root") / "alpha" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    with pytest.raises(UserError, match=r"train-000000.tar: does not match its index; build it again"):
        train(configure(f"data.root={tmp_path}/root"))


@pytest.mark.slow
def test_unknown_errors_are_raised_unchanged(configure, monkeypatch):
    def training_step(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        train(configure())


@pytest.mark.slow
def test_stage_starts_from_the_trained_parts_of_another_run(configure, capsys):
    """First the projector alone, then the rest with a frozen projector. The second checkpoint contains both, so the first run may go."""
    first = train(configure("name=align", "optim.lr={vision: 0, projector: 1e-3, language: 0}"))
    capsys.readouterr()
    config = configure("name=stage", "init=run:align", "optim.lr={vision: 1e-3, projector: 0, language: 1e-3}")
    second = train(config)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("vision", "projector", "language"))]
    assert [line[3] for line in table] == ["0.001", "frozen", "0.001"]
    assert ["then run:align" in " ".join(line) for line in table] == [False, True, False]
    ours, theirs = trained(second), trained(first, "best.ckpt")
    assert theirs.keys() < ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(first)
    fresh = build_vlm(config)
    load_checkpoint(fresh, second / "checkpoints" / "best.ckpt")
    assert torch.equal(dict(fresh.named_parameters())["projector.linear_1.weight"], theirs["projector.linear_1.weight"])
    assert all(float(row["lr/vision"]) > 0 for row in steps(second))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("language.lora.alpha=64", "language.lora.alpha=32, now 64"),  # loads without an error, but would double the effect of the adapters
        ("language.lora.rank=4", "language.lora.rank=8, now 4"),
        ("language.lora.targets=[q_proj]", r"language.lora.targets=\['down_proj', .*, now \['q_proj'\]"),
    ],
)
def test_stage_with_other_adapter_settings_is_rejected(configure, override, message):
    train(configure("name=first", "optim.steps=1", "optim.warmup=0"))
    with pytest.raises(UserError, match=f"the checkpoint's adapters were trained with {message}; set language.lora"):
        train(configure("name=second", "init=run:first", override))
    train(configure("name=align", "optim.steps=1", "optim.warmup=0", "optim.lr.language=0"))
    train(configure("name=third", "init=run:align", "optim.steps=1", "optim.warmup=0", override))


@pytest.mark.slow
def test_stage_resumes_like_any_run(configure, tmp_path):
    train(configure("name=align", "optim.lr={vision: 0, projector: 1e-3, language: 0}"))
    stage = ["init=run:align", "optim.lr={vision: 1e-3, projector: 0, language: 1e-3}", "trainer.val_every=2"]
    whole, config = train(configure("name=whole", *stage)), configure("name=cut", *stage)
    stop_after(config, 2)
    assert same(trained(train(config)), trained(whole))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("run:nobody", "init=run:nobody, but .* holds no checkpoint; train that run first, or set init=null"),
        ("nobody", "must be run:<name"),
    ],
)
def test_missing_init_run_is_reported(configure, init, message):
    with pytest.raises(UserError, match=message):
        train(configure(f"init={init}"))


@pytest.mark.slow
def test_checkpoint_with_other_frozen_weights_is_rejected(configure, whole, language, tmp_path):
    """Adapters fit only the weights that they were trained on."""
    shutil.copytree(language, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] += 1e-3
    save_file(state, path, metadata={"format": "pt"})
    config = configure("name=whole", "language.lora.dropout=0.1", f"language.path={tmp_path}/other")
    with pytest.raises(
        UserError,
        match=r"the checkpoint was trained on language weights .* holds sha256 [0-9a-f]{12}; point language.path at the original weights",
    ):
        load_checkpoint(build_vlm(config), whole / "checkpoints" / "best.ckpt")
    stored = torch.load(whole / "checkpoints" / "step=6.ckpt", weights_only=True)
    assert set(stored["weights"]) == {"vision", "language"}
    assert stored["weights"]["language"]["sha256"] == hashlib.sha256((language / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_resume_rejects_frozen_weights_that_changed_on_disk(configure, language, tmp_path):
    shutil.copytree(language, tmp_path / "weights")
    config = configure(f"language.path={tmp_path}/weights", "trainer.val_every=2")
    stop_after(config, 2)
    path = tmp_path / "weights" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] += 1e-3
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the checkpoint was trained on language weights .*; point language.path at the original weights"):
        train(config)


def test_log_has_losses_and_scores_of_every_source(whole):
    """A row per `log_every` steps and per validation, which has a loss for every source and a score for sources with questions."""
    rows = steps(whole)
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    checks = [row for row in rows if row["val"]]
    assert [row["step"] for row in checks] == ["3", "6"]
    for row in checks:
        losses = [float(row[f"val/{source}"]) for source in ("alpha", "beta", "gamma")]
        assert float(row["val"]) == pytest.approx(sum(losses) / 3, rel=1e-4)
        assert 0 <= float(row["f1/alpha"]) <= 1
        assert 0 <= float(row["f1/gamma"]) <= 1
        assert row["f1/beta"] == ""  # captions
    for row in rows:
        assert 0 < float(row["fill"]) <= 1
        assert 0 <= float(row["data_wait"]) < 1
        assert float(row["grad_norm"]) > 0
    assert float(rows[-1]["seconds"]) > float(rows[0]["seconds"])


@pytest.mark.slow
def test_log_counts_truncated_tokens(configure):
    """Every token of a window (two steps) is either trained on or counted as truncated, for any number of micro-batches."""
    words = ["optim.steps=2", "optim.warmup=1", "trainer.log_every=2", "data.val_samples=0", "trainer.accumulate=2"]
    long, short = (steps(train(configure(*words, f"name={n}", f"data.max_seq_len={n}"))) for n in (160, 24))
    assert [int(row["cut_tokens"]) for row in long] == [0]
    assert int(short[0]["cut_tokens"]) == int(long[0]["tokens"]) - int(short[0]["tokens"]) > 0


@pytest.mark.slow
def test_mixed_precision_is_close_and_saves_what_the_plan_counts(configure):
    """A bfloat16 language model with float32 adapters, as in the full recipe."""
    mixed = ["trainer.precision=bf16-mixed", "language.dtype=bfloat16"]
    half, full = train(configure("name=half", *mixed)), train(configure("name=full"))
    for mixed_row, full_row in zip(steps(half), steps(full), strict=True):
        assert float(mixed_row["loss"]) == pytest.approx(float(full_row["loss"]), rel=0.01)
    assert all(value.dtype == torch.float32 for value in trained(half).values())
    config = configure(*mixed)
    model, planned = build_vlm(config), build_vlm(config).to(torch.bfloat16)
    batch = average_batch(model, AverageSample(images=1, text=60, supervised=20), rows=8, max_seq_len=160)
    disable_lora_input_cast(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert count_cost(model, batch).saved == pytest.approx(count_cost(planned, batch).saved, rel=0.1)  # its norms stay in float32


@pytest.mark.slow
def test_run_records_which_sources_are_phantoms(configure, shards, tmp_path):
    """It records them from the manifests at training time, which may be gone when its card is written."""
    root = shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((root / "beta" / "manifest.json").read_text())
    (root / "beta" / "manifest.json").write_text(json.dumps(manifest | {"phantom": True}))
    folder = train(configure(f"data.root={root}", "optim.steps=1", "optim.warmup=0"))
    assert json.loads((folder / "train.json").read_text())["phantoms"] == ["beta"]


@pytest.mark.slow
def test_child_run_carries_the_records_of_its_ancestors(configure, shards, tmp_path):
    root = shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((root / "beta" / "manifest.json").read_text())
    (root / "beta" / "manifest.json").write_text(json.dumps(manifest | {"phantom": True, "licence": "no commercial use"}))
    short = ["optim.steps=1", "optim.warmup=0", f"data.root={root}"]
    parent = train(configure("name=parent", "mix.shares={alpha: 0, beta: 1, gamma: 0}", *short))
    fingerprint = json.loads((parent / "train.json").read_text())["shards"]
    config = configure("name=child", "init=run:parent", "mix.shares={alpha: 1, beta: 0, gamma: 0}", *short[:2], f"data.root={root}")
    child = train(config)
    shutil.rmtree(parent)
    (record,) = ancestors(child)
    assert (record["name"], record["fingerprint"]["shards"]) == ("parent", fingerprint)
    assert [(one["name"], one["licence"], one["records"]) for one in record["sources"]] == [("beta", "no commercial use", 60)]
    assert json.loads((child / "train.json").read_text())["phantoms"] == ["beta"]


@pytest.mark.slow
def test_resumed_child_keeps_the_records_of_its_first_start(configure):
    train(configure("name=parent", "optim.steps=1", "optim.warmup=0"))
    config = configure("name=child", "init=run:parent", "trainer.val_every=2")
    stop_after(config, 2)
    path = Path(config.outputs) / "child" / "lineage.json"
    edited = path.read_text().replace('"alpha"', '"as it was"')
    path.write_text(edited)
    train(config)
    assert path.read_text() == edited


@pytest.mark.slow
def test_gradients_are_clipped_before_a_fused_update(configure, monkeypatch):
    """In mixed precision, where Lightning's own clipping rejects a fused optimizer."""
    usual, norms = torch.optim.AdamW, []

    class Fused(usual):  # type: ignore[misc, valid-type]
        def __init__(self, groups, **settings):
            super().__init__(groups, **(settings | {"fused": True, "foreach": False}))

        def step(self, closure):
            def clipped():
                loss = closure()
                norms.append(torch.nn.utils.get_total_norm([p.grad for group in self.param_groups for p in group["params"]]).item())
                return loss

            return super().step(clipped)

    monkeypatch.setattr("torch.optim.AdamW", Fused)
    mixed = ["trainer.precision=bf16-mixed", "language.dtype=bfloat16", "trainer.log_every=1", "trainer.val_every=6"]
    free, clipped = (train(configure(*mixed, f"name=clip{clip}", f"optim.clip={clip}")) for clip in (0, 0.1))
    assert norms[:6] == pytest.approx([float(row["grad_norm"]) for row in steps(free)], rel=1e-4)
    assert min(norms[:6]) > 0.1
    assert norms[6:] == pytest.approx([0.1] * 6, rel=1e-3)
    assert float(steps(clipped)[0]["grad_norm"]) == pytest.approx(norms[0], rel=1e-4)
