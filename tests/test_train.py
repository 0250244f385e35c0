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
from src.training.callbacks.validation import Validation
from src.training.checkpoint import load_checkpoint
from src.training.epochs import epochs_to_steps
from src.training.lightning_module import VLMLightningModule, disable_lora_input_cast
from tests import processes
from tests.conftest import overrides


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
    """An uninterrupted run with dropout and two workers; a copy, since tests damage it."""
    return Path(shutil.copytree(whole_once, tmp_path / "outputs" / "whole"))


def test_training_warns_of_sources_without_an_audit_and_records_audits(configure, shards, tmp_path, capsys):
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    audit_all(AuditConfig(out=root))
    (root / "beta" / "audit.json").unlink()
    manifest = root / "gamma" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "built again"}))
    capsys.readouterr()
    folder = train(configure(f"data.root={root}", "optim.steps=3", "trainer.val_every=3"))
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "audit" in line]
    assert said.startswith("warning: no audit has compared the present build of beta, gamma with the test sets")
    assert f"`python -m data_prep.audit out={root} raw=data/raw`" in said
    alpha = json.loads((root / "alpha" / "audit.json").read_text())["fingerprint"]
    assert json.loads((folder / "train.json").read_text())["audits"] == {"alpha": alpha, "beta": None, "gamma": None}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(configure, whole, tmp_path):
    """SIGKILL after two different steps, other workers and folders of the data each time."""
    config = configure("language.lora.dropout=0.1")
    folder = Path(config.outputs) / config.name
    for checkpoint, workers in (("step=3.ckpt", 0), ("step=5.ckpt", 2)):
        config.data.workers, config.trainer.val_every = workers, 3 if workers == 0 else 1
        process = processes.start(config, tmp_path / "log")
        processes.until((folder / "checkpoints" / checkpoint).exists, process)
        processes.interrupt(process, signal.SIGKILL)
        assert processes.wait([process]) == [-signal.SIGKILL]
    config.data.workers, config.trainer.val_every = 1, 3
    train(config)
    assert same(trained(folder), trained(whole))
    ours, theirs = (torch.load(run / "checkpoints" / "step=6.ckpt", weights_only=True)["optimizer_states"] for run in (folder, whole))
    assert str(ours) == str(theirs)
    assert steps(folder)[-1]["samples"] == steps(whole)[-1]["samples"] == "96"


@pytest.mark.slow
def test_every_signal_saves_first_and_the_same_command_resumes(configure, whole, tmp_path):
    """Ctrl-C reaches the data workers too, as it does from a terminal."""
    config = configure("language.lora.dropout=0.1", "data.workers=1", "optim.steps=6", "trainer.log_every=1", "trainer.val_every=100")
    folder = Path(config.outputs) / config.name
    for number, after in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        process = processes.start(config, tmp_path / "log")
        processes.until(lambda after=after: (folder / "log.csv").exists() and len(steps(folder)) >= after, process)
        os.killpg(process.pid, number)
        assert processes.wait([process]) == [128 + number]
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert saved
    assert all(1 <= int(name[5:-5]) < 6 for name in saved)
    assert "and saved; the same command resumes" in (tmp_path / "log").read_text()
    train(config)
    assert same(trained(folder), trained(whole))
    assert [row["step"] for row in steps(folder)] == list("123456")


def test_a_finished_run_is_not_trained_again(configure, whole, capsys):
    before = (whole / "result.json").read_text()
    capsys.readouterr()
    assert train(configure("name=whole", "language.lora.dropout=0.1")) == whole
    assert "is trained already" in capsys.readouterr().out
    assert (whole / "result.json").read_text() == before


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over_with_a_warning(configure, whole, capsys):
    (whole / "train.json").unlink()
    newest = whole / "checkpoints" / "step=6.ckpt"
    expected = trained(whole)
    newest.write_bytes(newest.read_bytes()[:-5000])
    train(configure("name=whole", "language.lora.dropout=0.1"))
    said = capsys.readouterr().out
    assert f"warning: {newest} cannot be read" in said
    assert "resuming from" in said
    assert "step=3.ckpt" in said
    assert same(trained(whole), expected)


