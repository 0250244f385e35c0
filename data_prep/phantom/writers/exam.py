"""Questions on several images, for the exam benchmarks."""

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.scene.choices import choice_questions
from data_prep.phantom.scene.wording import sentence
from data_prep.phantom.scene.world import MODALITIES, Scene, pick, sample_scene
from data_prep.phantom.writers.folder import render_jpeg, scenes


@dataclass
class Exam:
    """A question about one of several images of one modality. `kind` is its question type."""

    images: list[bytes]
    scene: Scene  # of the image that the question is about
    kind: str
    question: str
    answer: str
    options: list[str]

    @property
    def letter(self) -> str:
        return "ABCDEF"[self.options.index(self.answer)]


def exams(seed: int, dataset: str, number: int, *, most: int, reference: str) -> list[Exam]:
    """`number` exams of up to `most` images. `reference` is how the text names an image, such as `<image {}>`."""
    made = []
    for scene, rng in scenes(seed, dataset, "test", number, tuple(MODALITIES)):
        others = [sample_scene(rng, modalities=(scene.modality,)) for _ in range(int(rng.integers(0, most)))]
        every = [scene, *others]
        target = int(rng.integers(len(every)))
        every[0], every[target] = every[target], every[0]
        made.append(_exam(every, target, reference, rng))
    return made


def _exam(every: list[Scene], target: int, reference: str, rng: np.random.Generator) -> Exam:
    kind, question, answer, options = pick(rng, choice_questions(every[target], rng))
    full_question = f"{sentence(question).rstrip('?')} in {reference.format(target + 1)}?"
    return Exam([render_jpeg(one, rng) for one in every], every[target], kind, full_question, answer, options)
