"""experiments/mini: the mini run fails if the model does not need its images."""

import json
from dataclasses import replace

import pytest

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.phantom.__main__ import PhantomConfig
from data_prep.phantom.weights.__main__ import PhantomWeightsConfig
from data_prep.phantom.writers import vqa_rad
from data_prep.shards import build_all
from experiments.mini import run
from src.config.evaluate import EvaluateConfig
from src.config.report import ReportConfig
from src.config.train import TrainConfig
from src.config.train_rules import check_values
from src.config.transfer import TransferConfig
from src.data.shards import Shards
from src.data.train_val_split import split_rows
from src.runtime.arguments import parse_arguments
from src.runtime.cli import compose, normalise_override
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

SCHEMAS = {
    "data_prep.phantom": PhantomConfig,
    "data_prep.shards": BuildConfig,
    "data_prep.audit": AuditConfig,
    "data_prep.phantom.weights": PhantomWeightsConfig,
    "src.train": TrainConfig,
    "src.evaluate": EvaluateConfig,
    "src.transfer": TransferConfig,
    "src.report": ReportConfig,
}


def small_configs() -> dict:
    """Module -> configuration of each command of the small mini run."""
    configs = {}
    for _, commands in run.STAGES.values():
        for command in commands:
            module, *words = f"{command} {run.SMALL.get(command.split()[0], '')}".split()
            schema, verb = SCHEMAS[module], module.rpartition(".")[2]
            if module.startswith("data_prep"):
                configs[module] = parse_arguments(schema, words)
            else:
                configs[module] = to_typed(schema, compose(verb, [normalise_override(word, schema) for word in words]))
    return configs


def test_small_run_has_a_valid_configuration_per_command():
    configs = small_configs()
    assert configs.keys() == SCHEMAS.keys()
    assert configs.keys() >= run.SMALL.keys()
    check_values(configs["src.train"])
    assert set(configs["src.train"].mix.sampling_weights) <= set(configs["data_prep.shards"].sources)


@pytest.mark.slow
def test_small_run_leaves_out_the_source_whose_records_all_leak(tmp_path):
    """At the scale of the small run, every training image of vqa_rad is also a test image."""
    configs = small_configs()
    scale, mix = configs["data_prep.phantom"].scale, configs["src.train"].mix
    (tmp_path / "raw/vqa_rad").mkdir(parents=True)
    vqa_rad.write(tmp_path / "raw/vqa_rad", seed=0, num=vqa_rad.SIZES | {"train": max(4, round(vqa_rad.SIZES["train"] * scale))})
    build_all(BuildConfig(["vqa_rad"], tmp_path / "raw", tmp_path / "shards", workers=1, quarantine_limit=0.2))
    audit_all(AuditConfig(out=tmp_path / "shards"))
    with pytest.raises(UserError, match="no training record of 'vqa_rad' may be used"):
        split_rows({"vqa_rad": Shards(tmp_path / "shards/vqa_rad")}, replace(mix, leave_out=[]), val_samples=0)
    assert mix.shares["vqa_rad"] > 0
    assert "vqa_rad" not in mix.sampling_weights


def metrics(shuffled: float, blank: float) -> dict:
    lows = {"shuffled": shuffled, "blank": blank}
    return {f"vqa/pooled/real_minus_{other}/all/bleu1": {"value": 0.3, "low": low, "high": 0.5, "n": 90} for other, low in lows.items()}


def test_correct_images_must_beat_shuffled_and_blank_ones():
    assert run.check_images_help(metrics(0.1, 0.2)) is None
    error_text = run.check_images_help(metrics(0.1, 0.0))
    assert error_text == "no significant gain of correct over blank images: BLEU-1 of all questions, real - blank, 0.30 [0.00, 0.50]"
    assert "real - shuffled" in run.check_images_help(metrics(-0.1, 0.2))


def test_no_error_if_a_condition_was_not_evaluated():
    assert run.check_images_help({}) is None
    values = metrics(-0.1, 0.2)
    values.pop("vqa/pooled/real_minus_blank/all/bleu1")
    assert run.check_images_help(values) is None


@pytest.mark.parametrize(("args", "low", "code"), [([], 0.1, 0), ([], -0.1, 1), (["small=true"], -0.1, 0)])
def test_exit_code_is_one_if_images_do_not_help(tmp_path, monkeypatch, capsys, args, low, code):
    """A small run is not checked, because its scores mean nothing."""
    monkeypatch.setattr(run, "run_command", lambda command: 0)
    monkeypatch.setattr(run, "RESULT", tmp_path / "result.json")
    run.RESULT.write_text(json.dumps({"metrics": metrics(low, 0.2), "peak_rss_mb": 1.0}))
    assert run.main(args) == code
    assert ("error: no significant gain of correct over" in capsys.readouterr().err) == bool(code)
