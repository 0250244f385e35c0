import gc
import json
import shlex
import weakref
from pathlib import Path

import pytest
from lightning.fabric.plugins.io import torch_io

from src import evaluate, report, train
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.config.train import TrainConfig
from src.runtime import sweep
from src.runtime.cli import check_overrides, compose, expand_experiment_sweep, normalise_override
from src.runtime.errors import UserError
from src.runtime.run_folder import read_run, trial_failure
from tests.stored import write_run


@pytest.fixture
def run(words, monkeypatch, capsys):
    """`run("-m", "seed=0,1")` is the command line; gives the exit code and what it printed."""

    def command(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["src/train.py", *words, *more])
        monkeypatch.setattr(sweep, "failures", {})
        try:
            train.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def outputs(words) -> Path:
    return Path(next(word for word in words if word.startswith("outputs=")).partition("=")[2])


@pytest.mark.slow
def test_a_full_disk_costs_one_trial_and_only_what_is_missing_runs_again(run, words, monkeypatch):
    """The disk is full when the second of three trials writes its first checkpoint."""
    write, full = torch_io._atomic_save, True

    def save(checkpoint, path):
        if full and checkpoint["config"]["seed"] == 1:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        write(checkpoint, path)

    monkeypatch.setattr(torch_io, "_atomic_save", save)
    code, out, err = run("-m", "seed=0,1,2")
    assert code == 1, err[-600:]
    folders = [outputs(words) / "tiny" / sweep.trial_slug([*words, f"seed={seed}"]) for seed in range(3)]
    assert "1 trial failed; the same command runs only what is missing" in out
    assert [(folder / "result.json").exists() for folder in folders] == [True, False, True]
    assert [list(folder.glob("checkpoints/*")) == [] for folder in folders] == [False, True, False]
    assert "No space left" in json.loads((folders[1] / "failed.json").read_text())["error"]
    assert json.loads((folders[0] / "result.json").read_text())["name"] == f"tiny/{folders[0].name}"

    full, before = False, (folders[0] / "train.json").read_bytes()
    code, out, _ = run("-m", "seed=0,1,2")
    assert code == 0
    assert out.count("is trained already") == 2
    assert (folders[0] / "train.json").read_bytes() == before
    assert not (folders[1] / "failed.json").exists()
    assert (folders[1] / "result.json").exists()


@pytest.mark.slow
def test_where_not_even_the_failure_can_be_written_the_sweep_goes_on(tmp_path, monkeypatch, capsys):
    """What is there afterwards can be read."""
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr(sweep, "trial_folder", lambda: tmp_path / "trial")
    monkeypatch.setattr(sweep, "is_in_process", lambda: True)
    write = Path.write_text

    def full(path: Path, text: str) -> None:
        write(path, "")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with sweep.trial_scope():
        raise UserError("a mistake")
    assert trial_failure(tmp_path / "trial") is None
    with pytest.raises(SystemExit, match="1"):
        sweep.exit_if_failed()
    assert f"{tmp_path}/trial: a mistake" in capsys.readouterr().out
    write(tmp_path / "failed.json", "")
    assert trial_failure(tmp_path) == f"{tmp_path}/failed.json cannot be read"


@pytest.mark.slow
def test_every_verb_goes_on_after_a_failed_trial(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, "good")
    answered = []

    def answer(config) -> Path:
        answered.append(config.run)
        return read_run(config.outputs, config.run)[0]

    monkeypatch.setattr(evaluate, "evaluate", answer)
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr("sys.argv", ["src/evaluate.py", "-m", "run=gone,good", f"outputs={tmp_path}"])
    with pytest.raises(SystemExit, match="1"):
        evaluate.main()
    assert answered == ["gone", "good"]
    assert f"  {tmp_path}/evaluate/run=gone: no run 'gone' in {tmp_path}/; found good\n" in capsys.readouterr().out
    assert trial_failure(tmp_path / "evaluate" / "run=gone") == f"no run 'gone' in {tmp_path}/; found good"


