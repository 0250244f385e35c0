"""A trained model that answers questions about pictures: `run:<name>` or an exported folder. `ask` and the demo stand on it."""

import hashlib
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from src.data.benchmark import blank
from src.data.images import squash
from src.data.prompt import pieces
from src.data.record import Record
from src.errors import UserError
from src.model.exported import load_exported
from src.model.generate import Answer, Asked, Generator, ask
from src.model.query import Query, Sampling, Source, source, spoken
from src.model.vlm import VLM, build
from src.quiet import quiet
from src.training.checkpoint import choose, load


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


def _record(history: list[tuple[str, str]], question: str) -> Record:
    return Record(key="asked", source="asked", split="test", turns=[*history, (question, "")])


def load_answerer(where: str, *, outputs: str = "outputs", checkpoint: str = "best", accelerator: str = "auto") -> Answerer:
    """The model that `source` finds."""
    return answerer(source(where, outputs=outputs, checkpoint=checkpoint, accelerator=accelerator))


def answerer(found: Source) -> Answerer:
    """Loads it, to the first GPU where there is one and `accelerator` does not forbid it."""
    if found.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu, but torch finds no GPU here; leave it at auto, or say cpu")
    quiet()
    if found.config is None:
        model = load_exported(found.folder)
        row_tokens, takes_images = model.language.body.config.max_position_embeddings, True
    else:
        path = choose(found.folder, found.checkpoint)
        model = build(found.config)
        load(model, path)
        row_tokens, takes_images = found.config.data.row_tokens, found.config.data.images
    model.to("cuda" if torch.cuda.is_available() and found.accelerator != "cpu" else "cpu")
    return Answerer(model.eval(), name=found.name, row_tokens=row_tokens, takes_images=takes_images)
