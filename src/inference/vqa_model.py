"""A trained model that answers questions on images, from a run or an exported folder. `ask` and the demo use it."""

import hashlib
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from src.data.image_transform import resize_to_square
from src.data.record import Record
from src.evaluation.condition_images import blank_image
from src.inference.exported import load_exported
from src.inference.query import ModelSource, Sampling, VQAQuery, find_model, validate_question
from src.model.generate import Answer, GenerationRequest, Generator, make_request
from src.model.vlm import VLM, build_vlm
from src.runtime.errors import UserError
from src.runtime.silence_libraries import silence_libraries
from src.training.checkpoint import choose_checkpoint, load_checkpoint


class VQAModel:
    """`max_seq_len` limits images, history, question and answer together, as in training. `takes_images` is False for a model that
    was trained without images."""

    def __init__(self, model: VLM, *, name: str, max_seq_len: int, takes_images: bool):
        self.model, self.name, self.takes_images = model, name, takes_images
        self.prompter = model.prompter(budget=max_seq_len)

    def answers(self, queries: list[VQAQuery], sampling: Sampling, *, batch: int = 16) -> list[Answer]:
        """One answer per query, in order. Questions on the same images share their prefix."""
        answers = dict(self.generator(sampling, batch=batch).answers([self.prepare(query, sampling) for query in queries]))
        return [answers[n] for n in range(len(queries))]

    def stream(self, query: VQAQuery, sampling: Sampling) -> Iterator[Answer]:
        """The unfinished answer after every token."""
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

    def prepare(self, query: VQAQuery, sampling: Sampling) -> GenerationRequest:
        """Validates a query and converts it to tokens and pixels. Drops the oldest turns if the history does not fit.

        Raises `UserError` for a question that is too long, not plain text, or has characters that the vocabulary lacks, and for images
        that the model does not take.
        """
        question = validate_question(query.question)
        if query.images and not self.takes_images:
            raise UserError(f"{self.name} was trained without images (data.images=false); ask without an image")
        self._check_vocabulary(question)
        num_images = len(query.images)
        room = self.prompter.budget - len(self.prompter.prefix(num_images)) - sampling.max_new_tokens
        history = list(query.history)
        while (length := self.prompter.num_text_tokens(_record(history, question), num_images)) > room and history:
            history = history[1:]
        if length > room:
            raise UserError(
                f"the question has {length} tokens, but {num_images} images of {self.prompter.patches} tokens and an answer of "
                f"{sampling.max_new_tokens} leave room for {max(room, 0)} (at most {self.prompter.budget} together); shorten the question"
            )
        pixels = [self.pixels(image) for image in query.images]
        prefix = hashlib.sha256(b"".join(image.numpy().tobytes() for image in pixels)).hexdigest()
        record = _record(history, question)
        request = make_request(record, images=pixels, prefix=prefix, prompter=self.prompter, max_new_tokens=sampling.max_new_tokens)
        request.seed = sampling.seed
        return request

    def pixels(self, image: Image.Image) -> Tensor:
        """uint8 3HW at the encoder's input size."""
        return torch.from_numpy(resize_to_square(image, self.model.vision.size))

    def blank(self) -> Tensor:
        """An image without information: uint8 3HW of the encoder's mean colour."""
        return blank_image(self.model.vision.mean, self.model.vision.size)

    def _check_vocabulary(self, question: str) -> None:
        tokenizer = self.model.language.tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None:
            return
        missing = sorted({c for c in question if unknown in tokenizer(c, add_special_tokens=False).input_ids})
        if missing:
            raise UserError(f"the question has characters that the model's vocabulary lacks: {' '.join(missing[:5])}")


def _record(history: list[tuple[str, str]], question: str) -> Record:
    return Record(key="query", source="query", split="test", turns=[*history, (question, "")])


def load_vqa_model(where: str, *, outputs: str = "outputs", checkpoint: str = "best", accelerator: str = "auto") -> VQAModel:
    """`find_model` and `vqa_model_from_source` together."""
    return vqa_model_from_source(find_model(where, outputs=outputs, checkpoint=checkpoint, accelerator=accelerator))


def vqa_model_from_source(source: ModelSource) -> VQAModel:
    """Loads the model onto the first GPU, or onto the CPU if there is none or `accelerator` is cpu."""
    if source.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu, but torch finds no GPU; set accelerator=auto or cpu")
    silence_libraries()
    if source.config is None:
        model = load_exported(source.folder)
        max_seq_len, takes_images = model.language.body.config.max_position_embeddings, True
    else:
        path = choose_checkpoint(source.folder, source.checkpoint)
        model = build_vlm(source.config)
        load_checkpoint(model, path)
        max_seq_len, takes_images = source.config.data.max_seq_len, source.config.data.images
    model.to("cuda" if torch.cuda.is_available() and source.accelerator != "cpu" else "cpu")
    return VQAModel(model.eval(), name=source.name, max_seq_len=max_seq_len, takes_images=takes_images)
