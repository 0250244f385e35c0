"""experiments/shuffle: the commands of the trials, and the table from rows that are counted by hand."""

from pathlib import Path

from experiments.shuffle.loss_curves import ShuffleConfig, train_words, validations
from experiments.shuffle.table import loss_curves
from src.config.train import TrainConfig
from src.runtime.cli import compose
from src.runtime.schema import to_typed


def test_trials_differ_in_shuffle_seed_and_name_only():
    config = ShuffleConfig(["slake", "vqa_med_2019"], Path("raw"), Path("out"), steps=40, every=20)
    first, second = (
        to_typed(TrainConfig, compose("train", train_words(config, mode, seed, "x"))) for mode, seed in (("global", 0), ("blocks", 1))
    )
    assert (first.data.shuffle, second.data.shuffle, first.seed, second.seed) == ("global", "blocks", 0, 1)
    assert (first.optim.steps, first.trainer.val_every, first.mix.shares) == (40, 20, {"slake": 1.0, "vqa_med_2019": 1.0})
    second.data.shuffle, second.seed = first.data.shuffle, first.seed
    assert first == second


def test_table_has_means_and_differences_of_equal_seeds(tmp_path):
    values = {("global", "0"): "4.0", ("global", "1"): "5.0", ("blocks", "0"): "4.25", ("blocks", "1"): "4.5"}
    rows = [{"shuffle": mode, "seed": seed, "step": "25", "val": val} for (mode, seed), val in values.items()]
    assert loss_curves(rows) == [
        {"step": "25", "global": "4.500 (0.707)", "blocks": "4.375 (0.177)", "blocks - global, per seed": "+0.250, -0.500"}
    ]
    (tmp_path / "log.csv").write_text("step,val\n5,\n10,4.5\n")
    assert [row["step"] for row in validations(tmp_path / "log.csv")] == ["10"]
