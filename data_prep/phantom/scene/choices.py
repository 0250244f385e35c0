"""Multiple-choice questions. The right answer is at each position equally often; wrong ones are of the same kind."""

from collections.abc import Sequence

import numpy as np

from data_prep.phantom.scene.wording import NUMBERS, noun, questions
from data_prep.phantom.scene.world import MODALITIES, NORMAL, Scene, pick

ORGANS = tuple(dict.fromkeys(organ for kind in MODALITIES.values() for organ in kind.organs))
LOOKS = tuple(f"{size}, on the {side}" for size in ("small", "large") for side in ("left", "right"))
VOCABULARY = {
    "modality": tuple(kind.display_name for kind in MODALITIES.values()),
    "organ": ORGANS,
    "plane": tuple(dict.fromkeys(plane for kind in MODALITIES.values() for planes in kind.organs.values() for plane in planes if plane)),
    "specimen": tuple(stain for kind in MODALITIES.values() for stain in kind.stains if stain),
    "count": NUMBERS[1:],
}


def options(rng: np.random.Generator, right: str, among: Sequence[str], *, number: int = 4) -> list[str]:
    """`right` and `number - 1` others of `among` (fewer if it has fewer), in random order."""
    wrong = [one for one in among if one != right]
    candidates = [right, *(wrong[n] for n in rng.permutation(len(wrong))[: number - 1])]
    return [candidates[n] for n in rng.permutation(len(candidates))]


def choice_questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str, list[str]]]:
    """(type, question, answer, four options). Options depend on the modality, not on the image.

    `look` asks for size and side together, because each alone has only two answers.
    """
    findings = (*MODALITIES[scene.modality].findings, NORMAL)
    with_options = []
    for kind, question, answer in questions(scene, rng):
        if kind == "finding" or kind in VOCABULARY:
            with_options.append((kind, question, answer, options(rng, answer, VOCABULARY.get(kind, findings))))
    if not scene.normal:
        question = pick(rng, ("which describes the {noun}?", "what is the size and side of the {noun}?")).format(noun=noun(scene))
        answer = f"{scene.size}, on the {scene.side}"
        with_options.append(("look", question, answer, options(rng, answer, LOOKS)))
    return with_options
