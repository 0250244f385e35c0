"""Every ablation is a short delta whose own keys win, and each of its trials trains."""

import pytest
import yaml

from src import sweep
from src.cli import CONF, compose, spelt_out
from src.config import Train, typed, validate
from src.train import train

FILES = {path.stem: path for path in sorted((CONF / "experiment").glob("*.yaml"))}
ABLATIONS = [name for name in FILES if "- mini\n" in FILES[name].read_text()]
# What the tiny sources of these tests stand for, so that the values of a sweep can be tried on them.
STANDS_FOR = {"pathvqa": "alpha", "vqa_med_2019": "beta", "pmc_oa": "beta", "pubmedqa": "gamma"}
STANDS_FOR |= dict.fromkeys(("pmc_vqa", "ubench"), "alpha") | dict.fromkeys(("medmcqa", "medqa"), "gamma")
STANDS_FOR |= dict.fromkeys(("quilt_1m", "medicat", "roco", "iu_xray", "slake", "vqa_rad"), "beta")


def trials(name: str) -> list[list[str]]:
    words = [f"+experiment={name}"]
    return sweep.points(spelt_out("train", words))


def tiny(point: list[str]) -> list[str]:
    """The overrides of a trial, with the sources of the tests."""
    said = []
    for word in point:
        for source, mine in STANDS_FOR.items():
            word = word.replace(source, mine)
        said.append(word)
    return said


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


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_trial_differs_in_one_setting(name):
    points = trials(name)
    sweep.check(points)
    for point in points:
        assert len(point) <= 2, "the experiment and one swept value"
        typed(Train, compose("train", point))


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_trial_trains_three_steps(name, words, tmp_path):
    own = yaml.safe_load(FILES[name].read_text())
    keys = [f"{part}.{key}={value}".replace(" ", "") for part in ("mix", "data") for key, value in own.get(part, {}).items()]
    keys += [f"optim.lr.vision={own['optim']['lr']['vision']}"] if "lr" in own.get("optim", {}) else []
    for number, point in enumerate(trials(name)):
        swept = tiny([*keys, *(word for word in point if not word.startswith("+experiment"))])
        config = typed(Train, compose("train", [*words, *swept, f"name={name}{number}", "optim.steps=3"]))
        validate(config)
        folder = train(config)
        assert (folder / "result.json").exists(), point


def test_sources_of_a_mix_can_be_narrowed_and_evened_out(configure):
    mix = configure("mix.only=[alpha,beta]", "mix.leave_out=[beta]").mix
    assert mix.drawn == {"alpha": 2.0}
    assert configure().mix.drawn == {"alpha": 2.0, "beta": 1.0, "gamma": 1.0}
    assert configure("mix.temperature=2").mix.drawn["alpha"] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mix.only=[alhpa]", "mix.only names 'alhpa', which mix.shares does not have; did you mean 'alpha'?"),
        ("mix.leave_out=[alpha,beta,gamma]", "leave no source with a positive share"),
        ("mix.temperature=0", "mix.temperature must be above 0, found 0"),
    ],
)
def test_bad_input(configure, override, said):
    from src.errors import UserError

    with pytest.raises(UserError) as error:
        validate(configure(override))
    assert said in str(error.value)
