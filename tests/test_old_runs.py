"""A run folder and shards written before config keys were renamed and before the data order had a version.

`tests/stored_runs/before_renamed_keys` was written by commit 1312b75. `<folder>` replaces the absolute paths; `step=6.ckpt` is also the
best checkpoint of the run.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from src.ask import ask
from src.config.ask import AskConfig
from src.config.evaluate import EvaluateConfig
from src.config.train import TrainConfig
from src.data.shards import Shards
from src.evaluate import evaluate
from src.model.vlm import build_vlm
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.renamed_keys import RENAMED, translate
from src.runtime.run_folder import flatten, read_run
from src.runtime.schema import to_typed
from src.train import train
from src.training.checkpoint import load_checkpoint, trained_state
from src.training.lightning_module import VLMLightningModule
from tests.fixtures import parts

STORED = Path(__file__).parent / "stored_runs" / "before_renamed_keys"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the stored folder with its own path in place of `<folder>`."""
    copy = Path(shutil.copytree(STORED, tmp_path / "stored"))
    for name in ("config.yaml", "train.json"):
        path = copy / "outputs" / "tiny" / name
        path.write_text(path.read_text().replace("<folder>", str(copy)))
    return copy


@pytest.fixture
def config(folder) -> TrainConfig:
    return to_typed(TrainConfig, OmegaConf.create(read_run(folder / "outputs", "tiny")[1]))


def test_stored_config_is_translated(config):
    stored = yaml.safe_load((STORED / "outputs" / "tiny" / "config.yaml").read_text())
    assert {key for key in RENAMED if "." in key} <= flatten(stored).keys()
    data, trainer = config.data, config.trainer
    assert (data.packing_window, data.global_batch_size, data.max_seq_len) == (32, 8, 160)
    assert (data.val_samples, data.val_generations) == (4, 16)
    assert config.prompt.template == "plain"
    assert (trainer.activation_checkpointing, trainer.val_every, trainer.keep_last, trainer.on_nonfinite) == ("selective", 3, 2, "stop")
    assert list(flatten(translate(stored))) == [RENAMED.get(key, key) for key in flatten(stored)]


def test_translation_leaves_other_keys_and_present_names_unchanged():
    present = {"data": {"max_seq_len": 5, "root": "window"}, "window": 3, "vision": {"architecture_kwargs": {"keep": 1}}}
    assert translate(present) == present


def test_checkpoint_loads_and_has_the_logged_validation_loss(folder, config):
    path = folder / "outputs" / "tiny" / "checkpoints" / "step=6.ckpt"
    stored = torch.load(path, weights_only=True)["state_dict"]
    model, data = parts(config)
    load_checkpoint(model, path)
    restored = trained_state(model)
    assert restored.keys() == stored.keys()
    assert all(torch.equal(restored[name], value) for name, value in stored.items())
    module = VLMLightningModule(model, config, sources=data.mixture.sources, folder=folder)
    logged = list(csv.DictReader((folder / "outputs" / "tiny" / "log.csv").open()))[-1]
    module.on_validation_epoch_start()
    for number, batch in enumerate(data.validation_batches()):
        module.validation_step(batch, number)
    losses = module.validation_losses()
    assert losses == pytest.approx({source: float(logged[f"val/{source}"]) for source in ("alpha", "gamma")}, rel=1e-4)


def test_old_run_can_be_evaluated(folder):
    overrides = ["run=tiny", f"outputs={folder}/outputs", "benchmarks=[alpha,gamma]", "resamples=20", "max_new_tokens=2", "accelerator=cpu"]
    run = evaluate(to_typed(EvaluateConfig, compose("evaluate", overrides)))
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["vqa/alpha/real/all/bleu1"]["n"] == 3
    assert metrics["train/fill"]["n"] == 49
    assert len((run / "predictions" / "alpha.real.jsonl").read_text().splitlines()) == 3


def test_old_run_answers_a_question(folder):
    overrides = ["model=run:tiny", f"outputs={folder}/outputs", "question=what is near the heart?", "max_new_tokens=2", "accelerator=cpu"]
    line = ask(to_typed(AskConfig, compose("ask", overrides)))
    assert line["confidence"] < 0


def test_finished_old_run_is_not_trained_again(folder, config, capsys):
    log = (folder / "outputs" / "tiny" / "log.csv").read_bytes()
    train(config)
    assert "tiny is trained already; choose another name=" in capsys.readouterr().out
    assert (folder / "outputs" / "tiny" / "log.csv").read_bytes() == log


def test_resuming_an_old_run_is_refused_with_advice(folder, config):
    """The order of its data depended on the order of mix.shares."""
    (folder / "outputs" / "tiny" / "train.json").unlink()  # as after an interruption
    with pytest.raises(
        UserError,
        match=r"cannot resume: the checkpoint has version 1 of the data order, this code \d+; .* start a run with another name and "
        r"init=run:<name> to keep its weights",
    ):
        train(config)


@pytest.mark.slow
def test_new_run_starts_from_the_weights_of_an_old_run(folder, config):
    config.name, config.init, config.optim.steps, config.trainer.val_every = "next", "run:tiny", 3, 3
    config.optim.lr.vision = config.optim.lr.projector = 0
    run = train(config)
    old, new = (
        torch.load(path / "checkpoints" / name, weights_only=True)["state_dict"]
        for path, name in ((folder / "outputs" / "tiny", "step=6.ckpt"), (run, "step=3.ckpt"))
    )
    frozen = [name for name in old if not name.startswith("language.")]
    assert all(torch.equal(new[name], old[name]) for name in frozen)
    assert any(not torch.equal(new[name], old[name]) for name in old)
    assert json.loads((run / "lineage.json").read_text())[1]["name"] == "tiny"


@pytest.mark.parametrize(("source", "images"), [("alpha", 1), ("gamma", 0)])
def test_old_shards_yield_their_records(source, images):
    shards = Shards(STORED / "shards" / source)
    assert len(shards) == 18
    records = [shards[row] for row in range(len(shards))]
    assert all(record.question and record.answer and len(record.images) == images for record in records)
    assert {record.source for record in records} == {source}


def test_model_of_the_translated_config_has_the_stored_parts(config):
    model = build_vlm(config)
    stored = json.loads((STORED / "outputs" / "tiny" / "train.json").read_text())["parts"]
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}
    assert counts == {part["part"]: part["parameters"] for part in stored}
