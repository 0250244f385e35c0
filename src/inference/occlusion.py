"""Which parts of a picture an answer depends on, by hiding them one after another (occlusion; Zeiler and Fergus, arXiv 1311.2901)."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import VQAModel
from src.model.generate import GenerationRequest

TILES = 7  # per side at most; each tile costs one pass of the model


@dataclass
class Occlusion:
    """`drops_GG[y, x]`: how much the log-probability of the answer falls when tile (y, x) is hidden; below 0 it rises."""

    drops_GG: np.ndarray
    whole: float  # log-probability of the answer with the whole picture
    tokens: int


def occlude(answerer: VQAModel, query: VQAQuery, answer: str, *, tiles: int = TILES, batch: int = 16) -> Occlusion:
    """Hides every tile of the first picture in the encoder's mean colour and scores the same answer again."""
    asked = answerer.prepare(query, Sampling(max_new_tokens=1))
    edges = _edges(answerer, tiles)
    hidden = [_hide(asked, answerer.blank(), y, x) for y in pairwise(edges) for x in pairwise(edges)]
    scores = _scores(answerer, [asked, *hidden], answer, batch)
    (whole, tokens), *rest = scores
    side = len(edges) - 1
    return Occlusion(np.array([whole - score for score, _ in rest]).reshape(side, side), whole, tokens)


def likelihood(answerer: VQAModel, query: VQAQuery, answer: str, *, blank: bool = False) -> tuple[float, int]:
    """(log-probability of the answer, its tokens); `blank`: with every picture replaced by the encoder's mean colour."""
    asked = answerer.prepare(query, Sampling(max_new_tokens=1))
    return _scores(answerer, [blank_request(asked, answerer.blank()) if blank else asked], answer, 1)[0]


def blank_request(asked: GenerationRequest, blank: Tensor) -> GenerationRequest:
    return replace(asked, images=[blank] * len(asked.images), prefix="blank")


def _scores(answerer: VQAModel, asked: list[GenerationRequest], answer: str, batch: int) -> list[tuple[float, int]]:
    generator = answerer.generator(Sampling(max_new_tokens=1), batch=batch)
    return [scores[0] for scores in generator.likelihoods(asked, [[answer]] * len(asked))]


def _hide(asked: GenerationRequest, blank: Tensor, y: tuple[int, int], x: tuple[int, int]) -> GenerationRequest:
    first_3HW = asked.images[0].clone()
    first_3HW[:, y[0] : y[1], x[0] : x[1]] = blank[:, y[0] : y[1], x[0] : x[1]]
    return replace(asked, images=[first_3HW, *asked.images[1:]], prefix=f"{asked.prefix} {y} {x}")


def _edges(answerer: VQAModel, tiles: int) -> list[int]:
    """Borders of the tiles in pixels, on borders of patches."""
    vision = answerer.model.vision
    patches = round(vision.num_patches**0.5)
    side = min(tiles, patches)
    return [round(n * patches / side) * vision.size // patches for n in range(side + 1)]
