"""The trials of experiments/real, read from trials.yaml, as overrides of `src.train`, `src.evaluate` and `src.transfer`."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config.train import TrainConfig
from src.model.vision_checkpoints import untrained_copy
from src.runtime.cli import compose
from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice, to_typed

SETTINGS = Path(__file__).with_name("trials.yaml")


@dataclass
class TrialSettings:
    images: list[str]
    settings: list[str] = field(default_factory=list)
    encoder: str = "given"  # at the start: given | random
    continues: str | None = None  # trial whose weights it starts from


@dataclass
class Experiment:
    """Keys of trials.yaml, whose comments explain them."""

    settings: list[str]
    benchmarks: list[str]
    evaluate: list[str]
    transfer: list[str]
    trials: dict[str, TrialSettings]
    comparisons: list[list[str]]


def read_experiment(path: Path) -> Experiment:
    if not path.is_file():
        raise UserError(f"settings={path} does not exist; give a file such as {SETTINGS.name}")
    return to_typed(Experiment, DictConfig(OmegaConf.load(path)))


@dataclass(frozen=True)
class Trial:
    """One training. `shared` are overrides of all trials: the data, the weights at the start and the number of steps."""

    label: str
    seed: int
    experiment: Experiment
    shared: tuple[str, ...]

    @property
    def settings(self) -> TrialSettings:
        return self.experiment.trials[self.label]

    @property
    def name(self) -> str:
        return self.label if self.seed == 0 else f"{self.label}-seed{self.seed}"

    def given_words(self) -> list[str]:
        """The overrides of `src.train` with the given encoder. A trial that continues another one has another data order."""
        words = [*self.experiment.settings, *self.shared, *self.settings.settings, f"name={self.name}"]
        if not self.settings.continues:
            return [*words, f"seed={self.seed}"]
        return [*words, f"init=run:{replace(self, label=self.settings.continues).name}", f"seed={self.seed + 1}"]

    def train_words(self) -> list[str]:
        return random_encoder(self.given_words()) if self.settings.encoder == "random" else self.given_words()

    def evaluate_words(self, limit: int) -> list[str]:
        names, images = ",".join(self.experiment.benchmarks), ",".join(self.settings.images)
        return [f"run={self.name}", f"benchmarks=[{names}]", f"images=[{images}]", f"limit={limit}", *self.experiment.evaluate]


def random_encoder(words: list[str]) -> list[str]:
    """The overrides with random weights in place of the given ones, for the same architecture and input size."""
    untrained = untrained_copy(to_typed(TrainConfig, compose("train", words)).vision)
    words = [*words, "vision.format=scratch", "vision.path=''", f"vision.architecture={untrained.architecture}"]
    words += [f"vision.image_size={untrained.image_size}"] if untrained.image_size else []
    kwargs = ", ".join(f"{key}: {value}" for key, value in untrained.architecture_kwargs.items())
    return [*words, f"+vision.architecture_kwargs={{{kwargs}}}"] if kwargs else words


def select_trials(experiment: Experiment, names: list[str], *, seeds: int, shared: list[str]) -> list[Trial]:
    """The trials with these names, or all; the first seed of each comes before the second seed of any."""
    for label, trial in experiment.trials.items():
        check_choice(f"trials.{label}.encoder", trial.encoder, ("given", "random"))
        if trial.continues:
            check_choice(f"trials.{label}.continues", trial.continues, list(experiment.trials))
    for name in names:
        if name not in experiment.trials:
            raise UserError(f"trials={name}{suggest(name, experiment.trials)}")
    labels = [label for label in experiment.trials if not names or label in names]
    return [Trial(label, seed, experiment, tuple(shared)) for seed in range(seeds) for label in labels]