@pytest.mark.slow
def test_the_model_of_a_trial_is_gone_when_the_next_begins(run, monkeypatch):
    """Model and trainer know each other."""
    models, alive = [], []

    class Model:
        def __init__(self) -> None:
            self.trainer = self

    def trained(config) -> Path:
        alive.append([model() for model in models])
        models.append(weakref.ref(Model()))
        return Path("nowhere")

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(train.run_folder, "is_first_rank", lambda: False)
    gc.disable()
    try:
        run("-m", "seed=0,1,2")
    finally:
        gc.enable()
    assert alive == [[], [None], [None, None]]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0,0"], "error: two trials of this sweep would share the folder '{folder}'; leave one of them out"),
        (
            ["+experiment=mini,breadth", "name=tiny"],
            "error: two trials of this sweep would share the folder '{same}': +experiment=mini and +experiment=breadth give a trial no "
            "name; start each without -m",
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
def test_a_mistake_in_any_trial_ends_the_sweep_before_the_first(run, words, overrides, said):
    code, _, err = run("-m", *overrides)
    assert (code, err.strip()) == (2, said.format(folder=sweep.trial_slug([*words, "seed=0"]), same=sweep.trial_slug(words)))
    assert not outputs(words).exists()


@pytest.mark.slow
def test_several_devices_per_trial_are_refused_with_the_command_that_works(run, words):
    code, _, err = run("-m", "seed=0,1", "trainer.devices=2", "trainer.accelerator=gpu", "hydra/launcher=submitit_local")
    assert code == 2
    assert err.startswith("error: -m runs trials on one device, but trainer.devices x trainer.nodes = 2 x 1; under Slurm, with a job ")
    said = shlex.split(err.partition("write: python -m src.train ")[2].partition("; elsewhere")[0])
    assert said[-4:] == [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.nodes=1",
        "hydra.launcher.tasks_per_node=2",
        "hydra.launcher.gpus_per_node=2",
    ]
    assert len(check_overrides("train", TrainConfig, said[1:], many=True)) == 2


def test_a_source_that_is_not_built_ends_the_sweep_before_the_first(run, words, shards):
    code, _, err = run("-m", "+mix.shares.delta=0,1")
    assert (code, err) == (
        2,
        f"error: mix.shares names delta, but data.root={shards} has no such shards; did you mean 'beta'?; build them with "
        f"`make shards SOURCES=delta RAW=<raw folder> OUT={shards}` or set their share to 0\n",
    )
    assert not outputs(words).exists()


@pytest.mark.slow
def test_of_trials_that_are_jobs_of_their_own_every_failure_is_told(tmp_path, monkeypatch, capsys):
    """submitit starts a process for each trial, of a verb that starts quickly."""
    write_run(tmp_path, "good")
    monkeypatch.setattr(sweep, "failures", {})
    words = ["runs=good,gone", f"outputs={tmp_path}", "resamples=50", "hydra/launcher=submitit_local"]
    monkeypatch.setattr("sys.argv", ["src/report.py", "-m", *words])
    with pytest.raises(SystemExit, match="1"):
        report.main()
    assert (tmp_path / "good" / "report.html").exists()
    said = f"runs=gone finds no run in {tmp_path}/; it holds: good"
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 trial failed; the same command runs only what is missing:",
        f"  {tmp_path}/resamples=50,runs=gone: {said}",
    ]


def test_several_values_without_a_sweep_are_refused(words):
    with pytest.raises(UserError, match=r"^seed=0,1 gives several values, which makes a sweep; add -m, or write a list as \[a,b\]$"):
        check_overrides("train", TrainConfig, [*words, "seed=0,1"])


def test_an_experiment_may_bring_its_own_sweep_and_the_command_line_replaces_it():
    own = expand_experiment_sweep("train", ["+experiment=temperature", "seed=0,1"])
    assert len(sweep.expand_trials(own)) == 6
    assert sweep.expand_trials(own)[0] == ["mix.temperature=1.0", "+experiment=temperature", "seed=0"]
    one = expand_experiment_sweep("train", ["+experiment=temperature", "mix.temperature=3.0"])
    assert sweep.expand_trials(one) == [["+experiment=temperature", "mix.temperature=3.0"]]
    assert one[-1] == "hydra.sweeper.params=null"


@pytest.mark.slow
def test_hydra_runs_the_trials_that_were_checked(run, words, monkeypatch):
    """The experiment sweeps over three temperatures; the command line asks for one."""
    ran = []
    monkeypatch.setattr(train, "train", lambda config: ran.append((config.name, config.mix.temperature)) or Path("nowhere"))
    monkeypatch.setattr(train.run_folder, "is_first_rank", lambda: False)
    own = [word for word in words if not word.startswith("name=")]
    code, _, err = run("-m", *own, "+experiment=temperature", "mix.temperature=4.0")
    assert code == 0, err
    assert len(ran) == 1
    assert ran[0][1] == 4.0


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run=breadth/mix.only=[pathvqa],seed=1", "breadth/mix.only=[pathvqa],seed=1"),
        ("run='a/seed=1'", "a/seed=1"),
        ("run=mini", "mini"),
    ],
)
def test_the_name_of_a_trial_needs_no_quotes(word, value):
    assert compose("evaluate", [normalise_override(word, EvaluateConfig)]).run == value


def test_names_of_trials_in_a_list_do():
    with pytest.raises(UserError, match=r"""in a list, names that hold '=' are quoted: 'runs=\["a/seed=0","a/seed=1"\]'$"""):
        check_overrides("report", ReportConfig, [normalise_override("runs=[a/seed=0,b]", ReportConfig)])


def test_the_folder_of_a_trial_is_its_overrides_sorted():
    assert (
        sweep.trial_slug(["+experiment=mini", "seed=1", "name=a", "mix.shares={a: 1, b: 2}", "hydra/launcher=x"])
        == "mix.shares={a:1,b:2},seed=1"
    )
    assert sweep.trial_slug(["vision.path=a/b"]) == "vision.path=a_b"
    long = [f"optim.steps={'1' * 100}", f"seed={'2' * 60}"]
    assert len(sweep.trial_slug(long)) == sweep.LONGEST
    assert sweep.trial_slug(long) != sweep.trial_slug([*long[:1], f"seed={'2' * 59}3"])
