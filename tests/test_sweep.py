import json
from pathlib import Path

import pytest

from src import sweep, train
from src.cli import check, compose, spelt_out, spoken
from src.config import Evaluate, Report, Train
from src.errors import UserError


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
def test_a_failed_trial_is_recorded_and_only_what_is_missing_runs_again(run, words, monkeypatch):
    real, broken = train.build, True

    def build(config):
        if broken and config.seed == 1:
            raise OSError(28, "No space left on device")
        return real(config)

    monkeypatch.setattr(train, "build", build)
    code, out, err = run("-m", "seed=0,1,2")
    assert code == 1, err[-600:]
    folders = [outputs(words) / "tiny" / sweep.slug([*words, f"seed={seed}"]) for seed in range(3)]
    assert code == 1
    assert "1 trial failed; the same command runs only what is missing" in out
    assert [(folder / "result.json").exists() for folder in folders] == [True, False, True]
    assert "No space left" in json.loads((folders[1] / "failed.json").read_text())["error"]
    assert json.loads((folders[0] / "result.json").read_text())["name"] == f"tiny/{folders[0].name}"

    broken, before = False, (folders[0] / "train.json").read_bytes()
    code, out, _ = run("-m", "seed=0,1,2")
    assert code == 0
    assert out.count("is trained already") == 2
    assert (folders[0] / "train.json").read_bytes() == before
    assert not (folders[1] / "failed.json").exists()
    assert (folders[1] / "result.json").exists()


@pytest.mark.slow
def test_a_full_disk_in_trial_seven_of_twelve_costs_one_trial(run, words, monkeypatch):
    ran = []

    def full(config):
        ran.append(config.seed)
        if config.seed == 6:
            raise OSError(28, "No space left on device")
        return Path("nowhere")

    monkeypatch.setattr(train, "train", full)
    monkeypatch.setattr(train.run, "first_rank", lambda: False)
    code, out, _ = run("-m", "seed=range(12)")
    assert (code, ran) == (1, list(range(12)))
    assert out.count("No space left on device") == 2  # where it happened, and at the end


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0,0"], "error: two trials of this sweep would share the folder '{folder}'; leave one of them out"),
        (["sed=0,1"], "error: unknown config key 'sed'; did you mean 'seed'?"),
        (["seed=0,one"], "error: config key 'seed': Value 'one' of type 'str' could not be converted to Integer"),
        (
            ["seed=0,1", "trainer.devices=2"],
            "error: -m runs trials one after another on one device, but trainer.devices x trainer.nodes = 2 x 1; "
            "add hydra/launcher=submitit_local (or submitit_slurm), or set trainer.devices=1",
        ),
    ],
)
def test_a_mistake_in_any_trial_ends_the_sweep_before_the_first(run, words, overrides, said):
    code, _, err = run("-m", *overrides)
    assert (code, err.strip()) == (2, said.replace("{folder}", sweep.slug([*words, "seed=0"])))
    assert not outputs(words).exists()


def test_a_source_that_is_not_built_ends_the_sweep_before_the_first(run, words):
    code, _, err = run("-m", "mix.shares.delta=0,1")
    assert code == 2
    assert "mix.shares" in err
    assert "delta" in err
    assert not outputs(words).exists()


def test_several_values_without_a_sweep_are_refused(words):
    with pytest.raises(UserError, match=r"^seed=0,1 gives several values, which makes a sweep; add -m, or write a list as \[a,b\]$"):
        check("train", Train, [*words, "seed=0,1"])


def test_an_experiment_may_bring_its_own_sweep_and_the_command_line_replaces_it():
    own = spelt_out("train", ["+experiment=temperature", "seed=0,1"])
    assert len(sweep.points(own)) == 6
    assert sweep.points(own)[0] == ["mix.temperature=1.0", "+experiment=temperature", "seed=0"]
    one = spelt_out("train", ["+experiment=temperature", "mix.temperature=3.0"])
    assert sweep.points(one) == [["+experiment=temperature", "mix.temperature=3.0"]]
    assert one[-1] == "hydra.sweeper.params=null"


@pytest.mark.slow
def test_hydra_runs_the_trials_that_were_checked(run, words, monkeypatch):
    """The experiment sweeps over three temperatures; the command line asks for one."""
    ran = []
    monkeypatch.setattr(train, "train", lambda config: ran.append((config.name, config.mix.temperature)) or Path("nowhere"))
    monkeypatch.setattr(train.run, "first_rank", lambda: False)
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
    assert compose("evaluate", [spoken(word, Evaluate)]).run == value


def test_names_of_trials_in_a_list_do():
    with pytest.raises(UserError, match=r"""in a list, names that hold '=' are quoted: 'runs=\["a/seed=0","a/seed=1"\]'$"""):
        check("report", Report, [spoken("runs=[a/seed=0,b]", Report)])


def test_the_folder_of_a_trial_is_its_overrides_sorted():
    assert (
        sweep.slug(["+experiment=mini", "seed=1", "name=a", "mix.shares={a: 1, b: 2}", "hydra/launcher=x"]) == "mix.shares={a:1,b:2},seed=1"
    )
    assert sweep.slug(["vision.path=a/b"]) == "vision.path=a_b"
    long = [f"optim.steps={'1' * 100}", f"seed={'2' * 60}"]
    assert len(sweep.slug(long)) == sweep.LONGEST
    assert sweep.slug(long) != sweep.slug([*long[:1], f"seed={'2' * 59}3"])
