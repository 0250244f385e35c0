"""conf/experiment: the keys of every experiment take effect, and each of its trials trains three steps on phantoms."""

from pathlib import Path

import pytest
import yaml

from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import WRITERS
from data_prep.shards import build_all
from experiments.ablations import run
from src.config.train import TrainConfig
from src.config.train_rules import check_train_config
from src.runtime import sweep
from src.runtime.cli import CONF, compose, expand_experiment_sweep
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.train import train

FILES = {path.stem: path for path in sorted((CONF / "experiment").glob("*.yaml"))}
ABLATIONS = [name for name in FILES if "- mini\n" in FILES[name].read_text()]
FINETUNING = ("finetune_pathvqa", "finetune_vqa_med")  # start from the run of recommended
MIXES = {path.stem: yaml.safe_load(path.read_text())["shares"] for path in (CONF / "mix").glob("*.yaml")}


def trials(name: str) -> list[list[str]]:
    words = [f"+experiment={name}", *(["mix.shares={pathvqa: 1}"] if name == "own_data" else [])]
    return sweep.expand_trials(expand_experiment_sweep("train", words))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Shards of all sources of the mixes, with a few records each."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    names = {name for mix, shares in MIXES.items() if mix != "own" for name in shares}
    writers = {name: WRITERS[name] for name in names}
    for name, writer in writers.items():
        (raw / name).mkdir()
        writer.write(raw / name, seed=0, num={split: min(size, 24 if split == "train" else 4) for split, size in writer.SIZES.items()})
    build_all(BuildConfig(sources=list(writers), raw=raw, out=out, workers=1, quarantine_limit=1))
    return out


@pytest.fixture(scope="module")
def small(phantoms, language, tmp_path_factory) -> list[str]:
    """Overrides that make the model and data tiny and keep the mix, schedule and other settings of an experiment."""
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
        "optim.epochs=null",
        "optim.warmup=1",
    ]


def shrink(trial: list[str], small: list[str]) -> list[str]:
    """The overrides of a trial plus `small`, which also replaces a swept model path."""
    keys = {word.partition("=")[0] for word in small}
    return [word for word in trial if word.partition("=")[0] not in keys] + small


@pytest.mark.parametrize("name", FILES)
def test_keys_of_an_experiment_take_effect(name):
    """A run gets every value that the file sets, whatever its base config sets."""
    own = {key: value for key, value in yaml.safe_load(FILES[name].read_text()).items() if key not in ("defaults", "hydra")}
    words = [f"+experiment={name}"] + (["mix.shares={a: 1}"] if name == "own_data" else [])
    composed = compose("train", words)

    def check(expected, actual, prefix):
        for key, value in expected.items():
            if isinstance(value, dict):
                check(value, actual[key], f"{prefix}{key}.")
            else:
                assert actual[key] == (float(value) if isinstance(actual[key], float) else value), f"{prefix}{key}"

    check(own, composed, "")


@pytest.mark.parametrize("name", FILES)
def test_every_trial_differs_in_one_setting(name):
    all_overrides = trials(name)
    sweep.check_trials(all_overrides)
    for overrides in all_overrides:
        assert len(overrides) <= 2 or name == "tune_rates", "the experiment and one swept value; a search sets all of its keys"
        to_typed(TrainConfig, compose("train", overrides))


@pytest.mark.slow
def test_compared_recipes_keep_their_values_and_cost_the_same():
    """Only what the small models need differs from the recipes at full size."""
    samples = set()
    for small, full in (("mini_paper", "full_mix"), ("mini_recommended", "recommended")):
        mini, recipe = compose("train", [f"+experiment={small}"]), compose("train", [f"+experiment={full}"])
        samples.add(mini.optim.steps * mini.data.global_batch_size)
        assert mini.projector == recipe.projector
        assert mini.data.global_batch_size == recipe.data.global_batch_size
        for key in ("schedule", "weight_decay", "betas", "clip"):
            assert mini.optim[key] == recipe.optim[key]
        assert {part: rate / 10 for part, rate in mini.optim.lr.items()} == pytest.approx(dict(recipe.optim.lr))
        assert mini.callbacks.early_stopping is None
    assert len(samples) == 1


@pytest.mark.slow
def test_commands_of_a_comparison_name_every_trial():
    *prepare, recommended, paper, evaluate, report = run.commands("recipes")
    assert all(command.startswith("data_prep.") for command in prepare)
    assert recommended == "src.train -m +experiment=mini_recommended seed=0,1,2"
    assert paper == "src.train -m +experiment=mini_paper seed=0,1,2"
    runs = [f"recipes/{recipe}/seed={seed}" for recipe in ("recommended", "paper") for seed in range(3)]
    assert evaluate.endswith(" run=" + ",".join(f'"{name}"' for name in runs))
    assert report == f"src.report runs=recipes/** baseline='{runs[0]}'"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_trial_trains_three_steps(name, small):
    """The fine-tuning experiments start from the run of recommended, which is trained first."""
    for experiment in ["recommended", name] if name in FINETUNING else [name]:
        for number, overrides in enumerate(trials(experiment)):
            run_name = f"name={experiment}" if number == 0 else f"name={experiment}{number}"
            config = to_typed(TrainConfig, compose("train", [*shrink(overrides, small), run_name]))
            check_train_config(config)
            assert (train(config) / "result.json").exists(), overrides


@pytest.mark.slow
def test_mix_options_select_sources_and_flatten_shares(configure):
    mix = configure("mix.only=[alpha,beta]", "mix.leave_out=[beta]").mix
    assert mix.sampling_weights == {"alpha": 2.0}
    assert configure().mix.sampling_weights == {"alpha": 2.0, "beta": 1.0, "gamma": 1.0}
    assert configure("mix.temperature=2").mix.sampling_weights["alpha"] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mix.only=[alhpa]", "mix.only names 'alhpa', which mix.shares does not have; did you mean 'alpha'?"),
        ("mix.leave_out=[alpha,beta,gamma]", "leave no source with a positive share"),
        ("mix.temperature=0", "mix.temperature must be at least 0.1, found 0"),
    ],
)
def test_invalid_mix_options_are_reported(configure, override, expected):
    with pytest.raises(UserError) as error:
        check_train_config(configure(override))
    assert expected in str(error.value)
