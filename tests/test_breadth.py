"""experiments/breadth: the sources of the trials, the statistics, and the conclusion for every outcome."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.breadth.analysis import conclusion, estimate, plot, read, tables
from experiments.breadth.trials import BENCHMARKS, IMAGE_SOURCES, IMAGES, SEEDS, SIZES, STEPS, TEXT_SOURCES, trials
from experiments.tables import read_rows
from src.config.train import TrainConfig
from src.runtime.cli import CONF, compose
from src.runtime.schema import to_typed


def results(path: Path, *, slope: float, noise: float = 0.001, text: float = 0.0, best: float = 0.0) -> Path:
    """A results.csv in which each doubling of the sources adds `slope` to the score."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "sources", "text", "names", *BENCHMARKS, "mean", "data", "git"])
        writer.writerow(["", 0, "no", "", *[0.5] * 9, "", "g"])
        for trial in trials():
            score = 0.6 + slope * np.log2(len(trial.sources)) + rng.normal(0, noise) + (text if trial.text else 0)
            score += best if trial.sources == ("pathvqa",) else 0
            writer.writerow(
                [trial.seed, len(trial.sources), "yes" if trial.text else "no", " ".join(trial.sources), *[score] * 9, "d", "g"]
            )
    return path


def test_trials_are_nested_in_the_order_of_their_seed():
    every = trials()
    assert len({trial.name for trial in every}) == len(every)
    for seed in range(SEEDS):
        nested = [next(t for t in every if t.seed == seed and len(t.sources) == size and not t.text) for size in SIZES if size > 1]
        assert all(larger.sources[: len(smaller.sources)] == smaller.sources for smaller, larger in pairwise(nested))
        assert set(nested[-1].sources) == set(IMAGE_SOURCES)
        assert sum(t.text for t in every if t.seed == seed) == 1
    assert {t.sources[0] for t in every if len(t.sources) == 1} == set(IMAGE_SOURCES)
    assert len({tuple(t.sources) for t in every if len(t.sources) == 11}) == SEEDS


@pytest.mark.slow
def test_every_trial_has_equally_many_samples_with_images():
    for trial in trials():
        config = to_typed(TrainConfig, compose("train", trial.overrides()))
        shares = config.mix.sampling_weights
        assert set(shares) == {*trial.sources, *(TEXT_SOURCES if trial.text else ())}
        images = sum(share for source, share in shares.items() if source in IMAGE_SOURCES) / sum(shares.values())
        assert images * config.data.global_batch_size * config.optim.steps == pytest.approx(IMAGES * STEPS)
        assert config.name == trial.name


def test_sources_are_those_of_the_mix_without_benchmarks():
    shares = yaml.safe_load((CONF / "mix/mini.yaml").read_text())["shares"]
    assert set(shares) == {*IMAGE_SOURCES, *TEXT_SOURCES}
    assert set(BENCHMARKS) == set(yaml.safe_load((CONF / "transfer.yaml").read_text())["benchmark_lists"]["first_eight"])
    assert not set(BENCHMARKS) & set(shares)


def test_estimate_uses_student_t_interval():
    result = estimate([0.1, 0.2, 0.3, 0.4])
    assert (result.value, result.n) == (pytest.approx(0.25), 4)
    assert result.high - result.value == pytest.approx(3.182446 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2)
    assert result.detectable > result.high - result.value
    assert not estimate([-0.1, 0.1, 0.05, -0.05]).significant


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ({"slope": 0.02}, "Breadth helps: +0.0"),
        ({"slope": -0.02}, "Breadth hurts: -0.0"),
        ({"slope": 0.0, "noise": 0.02}, "No significant effect of breadth"),
        ({"slope": 0.02, "best": 0.2}, "all eleven sources are worse than the best single source (pathvqa)"),
        ({"slope": 0.02}, "all eleven sources are better than the best single source"),
    ],
)
def test_conclusion_follows_from_the_numbers(tmp_path, truth, expected):
    assert expected in conclusion(read(read_rows(results(tmp_path / "r.csv", **truth))))


def test_table_and_plot_show_the_results(tmp_path):
    breadth = read(read_rows(results(tmp_path / "r.csv", slope=0.01, noise=0.0005, text=0.05)))
    assert breadth.slope.value == pytest.approx(0.01, abs=1e-3)
    assert breadth.text_minus_none.value == pytest.approx(0.05, abs=1e-3)
    assert breadth.start == 0.5
    assert {size: len(seeds) for size, seeds in breadth.by_size.items()} == dict.fromkeys(SIZES, SEEDS)
    text = tables(breadth)
    assert f"| {np.mean(list(breadth.by_size[11].values())):.3f} |" in text
    assert text.endswith(conclusion(breadth))
    plot(breadth, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
