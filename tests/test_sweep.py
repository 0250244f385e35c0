"""Multirun: names and folders of trials, failed trials, and checks before the first trial."""

import gc
import json
import re
import shlex
import weakref
from pathlib import Path

import pytest
from lightning.fabric.plugins.io import torch_io

from src import evaluate, train
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.config.train import TrainConfig
from src.runtime import sweep
from src.runtime.cli import check_overrides, compose, expand_experiment_sweep, normalise_override
from src.runtime.errors import UserError
from src.runtime.run_folder import read_run, trial_failure
from src.runtime.run_names import follow_up
from tests import processes
from tests.stored import write_run


@pytest.fixture
def run(words, monkeypatch, capsys):
    """`run("-m", "seed=0,1")` runs `python -m src.train` with these arguments; returns exit code, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["src/train.py", *words, *arguments])
        monkeypatch.setattr(sweep, "failures", {})
        try:
            train.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


def outputs_folder(words) -> Path:
    return Path(next(word for word in words if word.startswith("outputs=")).partition("=")[2])


def test_full_disk_before_the_first_trial_is_reported_as_one_line(run, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydra._internal.core_plugins.basic_sweeper.OmegaConf.save", full)
    code, _, err = run("-m", "seed=0,1")
    assert code == 2
    assert err.startswith("error: no space is left (No space left on device); free some and run the same command again")


@pytest.mark.slow
def test_full_disk_fails_one_trial_and_only_that_one_runs_again(run, words, monkeypatch):
    """The disk is full when the second of three trials writes its first checkpoint."""
    original_save, disk_is_full = torch_io._atomic_save, True

    def save(checkpoint, path):
        if disk_is_full and checkpoint["config"]["seed"] == 1:
            Path(path).write_bytes(b"incomplete")
            raise OSError(28, "No space left on device")
        original_save(checkpoint, path)

    monkeypatch.setattr(torch_io, "_atomic_save", save)
    code, out, err = run("-m", "seed=0,1,2")
    assert code == 1, err[-600:]
    folders = [outputs_folder(words) / "tiny" / f"seed={seed}" for seed in range(3)]
    assert "1 trial failed; the same command runs only what is missing" in out
    assert [(folder / "result.json").exists() for folder in folders] == [True, False, True]
    assert [list(folder.glob("checkpoints/*")) == [] for folder in folders] == [False, True, False]
    assert "No space left" in json.loads((folders[1] / "failed.json").read_text())["error"]
    assert json.loads((folders[0] / "result.json").read_text())["name"] == f"tiny/{folders[0].name}"

    disk_is_full, train_json = False, (folders[0] / "train.json").read_bytes()
    code, out, _ = run("-m", "seed=0,1,2")
    assert code == 0
    assert out.count("is trained already") == 2
    assert (folders[0] / "train.json").read_bytes() == train_json
    assert not (folders[1] / "failed.json").exists()
    assert (folders[1] / "result.json").exists()


@pytest.mark.slow
def test_sweep_continues_if_the_failure_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr(sweep, "trial_folder", lambda: tmp_path / "trial")
    monkeypatch.setattr(sweep, "is_in_process", lambda: True)
    write_text = Path.write_text

    def write_to_full_disk(path: Path, text: str) -> None:
        write_text(path, "")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_to_full_disk)
    with sweep.trial_scope():
        raise UserError("a mistake")
    assert trial_failure(tmp_path / "trial") is None
    with pytest.raises(SystemExit, match="1"):
        sweep.exit_if_failed()
    assert f"{tmp_path}/trial: a mistake" in capsys.readouterr().out
    write_text(tmp_path / "failed.json", "")
    assert trial_failure(tmp_path) == f"{tmp_path}/failed.json cannot be read"


@pytest.mark.slow
def test_evaluate_continues_after_a_failed_trial(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, "good")
    evaluated_runs = []

    def fake_evaluate(config) -> Path:
        evaluated_runs.append(config.run)
        return read_run(config.outputs, config.run)[0]

    monkeypatch.setattr(evaluate, "evaluate", fake_evaluate)
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr("sys.argv", ["src/evaluate.py", "-m", "run=gone,good", f"outputs={tmp_path}"])
    with pytest.raises(SystemExit, match="1"):
        evaluate.main()
    assert evaluated_runs == ["gone", "good"]
    assert f"  {tmp_path}/evaluate/run=gone: no run 'gone' in {tmp_path}/; found good\n" in capsys.readouterr().out
    assert trial_failure(tmp_path / "evaluate" / "run=gone") == f"no run 'gone' in {tmp_path}/; found good"


@pytest.mark.slow
def test_model_of_a_trial_is_freed_before_the_next_trial(run, monkeypatch):
    """A model and its trainer form a reference cycle."""
    models, alive = [], []

    class Model:
        def __init__(self) -> None:
            self.trainer = self

    def fake_train(config) -> Path:
        alive.append([model() for model in models])
        models.append(weakref.ref(Model()))
        return Path("nowhere")

    monkeypatch.setattr(train, "train", fake_train)
    monkeypatch.setattr(train.run_folder, "is_first_rank", lambda: False)
    gc.disable()
    try:
        run("-m", "seed=0,1,2")
    finally:
        gc.enable()
    assert alive == [[], [None], [None, None]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,0"], "error: two trials of this sweep would share the folder '.'; leave one of them out"),
        (
            ["+experiment=mini,breadth", "name=tiny"],
            "error: two trials of this sweep would share the folder '.'; +experiment=mini and +experiment=breadth are not part of the "
            "folder name, so start each without -m",
        ),
        (["sed=0,1"], "error: unknown config key 'sed'; did you mean 'seed'?"),
        (
            ["seed=0,1", "hydra/launcher=submitit"],
            "error: In 'hydra/config': Could not find 'hydra/launcher/submitit' Available options in 'hydra/launcher': basic "
            "submitit_local submitit_slurm",
        ),
        (["seed=0,one"], "error: config key 'seed': Value 'one' of type 'str' could not be converted to Integer"),
    ],
)
def test_mistake_in_any_trial_is_reported_before_the_first_trial(run, words, overrides, message):
    code, _, err = run("-m", *overrides)
    assert (code, err.strip()) == (2, message)
    assert not outputs_folder(words).exists()


@pytest.mark.slow
def test_several_devices_per_trial_are_refused_with_a_command_that_works(run, words):
    code, _, err = run("-m", "seed=0,1", "trainer.devices=2", "trainer.accelerator=gpu", "hydra/launcher=submitit_local")
    assert code == 2
    assert err.startswith("error: -m runs trials on one device, but trainer.devices x trainer.nodes = 2 x 1; under Slurm, with a job ")
    suggested = shlex.split(err.partition("write: python -m src.train ")[2].partition("; elsewhere")[0])
    assert suggested[-4:] == [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.nodes=1",
        "hydra.launcher.tasks_per_node=2",
        "hydra.launcher.gpus_per_node=2",
    ]
    assert len(check_overrides("train", TrainConfig, suggested[1:], multirun=True)) == 2


def test_missing_shards_are_reported_before_the_first_trial(run, words, shards):
    code, _, err = run("-m", "+mix.shares.delta=0,1")
    assert (code, err) == (
        2,
        f"error: mix.shares names delta, but data.root={shards} has no such shards; did you mean 'beta'?; build them with "
        f"`make shards SOURCES=delta RAW=<raw folder> OUT={shards}` or set their share to 0\n",
    )
    assert not outputs_folder(words).exists()


@pytest.mark.slow
def test_failures_of_trials_in_separate_jobs_are_reported(tmp_path):
    """submitit starts a process for each trial; `report` is a command that starts quickly.

    The command runs in a process of its own, because submitit closes files that pytest captures.
    """
    write_run(tmp_path, "good")
    words = ["-m", "runs=good,gone", f"outputs={tmp_path}", "resamples=50", "hydra/launcher=submitit_local"]
    process = processes.start_command("src.report", words, tmp_path / "log", {})
    process.join()
    assert process.exitcode == 1
    assert (tmp_path / "good" / "report.html").exists()
    message = f"runs=gone matches no run in {tmp_path}/; it holds: good"
    lines = (tmp_path / "log").read_text().splitlines()
    start = lines.index("1 trial failed; the same command runs only what is missing:")
    assert lines[start + 1] == f"  {tmp_path}/runs=gone: {message}"


def test_several_values_without_multirun_are_refused(words):
    with pytest.raises(UserError, match=r"^seed=0,1 gives several values, which makes a sweep; add -m, or write a list as \[a,b\]$"):
        check_overrides("train", TrainConfig, [*words, "seed=0,1"])


def test_command_line_replaces_the_sweep_of_an_experiment():
    expanded = expand_experiment_sweep("train", ["+experiment=temperature", "seed=0,1"])
    assert len(sweep.expand_trials(expanded)) == 6
    assert sweep.expand_trials(expanded)[0] == ["mix.temperature=1.0", "+experiment=temperature", "seed=0"]
    replaced = expand_experiment_sweep("train", ["+experiment=temperature", "mix.temperature=3.0"])
    assert sweep.expand_trials(replaced) == [["+experiment=temperature", "mix.temperature=3.0"]]
    assert replaced[-1] == "hydra.sweeper.params=null"


def test_trials_are_named_after_what_varies():
    trials = sweep.expand_trials(["seed=0,1", "optim.steps=20", "+mix.shares.a=1,2", "mix=own"])
    assert sweep.common_keys(trials) == ["mix", "optim.steps"]
    assert sweep.trial_slug(trials[1], common=sweep.common_keys(trials)) == "+mix.shares.a=2,seed=0"
    assert sweep.common_keys(trials[:1]) == []


@pytest.mark.slow
def test_a_common_setting_does_not_change_the_folder_but_a_changed_one_is_refused(run):
    """Another number of steps names the same folders, whose configuration differs."""
    assert run("-m", "seed=0,1")[0] == 0
    code, out, _ = run("-m", "seed=0,1", "optim.clip=2.0")
    assert code == 1
    assert "tiny/seed=0: " in out
    assert "holds a different configuration (optim.clip was" in out


@pytest.mark.slow
def test_hydra_runs_only_the_checked_trials(run, words, monkeypatch):
    """The experiment sweeps over three temperatures; the command line gives one."""
    trained = []
    monkeypatch.setattr(train, "train", lambda config: trained.append((config.name, config.mix.temperature)) or Path("nowhere"))
    monkeypatch.setattr(train.run_folder, "is_first_rank", lambda: False)
    overrides = [word for word in words if not word.startswith("name=")]
    code, _, err = run("-m", *overrides, "+experiment=temperature", "mix.temperature=4.0")
    assert code == 0, err
    assert len(trained) == 1
    assert trained[0][1] == 4.0


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("run=breadth/mix.only=[pathvqa],seed=1", "breadth/mix.only=[pathvqa],seed=1"),
        ("run='a/seed=1'", "a/seed=1"),
        ("run=mini", "mini"),
    ],
)
def test_trial_name_needs_no_quotes(override, name):
    assert compose("evaluate", [normalise_override(override, EvaluateConfig)]).run == name


def test_trial_names_in_a_list_need_quotes():
    with pytest.raises(UserError, match=r"""in a list, quote names that contain '=': 'runs=\["a/seed=0","a/seed=1"\]'$"""):
        check_overrides("report", ReportConfig, [normalise_override("runs=[a/seed=0,b]", ReportConfig)])


def test_trial_folder_is_named_after_the_sorted_overrides():
    assert (
        sweep.trial_slug(["+experiment=mini", "seed=1", "name=a", "mix.shares={a: 1, b: 2}", "hydra/launcher=x"])
        == "mix.shares={a:1,b:2},seed=1"
    )
    assert sweep.trial_slug(["vision.path=a/b"]) == "vision.path=a_b"
    long = [f"optim.steps={'1' * 100}", f"seed={'2' * 60}"]
    assert len(sweep.trial_slug(long)) == sweep.MAX_SLUG_LENGTH
    assert sweep.trial_slug(long) != sweep.trial_slug([*long[:1], f"seed={'2' * 59}3"])


@pytest.mark.parametrize(
    ("words", "quoted"),
    [(["mix.shares={brain:", "1}"], "'mix.shares={brain: 1}'"), (["seed=1", "benchmarks=[a,", "b]"], "'benchmarks=[a, b]'")],
)
def test_value_that_the_shell_split_is_to_be_quoted(words, quoted):
    with pytest.raises(UserError, match=f"the shell split this value at its blanks; quote it: {re.escape(quoted)}$"):
        check_overrides("train", TrainConfig, words)


def test_what_to_run_next_is_ready_for_the_shell(capsys):
    assert follow_up("report", "mini", "outputs") == "python -m src.report runs=mini"
    assert follow_up("evaluate", "sw/seed=0", "my runs") == "python -m src.evaluate run=sw/seed=0 'outputs=my runs'"
    sweep.print_follow_up("sw", "outputs")
    assert capsys.readouterr().out == "next: python -m src.evaluate 'run=sw/*'; python -m src.report 'runs=sw/*'\n"
