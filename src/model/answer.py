"""A trained model that answers questions about pictures: `run:<name>` or an exported folder. `ask` and the demo stand on it."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from transformers.utils import logging as hf_logging

from src import run
from src.config import Train, one_of, typed
from src.data.benchmark import blank
from src.data.images import squash
from src.data.prompt import pieces
from src.data.record import Record
from src.errors import UserError
from src.model.exported import load_exported
from src.model.generate import Answer, Asked, Generator, ask
from src.model.vlm import VLM, build
from src.training.checkpoint import choose, load


@dataclass
class Sampling:
    """`temperature` 0 is greedy and does not depend on `top_p` and `seed`."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Query:
    """A question, the pictures it is about (8-bit RGB) and what was said before: [(question, answer)]."""

    question: str
    images: list[Image.Image] = field(default_factory=list)
    history: list[tuple[str, str]] = field(default_factory=list)


class Answerer:
    """`row_tokens` bounds images, history and question together, as in training; `takes_images`: it has learnt to see."""

    def __init__(self, model: VLM, *, name: str, row_tokens: int, takes_images: bool):
        self.model, self.name, self.takes_images = model, name, takes_images
        self.prompter = model.prompter(budget=row_tokens)

    def answers(self, queries: list[Query], sampling: Sampling, *, batch: int = 16) -> list[Answer]:
        """In the order of the queries; questions on the same pictures share their prefix."""
        found = dict(self.generator(sampling, batch=batch).answers([self.prepare(query, sampling) for query in queries]))
        return [found[number] for number in range(len(queries))]

    def stream(self, query: Query, sampling: Sampling) -> Iterator[Answer]:
        """The answer as it grows."""
        return self.generator(sampling, batch=1).stream(self.prepare(query, sampling))

    def generator(self, sampling: Sampling, *, batch: int) -> Generator:
        return Generator(
            self.model,
            self.prompter,
            batch=batch,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )

    def prepare(self, query: Query, sampling: Sampling) -> Asked:
        """Checks a query and turns it into tokens and pixels; the oldest turns go when the history does not fit."""
        question = spoken(query.question)
        if query.images and not self.takes_images:
            raise UserError(f"{self.name} was trained without images (data.images=false) and takes none")
        self._check_vocabulary(question)
        room = self.prompter.budget - len(self.prompter.prefix(len(query.images))) - sampling.max_new_tokens
        history = list(query.history)
        while history and self._length(history, question) > room:
            history = history[1:]
        length = self._length(history, question)
        if length > room:
            raise UserError(
                f"the question has {length} tokens; {max(room, 0)} are left beside {len(query.images)} images of "
                f"{self.prompter.patches} and an answer of {sampling.max_new_tokens} (at most {self.prompter.budget} together)"
            )
        pixels = [self.pixels(image) for image in query.images]
        prefix = hashlib.sha256(b"".join(image.numpy().tobytes() for image in pixels)).hexdigest()
        record = _record(history, question)
        asked = ask(record, images=pixels, prefix=prefix, prompter=self.prompter, max_new_tokens=sampling.max_new_tokens)
        asked.seed = sampling.seed
        return asked

    def pixels(self, image: Image.Image) -> Tensor:
        """uint8 3HW at the encoder's size."""
        return torch.from_numpy(squash(image, self.model.vision.size))

    def blank(self) -> Tensor:
        """The encoder's mean colour (uint8 3HW), which carries nothing."""
        return blank(self.model.vision.mean, self.model.vision.size)

    def _length(self, history: list[tuple[str, str]], question: str) -> int:
        return sum(len(ids) + 1 for ids in self.prompter.tokens([text for pair in pieces(_record(history, question)) for text in pair]))

    def _check_vocabulary(self, question: str) -> None:
        tokenizer = self.model.language.tokenizer
        unknown = tokenizer.unk_token_id
        lost = [] if unknown is None else sorted({c for c in question if unknown in tokenizer(c, add_special_tokens=False).input_ids})
        if lost:
            raise UserError(f"the question has characters that the model's vocabulary lacks: {' '.join(lost[:5])}")


def spoken(question: str) -> str:
    """A question without blanks around it; an empty one, or text that is no text, is a `UserError`."""
    question = question.strip()
    if not question:
        raise UserError("the question is empty; ask something, such as 'Which organ is shown?'")
    if not question.isprintable() and any((ord(c) < 32 and c not in "\t\n\r") or 0xD800 <= ord(c) < 0xE000 for c in question):
        raise UserError("the question holds control characters or broken UTF-8; write it as plain text")
    return question


def _record(history: list[tuple[str, str]], question: str) -> Record:
    return Record(key="asked", source="asked", split="test", turns=[*history, (question, "")])


def load_answerer(where: str, *, outputs: str = "outputs", checkpoint: str = "best", accelerator: str = "auto") -> Answerer:
    """`run:<name>` (a finished run of `outputs`), a run folder, or a folder that `python -m src.export` wrote."""
    quiet()
    one_of("checkpoint", checkpoint, ("best", "last"))
    one_of("accelerator", accelerator, ("cpu", "gpu", "auto"))
    folder = Path(where)
    if where.startswith("run:"):
        found = _from_run(outputs, where.removeprefix("run:"), checkpoint)
    elif (folder / "config.yaml").exists():
        found = _from_run(str(folder.parent), folder.name, checkpoint)
    elif (folder / "config.json").exists() or (folder / "hf" / "config.json").exists():
        found = _from_export(folder if (folder / "config.json").exists() else folder / "hf")
    elif (Path(outputs) / where / "config.yaml").exists():
        raise UserError(f"model={where} is a run of {outputs}; write model=run:{where}")
    else:
        raise UserError(f"model={where} is neither run:<name of a run in {outputs}> nor a folder that `python -m src.export` wrote")
    found.model.to("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")
    return found


def quiet() -> None:
    """Loading speaks only when something is wrong."""
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # what peft still calls


def _from_run(outputs: str, name: str, checkpoint: str) -> Answerer:
    folder, config = finished(outputs, name)
    path = choose(folder, checkpoint)
    model = build(config)
    load(model, path)
    return Answerer(model.eval(), name=f"run:{name}", row_tokens=config.data.row_tokens, takes_images=config.data.images)


def finished(outputs: str, name: str) -> tuple[Path, Train]:
    """Folder and configuration of a run that has been trained to its end."""
    folder, stored = run.read_run(outputs, name)
    if not (folder / "train.json").exists():
        raise UserError(f"run '{name}' has not finished training; continue it with the command that started it: python -m src.train ...")
    return folder, typed(Train, OmegaConf.create(stored))


def _from_export(folder: Path) -> Answerer:
    model = load_exported(folder)
    longest = model.language.body.config.max_position_embeddings
    return Answerer(model, name=str(folder), row_tokens=longest, takes_images=True)
