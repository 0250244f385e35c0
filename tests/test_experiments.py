"""Every experiment is a short delta whose own keys win, and each of its trials trains three steps on phantoms."""

from pathlib import Path

import pytest
import yaml

from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import FULL, OPEN
from data_prep.shards import build_all
from src.config.train import TrainConfig
from src.config.train_rules import check_train_config
from src.runtime import sweep
from src.runtime.cli import CONF, compose, expand_experiment_sweep
from src.runtime.schema import to_typed
from src.train import train

FILES = {path.stem: path for path in sorted((CONF / "experiment").glob("*.yaml"))}
ABLATIONS = [name for name in FILES if "- mini\n" in FILES[name].read_text()]
SECOND = ("finetune_pathvqa", "finetune_vqa_med")  # start from what full_mix trained


def trials(name: str) -> list[list[str]]:
    words = [f"+experiment={name}", *(["mix.shares={pathvqa: 1}"] if name == "own_data" else [])]
    return sweep.expand_trials(expand_experiment_sweep("train", words))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Shards of all eighteen sources of the mixes, a few records of each."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    writers = FULL | OPEN
    for name, writer in writers.items():
        (raw / name).mkdir()
        writer.write(raw / name, seed=0, num={split: min(size, 24 if split == "train" else 4) for split, size in writer.SIZES.items()})
    build_all(BuildConfig(sources=list(writers), raw=raw, out=out, workers=1, quarantine_limit=1))
    return out


@pytest.fixture(scope="module")
def small(phantoms, language, tmp_path_factory) -> list[str]:
    """Overrides that leave an experiment its mix, its schedule and what it sets, and make its parts tiny."""
    return [
        f"outputs={tmp_path_factory.mktemp('outputs')}",
        f"data.root={phantoms}",
        "data.packing_window=32",
        "data.global_batch_size=16",
        "data.max_seq_len=512",
        "data.workers=0",
        "data.val_samples=2",
        "data.val_generations=1",
        "vision.format=scratch",
        "vision.path=''",
        "vision.architecture=vit_tiny_patch16_224",
        "vision.image_size=32",
        "+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}",
        f"language.path={language}",
        "language.dtype=float32",
        "trainer=cpu",
        "trainer.accumulate=1",
        "optim.steps=3",
        "optim.warmup=1",
    ]


def tiny(point: list[str], small: list[str]) -> list[str]:
    """A trial with those overrides; a swept path becomes that of the tiny model."""
    given = {word.partition("=")[0] for word in small}
    return [word for word in point if word.partition("=")[0] not in given] + small


@pytest.mark.parametrize("name", FILES)
def test_own_keys_win(name):
    """A key that the file sets is what the run gets, whatever its base says."""
    own = {key: value for key, value in yaml.safe_load(FILES[name].read_text()).items() if key not in ("defaults", "hydra")}
    words = [f"+experiment={name}"] + (["mix.shares={a: 1}"] if name == "own_data" else [])
    composed = compose("train", words)

    def check(mine, found, where):
        for key, value in mine.items():
            if isinstance(value, dict):
                check(value, found[key], f"{where}{key}.")
            else:
                assert found[key] == (float(value) if isinstance(found[key], float) else value), f"{where}{key}"

    check(own, composed, "")


@pytest.mark.parametrize("name", FILES)
def test_every_trial_differs_in_one_setting(name):
    points = trials(name)
    sweep.check_trials(points)
    for point in points:
        assert len(point) <= 2, "the experiment and one swept value"
        to_typed(TrainConfig, compose("train", point))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_trial_trains_three_steps(name, small):
    """A run that starts from another one is trained after it."""
    for experiment in ["full_mix", name] if name in SECOND else [name]:
        for number, point in enumerate(trials(experiment)):
            where = f"name={experiment}" if number == 0 else f"name={experiment}{number}"
            config = to_typed(TrainConfig, compose("train", [*tiny(point, small), where]))
            check_train_config(config)
            assert (train(config) / "result.json").exists(), point


@pytest.mark.slow
def test_sources_of_a_mix_can_be_narrowed_and_evened_out(configure):
    mix = configure("mix.only=[alpha,beta]", "mix.leave_out=[beta]").mix
    assert mix.sampling_weights == {"alpha": 2.0}
    assert configure().mix.sampling_weights == {"alpha": 2.0, "beta": 1.0, "gamma": 1.0}
    assert configure("mix.temperature=2").mix.sampling_weights["alpha"] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mix.only=[alhpa]", "mix.only names 'alhpa', which mix.shares does not have; did you mean 'alpha'?"),
        ("mix.leave_out=[alpha,beta,gamma]", "leave no source with a positive share"),
        ("mix.temperature=0", "mix.temperature must be at least 0.1, found 0"),
    ],
)
def test_bad_input(configure, override, said):
    from src.runtime.errors import UserError

    with pytest.raises(UserError) as error:
        check_train_config(configure(override))
    assert said in str(error.value)
