"""The wandb sweep files (the command that an agent starts first) and the wandb dashboard (the object that it uploads)."""

import json
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from experiments.sweeps import dashboard
from src.config.train import TrainConfig
from src.reporting.compare import COLUMNS
from src.runtime import cli
from src.runtime.schema import to_typed
from src.tracking import wandb_run
from tests.stored import write_run

FILES = {path.stem: path for path in sorted((cli.CONF.parent / "experiments" / "sweeps").glob("*.yaml"))}
LOGGED = {"step", "loss", "val", "grad_norm", "data_wait", "samples/s", "tokens/s"}


def first_value(parameter: dict) -> object:
    return parameter["values"][0] if "values" in parameter else parameter["min"]


@pytest.mark.parametrize("name", FILES)
def test_first_trial_composes_as_the_agent_starts_it(name):
    sweep_file = yaml.safe_load(FILES[name].read_text())
    values = {key: {"value": first_value(parameter)} for key, parameter in sweep_file["parameters"].items()}
    args = create_sweep_command_args({"args": values})["args_no_hyphens"]
    words = [word for part in create_sweep_command(sweep_file["command"]) for word in (args if part == "${args_no_hyphens}" else [part])]
    assert words[:4] == ["python", "-m", "src.train", "-m"]
    overrides = words[4:]
    (trial,) = cli.sweep.expand_trials(cli.expand_experiment_sweep("train", overrides))  # one process per trial, each in its own folder
    assert set(args) <= set(trial)
    config = to_typed(TrainConfig, cli.compose("train", trial))
    assert (config.logger.wandb, config.logger.project) == ("online", sweep_file["project"])
    assert cli.sweep.trial_slug(trial).count("=") >= len(args)
    assert sweep_file["metric"]["name"] in LOGGED


@pytest.mark.parametrize(("sweep", "is_used"), [("s1", True), ("", False)])
def test_run_id_of_the_sweep_agent_is_used(tmp_path, monkeypatch, sweep, is_used):
    monkeypatch.setattr(wandb_run, "_open_run", lambda folder, config: nullcontext(MagicMock()))
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
    folder = write_run(tmp_path, "one")
    with wandb_run.training_run(folder, to_typed(TrainConfig, cli.compose("train", ["+experiment=mini", "logger=wandb"]))):
        pass
    assert (json.loads((folder / "wandb.json").read_text())["id"] == "fromagent") == is_used


def test_dashboard_uses_keys_that_runs_have(tmp_path):
    workspace = dashboard.workspace(entity="e", project="p", mix="mini")
    sections = {section.name: section.panels for section in workspace.sections}
    sources = list(cli.compose("train", ["+experiment=mini"]).mix.shares)
    loss = [metric for panel in sections["Loss per source"] for metric in panel.y]
    assert loss == [f"{kind}/{source}" for kind in ("loss", "val") for source in sources]
    assert {metric for panel in sections["Throughput"] for metric in panel.y} <= LOGGED
    assert all(panel.x == "step" for name in ("Loss per source", "Throughput", "Optimisation") for panel in sections[name])
    bars = [metric for panel in sections["Scores"] for metric in panel.metrics]
    folder = write_run(tmp_path, "one")
    metrics = {key.replace("/alpha/", "/pooled/") for key in json.loads((folder / "result.json").read_text())["metrics"]}
    assert set(bars) <= metrics
    assert {f"vqa/pooled/{condition}/{COLUMNS['BLEU-1']}" for condition in ("real", "shuffled", "blank")} <= set(bars)
    assert workspace._to_model().spec.section.panel_bank_config.sections[0].panels  # the uploaded object


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "entity= is missing; give entity=..."),
        (["entity=me", "mix=mni"], "mix='mni'; did you mean 'mini'?"),
        (["entity=me", "projct=x"], "unknown key 'projct'; did you mean 'project'?"),
        (["entity=me"], "logger.wandb=online, but nobody is logged in"),
    ],
)
def test_mistake_of_the_dashboard_command_gives_error(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        dashboard.main(arguments)
    assert message in capsys.readouterr().err
