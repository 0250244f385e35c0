"""Questions, sampling settings and the choice of a model. Nothing here loads weights or imports torch."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from src.config.train import TrainConfig
from src.data.credentialed import exported_sources
from src.data.lineage import credentialed, lineage
from src.runtime import run_folder
from src.runtime.errors import UserError
from src.runtime.schema import check_choice, to_typed

EMPTY_ANSWER = "(empty answer)"  # in a conversation, so that each turn has text


@dataclass
class Sampling:
    """Decoding settings. `temperature` 0 is greedy and ignores `top_p` and `seed`. Raises `UserError` for values out of range."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, found {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 (greedy) or more, found {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, found {self.top_p:g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be from 0 to below 2^63, found {self.seed}")


@dataclass
class VQAQuery:
    """A question, its images (8-bit RGB), and the turns before it as (question, answer)."""

    question: str
    images: list[Image.Image] = field(default_factory=list)
    history: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ModelSource:
    """A finished run with its configuration, or a folder that `python -m src.export` wrote (`config` is None).

    `credentialed` names the credentialed sources that it was trained on.
    """

    name: str
    folder: Path
    config: TrainConfig | None
    checkpoint: str = "best"
    accelerator: str = "auto"
    credentialed: list[str] = field(default_factory=list)


def trained_on(source: ModelSource) -> str:
    """A sentence on the data of the model: of a run from its lineage, of an exported folder from its card; empty if unknown."""
    if source.config is None:
        card = source.folder / "README.md"
        return training_data_of_card(card.read_text()) if card.is_file() else ""
    return describe_training_data([record for run in lineage(source.folder) for record in run["sources"]])


def describe_training_data(sources: list[dict]) -> str:
    names = ", ".join(dict.fromkeys(source["name"] for source in sources))
    phantoms = ", ".join(dict.fromkeys(source["name"] for source in sources if source["phantom"]))
    if not sources:
        return ""
    if phantoms == names:
        return "Trained on phantoms only, which a program drew: the model has learned nothing about medicine."
    return f"Trained on {names}." + (f" Of these, a program drew {phantoms}." if phantoms else "")


def training_data_of_card(text: str) -> str:
    """The first paragraph of a model card that begins with `**Trained`, without its markup."""
    return next((line for line in text.splitlines() if line.startswith("**Trained")), "").replace("**", "")


def validate_question(question: str) -> str:
    """The question without surrounding whitespace. Raises `UserError` if it is empty or not plain text."""
    question = question.strip()
    if not question:
        raise UserError("the question is empty; ask something, such as 'Which organ is shown?'")
    if not question.isprintable() and any((ord(c) < 32 and c not in "\t\n\r") or 0xD800 <= ord(c) < 0xE000 for c in question):
        raise UserError("the question holds control characters or broken UTF-8; write it as plain text")
    return question


def find_model(where: str, *, outputs: str = "outputs", checkpoint: str = "best", accelerator: str = "auto") -> ModelSource:
    """`where` is `run:<name>` (a finished run in `outputs`), a run folder, or a folder that `python -m src.export` wrote."""
    check_choice("checkpoint", checkpoint, ("best", "last"))
    check_choice("accelerator", accelerator, ("cpu", "gpu", "auto"))
    folder = Path(where)
    if where.startswith("run:"):
        name = where.removeprefix("run:")
        return _run_source(where, outputs, name, checkpoint, accelerator)
    if (folder / "config.yaml").exists():
        name = run_folder.run_name(folder)
        return _run_source(f"run:{name}", str(folder.absolute().parents[name.count("/")]), name, checkpoint, accelerator)
    for exported in (folder, folder / "hf"):
        if (exported / "config.json").exists():
            return ModelSource(str(exported), exported, None, accelerator=accelerator, credentialed=exported_sources(exported))
    if (Path(outputs) / where / "config.yaml").exists():
        raise UserError(f"model={where} is a run in {outputs}; write model=run:{where}")
    raise UserError(f"model={where} is neither run:<name of a run in {outputs}> nor a folder that `python -m src.export` wrote")


def _run_source(where: str, outputs: str, name: str, checkpoint: str, accelerator: str) -> ModelSource:
    folder, config = finished_run(outputs, name)
    return ModelSource(where, folder, config, checkpoint, accelerator, credentialed(lineage(folder)))


def finished_run(outputs: str, name: str) -> tuple[Path, TrainConfig]:
    """Folder and configuration of a run. Raises `UserError` if its training has not finished."""
    folder, stored = run_folder.read_run(outputs, name)
    if not (folder / "train.json").exists():
        raise UserError(f"run '{name}' has not finished training; continue it with the command that started it: python -m src.train ...")
    return folder, to_typed(TrainConfig, OmegaConf.create(stored))