def rot(path: Path) -> None:
    """Zeros where numbers were, as a crash of the machine leaves them: the archive still opens."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (rot, "its checksums are wrong"),
        (lambda path: path.write_bytes(b""), "BadZipFile"),
        (lambda path: torch.save({"x": 1}, path), "it is no checkpoint of a run"),
        (lambda path: torch.save(torch.zeros(3), path), "it is no checkpoint of a run"),
    ],
)
def test_a_checkpoint_that_is_none_is_passed_over(configure, capsys, spoil, fault):
    config = configure("optim.steps=4", "trainer.val_every=2")
    folder = train(config)
    expected = trained(folder, "step=4.ckpt")
    (folder / "train.json").unlink()
    spoil(folder / "checkpoints" / "step=4.ckpt")
    shutil.copy(folder / "checkpoints" / "step=2.ckpt", folder / "checkpoints" / "step=2 copy.ckpt")
    train(config)
    assert f"step=4.ckpt cannot be read ({fault}); trying the one before" in capsys.readouterr().out
    assert same(trained(folder, "step=4.ckpt"), expected)
    assert (folder / "checkpoints" / "step=2 copy.ckpt").exists()


@pytest.mark.slow
def test_a_log_that_a_crash_cut_short_is_continued(configure):
    config = configure("trainer.log_every=1", "trainer.val_every=2", "optim.steps=4")
    stop_after(config, 3)
    log = Path(config.outputs) / "tiny" / "log.csv"
    log.write_text(log.read_text() + "4,0.1,3\n" + "\0" * 40)
    train(config)
    assert [row["step"] for row in steps(log.parent)] == list("1234")
    assert all(row["grad_norm"] for row in steps(log.parent))


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_begins_anew(configure, whole, capsys):
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
def test_train_names_a_file_of_the_run_folder_that_cannot_be_used(configure, name):
    """A folder in place of a file, or a file in place of a folder, stands for every path that the system refuses."""
    path = Path(configure().outputs) / "tiny" / name
    if name == "log.csv":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(UserError, match=rf"{name} cannot be used \(.*\); make it readable and writable, or choose another name=\.\.\."):
        train(configure())


def test_what_stands_in_a_run_folder(configure, whole):
    result = json.loads((whole / "result.json").read_text())
    assert set(result) == {"name", "commands", "git", "data", "seconds", "peak_rss_mb", "metrics"}
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


def test_another_configuration_in_the_same_folder_is_refused(configure, whole):
    with pytest.raises(
        UserError, match=r"holds a different configuration \(optim.clip was 1.0, now 2.0\); choose another name=... with init=run:whole"
    ):
        train(configure("name=whole", "language.lora.dropout=0.1", "optim.clip=2.0"))
    with pytest.raises(UserError, match=r"\(language.lora.rank was 8, now 4\); choose another name=..., or remove the folder"):
        train(configure("name=whole", "language.lora.dropout=0.1", "language.lora.rank=4"))


@pytest.mark.slow
def test_a_damaged_config_is_one_sentence(configure, whole):
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
def test_the_update_does_not_depend_on_accumulation(configure):
    one, many = (train(configure(*DOUBLE, f"name=slots{n}", f"trainer.accumulate={n}")) for n in (1, 4))
    assert distances(one, many) < 1e-6
    assert [row["tokens"] for row in steps(one)] == [row["tokens"] for row in steps(many)]


@pytest.mark.slow
def test_nor_does_it_in_single_precision_beyond_rounding(configure):
    one, many = (train(configure(*SINGLE, f"name=single{n}", f"trainer.accumulate={n}")) for n in (1, 4))
    start = dict(build_vlm(configure(*SINGLE)).named_parameters())
    ours, theirs = trained(one, "step=4.ckpt"), trained(many, "step=4.ckpt")
    apart = sum((ours[name] - theirs[name]).double().pow(2).sum().item() for name in ours) ** 0.5
    moved = sum((ours[name] - start[name].detach()).double().pow(2).sum().item() for name in ours) ** 0.5
    assert apart < 1e-4 * sum(value.double().pow(2).sum().item() for value in ours.values()) ** 0.5
    assert apart < 1e-2 * moved
    assert [float(row["loss"]) for row in steps(one)] == pytest.approx([float(row["loss"]) for row in steps(many)], rel=1e-4)


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
    """A run that ends after `step`, as if it had been killed there."""
    import src.train as module

    class Killed(Exception):
        pass

    class Killing(module.CheckpointCallback):
        def on_train_batch_end(self, trainer, *rest) -> None:
            super().on_train_batch_end(trainer, *rest)
            if trainer.global_step == step:
                raise Killed

    Killing.__qualname__ = module.CheckpointCallback.__qualname__  # under which Lightning stores its state
    usual, module.CheckpointCallback = module.CheckpointCallback, Killing
    try:
        with pytest.raises(Killed):
            train(config)
    finally:
        module.CheckpointCallback = usual


def test_a_resumed_run_keeps_the_best_checkpoint(configure, monkeypatch):
    """Killed right after the best check; the later ones are worse."""
    monkeypatch.setattr("src.train.Validation.__call__", lambda self, step: {2: 1.0, 4: 3.0, 6: 2.0}[step])
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
def test_two_ranks_make_the_update_of_one(configure, tmp_path):
    """2 ranks x 2 slots; a quarter of the records is text only, so some slots hold no image at all."""
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
def test_the_world_may_change_at_every_stop(configure, tmp_path):
    """1 -> 2 -> 4 -> 1 ranks, one step each; a signal reaches a run of eight before it ends."""
    longer = [*DOUBLE, "optim.steps=8", "trainer.keep_last=9"]
    one = train(configure(*longer, "name=one", "trainer.val_every=4"))
    config = configure(*longer, "name=elastic", "trainer.val_every=1")
    for step, world in ((1, 1), (2, 2), (3, 4)):
        folder = Path(config.outputs) / "elastic"
        config.trainer.devices = world
        if world == 1:
            stop_after(config, step)
            continue
        alive = processes.ranks(config, tmp_path / f"log{world}", world=world)
        processes.until((folder / "checkpoints" / f"step={step}.ckpt").exists, alive[0])
        for process in alive:
            processes.interrupt(process, signal.SIGTERM)
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
def test_devices_that_are_not_there_are_one_sentence(configure, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"trainer.accelerator=gpu and trainer.devices=1, and torch finds 0 GPUs .*; set trainer=cpu"):
        train(configure("trainer.accelerator=gpu"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"trainer.devices=8, and torch finds 2 GPUs on this machine; set trainer.devices=2"):
        train(configure("trainer.accelerator=gpu", "trainer.devices=8"))


def test_processes_that_do_not_know_of_each_other_are_refused(configure, monkeypatch):
    """Two of torchrun with trainer.devices=1 would write one folder."""
    config = configure()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun started 2 processes, but trainer.devices x trainer.nodes = 1 x 1"):
        train(config)
    assert not Path(config.outputs).exists()


def test_nodes_that_nobody_started_are_not_waited_for(configure, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"trainer.nodes=2, and nothing tells this process of the other nodes.*torchrun or srun"):
        train(configure("trainer.nodes=2"))


def test_a_folder_that_cannot_be_written_is_one_sentence(configure, tmp_path):
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
def test_a_loss_that_is_not_finite_names_its_samples(configure, monkeypatch):
    break_losses(monkeypatch, 1)
    config = configure("trainer.accumulate=2")
    with pytest.raises(UserError, match="the loss became nan or infinite at step 0; the samples of that batch are listed in"):
        train(config)
    (listed,) = (Path(config.outputs) / "tiny" / "nonfinite.jsonl").read_text().splitlines()
    assert json.loads(listed)["step"] == 0
    assert 4 < len(json.loads(listed)["samples"]) < 16  # one of two slots


@pytest.mark.slow
def test_a_step_that_is_not_finite_can_be_left_out(configure, monkeypatch):
    """It moves no parameter, and is counted; the run goes on as if its gradient had been nothing."""
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
def test_epochs_are_steps_of_the_records_of_the_mix(configure):
    """180 training records in batches of 16."""
    assert epochs_to_steps(configure("optim.steps=null", "optim.epochs=2")).optim.steps == round(2 * 180 / 16)
    folder = train(configure("optim.steps=null", "optim.epochs=0.2", "optim.warmup=1"))
    assert (folder / "checkpoints" / "step=2.ckpt").exists()
    with pytest.raises(UserError, match=r"optim.warmup=40 must be smaller than the 11 steps that optim.epochs=1 come to"):
        epochs_to_steps(configure("optim.steps=null", "optim.epochs=1", "optim.warmup=40"))


@pytest.mark.slow
def test_out_of_memory_names_what_the_plan_recommends(configure, monkeypatch):
    def training_step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    monkeypatch.setattr("src.plan.device_memory", lambda: 3.0)
    said = "out of memory with trainer.accumulate=1; set trainer.accumulate=2 and trainer.activation_checkpointing=selective, with which python -m src.plan"
    with pytest.raises(UserError, match=said):
        train(configure())
    monkeypatch.setattr("src.plan.device_memory", lambda: 2.0)
    with pytest.raises(UserError, match=r"expects it to fit into 2 GB with no trainer.accumulate and trainer.activation_checkpointing"):
        train(configure())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory with trainer.accumulate=1; set trainer.accumulate=2",
        ),
        (OSError(28, "No space left on device"), r"tiny cannot be written \(No space left on device\); make room and run the same command"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(configure, monkeypatch, error, said):
    def training_step(*args):
        raise error

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    monkeypatch.setattr("src.plan.device_memory", lambda: 3.0)
    with pytest.raises(UserError, match=said):
        train(configure())


LOST = r"data.workers=1: a data worker was lost \(.*\), usually because the machine or its /dev/shm is out of memory; use fewer workers;"


def test_training_reports_a_killed_data_worker_in_one_sentence(configure, monkeypatch):
    """The worker kills itself, so that it is always at work when it dies."""
    usual = PackedStream.batch

    def batch(self, step: int, *, slot: int) -> Batch:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, step, slot=slot)

    monkeypatch.setattr(PackedStream, "batch", batch)
    with pytest.raises(UserError, match=LOST):
        train(configure("data.workers=1"))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("subject", "method"), [(CheckpointCallback, "save"), (Validation, "__call__")])
def test_a_data_worker_killed_during_a_check_does_not_interrupt_it(configure, monkeypatch, subject, method):
    """The checkpoint is complete; the error comes with the next batch."""
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
def test_a_folder_in_which_another_process_trains_is_left_alone(configure, tmp_path):
    config = configure("optim.steps=300", "trainer.val_every=1", "data.workers=1")
    process = processes.start(config, tmp_path / "log")
    processes.until((Path(config.outputs) / "tiny" / "checkpoints" / "step=1.ckpt").exists, process)
    with pytest.raises(UserError, match=r"another process is training in .*/tiny; wait for it, stop it, or choose another name="):
        train(config)
    os.kill(process.pid, signal.SIGKILL)  # its worker lives on for a moment
    processes.wait([process])
    with run_folder.exclusive_lock(Path(config.outputs) / "tiny"):
        pass


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other_with_a_sentence(configure, tmp_path):
    """And what was saved is good: the same command goes on from it."""
    config = configure("optim.steps=30", "trainer.val_every=1", "trainer.devices=2")
    first, second = processes.ranks(config, tmp_path / "log", world=2)
    saved = Path(config.outputs) / "tiny" / "checkpoints"
    processes.until((saved / "step=1.ckpt").exists, first)
    processes.interrupt(second, signal.SIGKILL)
    assert processes.wait([first, second]) == [2, -signal.SIGKILL]
    said = "error: another process of this run has ended or cannot be reached; run the same command again: it resumes"
    assert said in (tmp_path / "log.0").read_text()
    config.trainer.val_every = 30
    run_ranks(config, tmp_path / "again", 2)
    assert (saved / "step=30.ckpt").exists()
    assert "resuming from" in (tmp_path / "again.0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanished_is_one_sentence_from_any_worker(configure, shards, tmp_path, workers):
    shutil.copytree(shards, tmp_path / "root")
    (tmp_path / "root" / "alpha" / "train-000000.tar").unlink()
    with pytest.raises(UserError) as found:
        train(configure(f"data.root={tmp_path}/root", f"data.workers={workers}"))
    assert re.fullmatch(r".*/train-000000.tar: listed in the manifest but missing; build it again with .*", f"{found.value}")


@pytest.mark.slow
def test_an_interrupt_that_does_not_wait_for_the_step_is_told_like_any_other(configure, monkeypatch):
    """The second Ctrl-C; Lightning alone would exit with 1 and without a word."""

    def training_step(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        train(configure())


@pytest.mark.slow
def test_an_image_that_is_none_any_more_is_one_sentence(configure, shards, tmp_path):
    """The text beside it is as it was, so nothing else tells that the shard has changed."""
    tar = shutil.copytree(shards, tmp_path / "root") / "alpha" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    with pytest.raises(UserError, match=r"train-000000.tar: does not match its index; build it again"):
        train(configure(f"data.root={tmp_path}/root"))


@pytest.mark.slow
def test_other_errors_of_training_stay_what_they_are(configure, monkeypatch):
    def training_step(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(VLMLightningModule, "training_step", training_step)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        train(configure())


@pytest.mark.slow
def test_a_stage_starts_from_what_another_run_trained(configure, capsys):
    """Projector alone, then the rest with the projector frozen: the second checkpoint holds both, so it needs no first run."""
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
    ("override", "said"),
    [
        ("language.lora.alpha=64", "language.lora.alpha=32, now 64"),  # fits, and would double what the adapters do
        ("language.lora.rank=4", "language.lora.rank=8, now 4"),
        ("language.lora.targets=[q_proj]", r"language.lora.targets=\['down_proj', .*, now \['q_proj'\]"),
    ],
)
def test_a_stage_has_the_adapters_of_the_run_that_it_starts_from(configure, override, said):
    train(configure("name=first", "optim.steps=1", "optim.warmup=0"))
    with pytest.raises(UserError, match=f"the checkpoint's adapters were trained with {said}; set it to that"):
        train(configure("name=second", "init=run:first", override))
    train(configure("name=align", "optim.steps=1", "optim.warmup=0", "optim.lr.language=0"))
    train(configure("name=third", "init=run:align", "optim.steps=1", "optim.warmup=0", override))


@pytest.mark.slow
def test_a_stage_is_continued_like_any_run(configure, tmp_path):
    train(configure("name=align", "optim.lr={vision: 0, projector: 1e-3, language: 0}"))
    stage = ["init=run:align", "optim.lr={vision: 1e-3, projector: 0, language: 1e-3}", "trainer.val_every=2"]
    whole, config = train(configure("name=whole", *stage)), configure("name=cut", *stage)
    stop_after(config, 2)
    assert same(trained(train(config)), trained(whole))


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("run:nobody", "init=run:nobody, but .* holds no checkpoint; train that run first, or set init=null"),
        ("nobody", "must be run:<name"),
    ],
)
def test_a_start_that_is_not_there_is_one_sentence(configure, init, said):
    with pytest.raises(UserError, match=said):
        train(configure(f"init={init}"))


@pytest.mark.slow
def test_other_frozen_weights_are_refused(configure, whole, language, tmp_path):
    """Adapters fit only the weights that they were trained on: at a resume, and when the run is loaded."""
    shutil.copytree(language, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] += 1e-3
    save_file(state, path, metadata={"format": "pt"})
    config = configure("name=whole", "language.lora.dropout=0.1", f"language.path={tmp_path}/other")
    with pytest.raises(
        UserError, match=r"the checkpoint was trained on language weights .* holds sha256 [0-9a-f]{12}; give it the weights"
    ):
        load_checkpoint(build_vlm(config), whole / "checkpoints" / "best.ckpt")
    stored = torch.load(whole / "checkpoints" / "step=6.ckpt", weights_only=True)
    assert set(stored["weights"]) == {"vision", "language"}
    assert stored["weights"]["language"]["sha256"] == hashlib.sha256((language / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_resume_refuses_frozen_weights_that_changed_in_their_place(configure, language, tmp_path):
    shutil.copytree(language, tmp_path / "mine")
    config = configure(f"language.path={tmp_path}/mine", "trainer.val_every=2")
    stop_after(config, 2)
    path = tmp_path / "mine" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] += 1e-3
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the checkpoint was trained on language weights .*; give it the weights of then"):
        train(config)


def test_the_log_speaks_of_every_source(whole):
    """A line per `log_every` steps and per check; a check has a loss for every source and a score for those with questions."""
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
def test_what_did_not_fit_stands_in_the_log(configure):
    """Every token of a window of samples (two steps) is either trained on or counted as cut, in any number of slots."""
    words = ["optim.steps=2", "optim.warmup=1", "trainer.log_every=2", "data.val_samples=0", "trainer.accumulate=2"]
    long, short = (steps(train(configure(*words, f"name={n}", f"data.max_seq_len={n}"))) for n in (160, 24))
    assert [int(row["cut_tokens"]) for row in long] == [0]
    assert int(short[0]["cut_tokens"]) == int(long[0]["tokens"]) - int(short[0]["tokens"]) > 0


@pytest.mark.slow
def test_mixed_precision_is_close_and_keeps_what_the_plan_says(configure):
    """A bfloat16 language model with float32 adapters, as the full recipe has it."""
    mixed = ["trainer.precision=bf16-mixed", "language.dtype=bfloat16"]
    half, full = train(configure("name=half", *mixed)), train(configure("name=full"))
    for ours, theirs in zip(steps(half), steps(full), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=0.01)
    assert all(value.dtype == torch.float32 for value in trained(half).values())
    config = configure(*mixed)
    model, planned = build_vlm(config), build_vlm(config).to(torch.bfloat16)
    batch = average_batch(model, AverageSample(images=1, text=60, supervised=20), rows=8, max_seq_len=160)
    disable_lora_input_cast(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert count_cost(model, batch).saved == pytest.approx(count_cost(planned, batch).saved, rel=0.1)  # its norms stay in float32


@pytest.mark.slow
def test_a_run_knows_which_of_its_sources_are_phantoms(configure, shards, tmp_path):
    """By the manifests that it was trained on, which may be gone when its card is written."""
    root = shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((root / "beta" / "manifest.json").read_text())
    (root / "beta" / "manifest.json").write_text(json.dumps(manifest | {"phantom": True}))
    folder = train(configure(f"data.root={root}", "optim.steps=1", "optim.warmup=0"))
    assert json.loads((folder / "train.json").read_text())["phantoms"] == ["beta"]


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


def test_resumed_child_keeps_the_records_of_its_first_start(configure):
    train(configure("name=parent", "optim.steps=1", "optim.warmup=0"))
    config = configure("name=child", "init=run:parent", "trainer.val_every=2")
    stop_after(config, 2)
    path = Path(config.outputs) / "child" / "lineage.json"
    kept = path.read_text().replace('"alpha"', '"as it was"')
    path.write_text(kept)
    train(config)
    assert path.read_text() == kept


@pytest.mark.slow
def test_gradients_are_clipped_before_the_fused_update_of_a_gpu(configure, monkeypatch):
    """In mixed precision, which Lightning's own clipping refuses with it."""
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
