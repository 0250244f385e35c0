"""Configurations that are composed on a copy equal those of Hydra."""

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from src.runtime import composition
from src.runtime.composition import compose_config
from src.runtime.paths import CONF

OVERRIDES = [
    [],
    ["seed=1"],
    ["+experiment=mini", "optim.steps=3", "data.root='a=b, c'", "name=null"],
    ["mix=own", "mix.shares={a: 2, b: 1}", "optim.lr={vision: 0, projector: 1e-3}", "optim.lr.vision=2e-5", "trainer=cpu"],
    ["+experiment=small", "trainer.accelerator=gpu", "trainer=cpu"],  # a value stays, wherever the file is chosen
    ["+trainer.extra.fast_dev_run=1", "optim.steps=3"],
    ["++optim.steps=4", "optim.steps=3"],
    ["optim.steps=3", "++optim.steps=4"],
    ["+vision.architecture_kwargs={depth: 1}", "+vision.architecture_kwargs.num_heads=2", "vision.architecture_kwargs.depth=3"],
    ["~optim.warmup", "optim.steps=3"],
    ["data.root=${name}", "hydra.job.chdir=false"],
]


def compose_with_hydra(overrides: list[str]):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_configuration_equals_that_of_hydra(overrides):
    expected = compose_with_hydra(overrides)
    for _ in range(2):
        config = compose_config(CONF, "train", overrides)
        assert config == expected
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(config)
        config.optim.steps = 17  # must not reach the next configuration


@pytest.mark.parametrize("override", ["optim.stps=3", "mix=nothing", "seed=1,2", "optim.lr.vision.a=3", "~optim.stps", "+optim.warmup=1"])
def test_error_is_that_of_hydra(override):
    with pytest.raises(HydraException) as expected:
        compose_with_hydra([override])
    with pytest.raises(HydraException) as error:
        compose_config(CONF, "train", [override])
    assert str(error.value) == str(expected.value)


def test_files_are_read_once_per_choice(monkeypatch):
    composition._compose_files.cache_clear()
    calls = []
    monkeypatch.setattr(composition, "_compose", lambda conf, name, overrides: calls.append(overrides) or compose_with_hydra(overrides))
    for seed in range(3):
        compose_config(CONF, "train", ["mix=own", f"seed={seed}"])
    compose_config(CONF, "train", ["mix=open"])
    assert calls == [["mix=own"], ["mix=open"]]
