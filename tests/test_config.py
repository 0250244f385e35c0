"""Every mistake in a configuration gives a one-line error with the key, what was found and what is allowed."""

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from src.config.evaluate import EvaluateConfig
from src.config.train import TrainConfig
from src.config.train_rules import check_train_config
from src.runtime.cli import CONF, check_overrides, compose
from src.runtime.errors import UserError
from src.runtime.renamed_keys import RENAMED
from src.runtime.run_folder import flatten
from src.runtime.schema import to_plain, to_typed


def error_of(overrides: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        check_overrides("train", TrainConfig, overrides, validate=check_train_config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.stepz=3", "unknown config key 'optim.stepz'; did you mean 'optim.steps'?"),
        ("optim.lr.visoin=3", "unknown config key 'optim.lr.visoin'; did you mean 'optim.lr.vision'?"),
        ("+optim.step=3", "unknown config key 'optim.step'; did you mean 'steps'?"),
        ("optim.steps=many", "config key 'optim.steps': Value 'many' of type 'str' could not be converted to Integer"),
        ("data.exact_decode=maybe", "config key 'data.exact_decode': Value 'maybe' is not a valid bool (type str)"),
        ("mix.shares=3", "config key 'mix.shares': Cannot assign int to Dict[str, float]"),
        ("vision=scrtch", "vision=scrtch names no file in conf/vision; did you mean 'scratch'?"),
        ("experiment=mini", "experiment=mini: conf/train.yaml has no default experiment; write +experiment=mini"),
        ("seed=1,2", "seed=1,2 gives several values, which makes a sweep; add -m, or write a list as [a,b]"),
        ("optim.steps=0", "optim.steps must be at least 1, found 0"),
        ("optim.epochs=2", "give one of optim.steps=6 and optim.epochs=2.0, and set the other to null"),
        (
            "language.dtype=nf4",
            "language.dtype=nf4: 4-bit weights are not supported, because adapters trained on rounded weights do",
        ),
        ("trainer.strategy=fsdp2", "trainer.strategy=fsdp2: FSDP is not supported, because a frozen 7B model fits one device"),
        ("data.shuffle=no", "data.shuffle='no'; allowed: blocks, global"),
        ("trainer.on_nonfinite=ignore", "trainer.on_nonfinite='ignore'; allowed: skip, stop"),
        ("trainer.activation_checkpointing=ful", "trainer.activation_checkpointing='ful'; did you mean 'full'?"),
        ("projector.kind=mpl", "projector.kind='mpl'; did you mean 'mlp'?"),
        ("optim.betas=[0.9]", "optim.betas must be two numbers from 0 to below 1, found [0.9]"),
        ("optim.schedule=cosin", "optim.schedule='cosin'; did you mean 'cosine'?"),
        ("trainer.precision=bf16-mix", "trainer.precision='bf16-mix'; did you mean 'bf16-mixed'?"),
        ("trainer.devices=0", "trainer.devices must be at least 1, found 0"),
        ("trainer.keep_last=0", "trainer.keep_last must be at least 1, found 0"),
        ("data.max_seq_len=15", "data.max_seq_len must be at least 16, found 15"),
        ("seed=-1", "seed must be at least 0, found -1"),
        ("seed=4294967296", "seed must be below 4294967296, found 4294967296"),
        ("optim.lr.vision=nan", "optim.lr.vision must be a finite number, found nan"),
        ("optim.clip=inf", "optim.clip must be a finite number, found inf"),
        ("optim.betas=[0.9,nan]", "optim.betas.1 must be a finite number, found nan"),
        ("mix.shares.alpha=nan", "mix.shares.alpha must be a finite number, found nan"),
        ("vision.image_size=0", "vision.image_size must be at least 1, found 0"),
        ("projector.hidden=-3", "projector.hidden must be at least 0, found -3"),
        ("language.lora.dropout=1.5", "language.lora.dropout must be below 1, found 1.5"),
        ("language.lora.dropout=-1", "language.lora.dropout must be at least 0, found -1"),
        (
            "language.lora.targets=[]",
            "language.lora.targets must name a linear layer; to freeze the language model, set optim.lr.language=0",
        ),
        ("name=.", "name='.' must be the name of a folder inside outputs="),
        ("name=../elsewhere", "name='../elsewhere' must be the name of a folder inside outputs="),
        ("data.global_batch_size=12", "data.packing_window=32 must be a multiple of data.global_batch_size=12"),
        (
            "trainer.accumulate=3",
            "data.global_batch_size=16 must be divisible by trainer.devices x trainer.nodes x trainer.accumulate = 1 x 3",
        ),
        ("mix.shares.alpha=-1", "mix.shares must be at least 0 each and positive for at least one source, found {'alpha': -1.0, "),
        ("mix.shares={alpha: 0, beta: 0, gamma: 0}", "mix.shares must be at least 0 each and positive for at least one source"),
        ("language.path=./nowhere", "language.path=./nowhere does not exist; give a local folder or a hub id"),
        (
            "optim.lr={vision: 0, projector: 0, language: 0}",
            "optim.lr needs at least one positive learning rate (0 freezes a part), found {'vision': 0.0, ",
        ),
    ],
)
def test_mistake_gives_one_line_error(words, override, message):
    assert error_of([*words, override]).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.row_tokens=160", "data.row_tokens: renamed to data.max_seq_len; write data.max_seq_len=160"),
        ("+trainer.keep=3", "trainer.keep: renamed to trainer.keep_last; write trainer.keep_last=3"),
        (
            "trainer.recompute=cheap",
            "trainer.recompute: renamed to trainer.activation_checkpointing; write trainer.activation_checkpointing=selective",
        ),
        (
            "trainer.activation_checkpointing=cheap",
            "trainer.activation_checkpointing=cheap: renamed; write trainer.activation_checkpointing=selective",
        ),
    ],
)
def test_renamed_key_gives_error_with_its_new_name(words, override, message):
    assert error_of([*words, override]) == message


