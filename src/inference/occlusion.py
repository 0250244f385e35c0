"""Occlusion maps: how much an answer depends on each part of an image (Zeiler and Fergus, arXiv 1311.2901)."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import VQAModel
from src.model.generate import GenerationRequest

TILES = 7  # maximum per side; each tile costs one forward pass


@dataclass
class Occlusion:
    """`drops_GG[y, x]`: decrease of the log-probability of the answer when tile (y, x) is hidden; negative if it increases."""

    drops_GG: np.ndarray
    whole: float  # log-probability of the answer with the whole image
    tokens: int  # number of tokens of the answer


def occlude(model: VQAModel, query: VQAQuery, answer: str, *, tiles: int = TILES, batch: int = 16) -> Occlusion:
    """Replaces each tile of the first image by the encoder's mean colour and scores the same answer again."""
    request = model.prepare(query, Sampling(max_new_tokens=1))
    borders = _tile_borders(model, tiles)
    hidden = [_hide_tile(request, model.blank(), y, x) for y in pairwise(borders) for x in pairwise(borders)]
    (whole, tokens), *scores = _score_answer(model, [request, *hidden], answer, batch)
    side = len(borders) - 1
    return Occlusion(np.array([whole - score for score, _ in scores]).reshape(side, side), whole, tokens)


def likelihood(model: VQAModel, query: VQAQuery, answer: str, *, blank: bool = False) -> tuple[float, int]:
    """(log-probability of the answer, number of its tokens); `blank` replaces every image by the encoder's mean colour."""
    request = model.prepare(query, Sampling(max_new_tokens=1))
    return _score_answer(model, [blank_request(request, model.blank()) if blank else request], answer, 1)[0]


def blank_request(request: GenerationRequest, blank: Tensor) -> GenerationRequest:
    return replace(request, images=[blank] * len(request.images), prefix="blank")


def _score_answer(model: VQAModel, requests: list[GenerationRequest], answer: str, batch: int) -> list[tuple[float, int]]:
    generator = model.generator(Sampling(max_new_tokens=1), batch=batch)
    return [scores[0] for scores in generator.likelihoods(requests, [[answer]] * len(requests))]


def _hide_tile(request: GenerationRequest, blank: Tensor, y: tuple[int, int], x: tuple[int, int]) -> GenerationRequest:
    first_3HW = request.images[0].clone()
    first_3HW[:, y[0] : y[1], x[0] : x[1]] = blank[:, y[0] : y[1], x[0] : x[1]]
    return replace(request, images=[first_3HW, *request.images[1:]], prefix=f"{request.prefix} {y} {x}")


def _tile_borders(model: VQAModel, tiles: int) -> list[int]:
    """Borders of the tiles in pixels; each is a border of patches."""
    vision = model.model.vision
    patches = round(vision.num_patches**0.5)
    side = min(tiles, patches)
    return [round(n * patches / side) * vision.size // patches for n in range(side + 1)]