def test_renamed_key_of_a_sweep_gives_error_with_its_new_name(words):
    with pytest.raises(UserError, match=r"^data.global_batch: renamed to data.global_batch_size; write data.global_batch_size=8,16$"):
        check_overrides("train", TrainConfig, [*words, "data.global_batch=8,16"], multirun=True, validate=check_train_config)


def test_renamed_key_of_evaluate_gives_error_with_its_new_name():
    with pytest.raises(UserError, match=r"^row_tokens: renamed to max_seq_len; write max_seq_len=64$"):
        check_overrides("evaluate", EvaluateConfig, ["run=tiny", "row_tokens=64"])


def test_every_new_name_is_a_key_of_a_configuration():
    keys = flatten(OmegaConf.to_container(compose("train", ["name=x"]))) | flatten(OmegaConf.to_container(compose("evaluate", [])))
    assert set(RENAMED.values()) <= keys.keys()
    assert not set(RENAMED) & keys.keys()


@pytest.mark.slow
def test_missing_shards_give_error_with_existing_sources(words, shards):
    assert error_of([*words, "+mix.shares.alhpa=1"]).startswith(
        f"mix.shares names alhpa, but data.root={shards} has no such shards; did you mean 'alpha'?; build them"
    )
    assert "has no such shards; it holds alpha, beta, gamma; build them" in error_of([*words, "+mix.shares.x=1", "+mix.shares.y=1"])
    check_overrides("train", TrainConfig, [*words, "mix.shares.gamma=0"], validate=check_train_config)


def test_missing_value_gives_error_with_key(words):
    assert error_of([word for word in words if not word.startswith("name=")]) == "config key 'name' has no value; give name=..."


@pytest.mark.slow
def test_every_trial_of_a_sweep_is_checked_before_the_first(words):
    with pytest.raises(UserError, match=r"optim.steps must be at least 1, found 0"):
        check_overrides("train", TrainConfig, [*words, "optim.steps=6,0"], multirun=True, validate=check_train_config)


def test_configuration_survives_conversion_to_yaml(configure):
    config = configure()
    assert to_typed(TrainConfig, OmegaConf.create(to_plain(config))) == config
    assert yaml.safe_load(yaml.safe_dump(to_plain(config))) == to_plain(config)


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_only_lacks_shards(experiment, tmp_path):
    """Everything is valid except for the shards and local weights, which this machine does not have."""
    shares = ["mix.shares={mine: 1}"] if experiment == "own_data" else []  # has no sources of its own
    message = error_of([f"+experiment={experiment}", f"data.root={tmp_path}", *shares])
    assert re.search(r"mix.shares names .* has no such shards; it holds no source; build them with `make shards SOURCES=", message)


GROUPS = sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF / "experiment"})


@pytest.mark.parametrize("group", GROUPS, ids=lambda path: path.name)
def test_every_key_has_a_comment_in_a_file_of_its_group(group: Path):
    """Experiments are exempt: they only set keys that other files declare and explain."""
    keys, explained = set(), set()
    for path in group.glob("*.yaml"):
        previous = ""
        text = re.sub(r"\{[^}]*\}", "{}", path.read_text())  # what a flow mapping holds is a value
        for line in re.split(r"^hydra:", text, flags=re.MULTILINE)[0].splitlines():
            if match := re.match(r" *([a-z_0-9]+): *[^ #]", line):
                keys.add(match[1])
                explained |= {match[1]} if "#" in line or previous.lstrip().startswith("#") else set()
            previous = line
    assert keys - explained - {"vision", "projector"} == set()  # keys of `lr`, whose own comment explains them


def test_no_configuration_names_code():
    assert not [path for path in CONF.rglob("*.yaml") if "_target_" in path.read_text()]
